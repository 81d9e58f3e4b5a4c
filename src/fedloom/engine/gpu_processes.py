"""Train and answer on several GPUs of this machine: this process drives the first, and a process each of the others.

The processes are started anew, not forked, and each loads the model from its files straight to its GPU. They get requests
as messages through pipes, keep the site open, and end with this process. If one dies over a request, another takes its
place. Updates and answers are those of `InProcess` with as many threads and rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, Any

from fedloom.client.site import Question, Site
from fedloom.engine.in_process import InProcess, ignore
from fedloom.engine.remote_site import answer_request, judged_of, receive_reply, reply_to, serve
from fedloom.engine.timed_answers import from_bytes, timed
from fedloom.engine.trains_in_pieces import Trained, TrainsInPieces
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.system.errors import UserError
from fedloom.system.processes import end_reason, end_with_parent
from fedloom.system.signals import ignore_signals
from fedloom.tasks.score_answers import Answers, merge
from fedloom.wire.messages import Assignment
from fedloom.wire.site_messages import SiteMessage, send_bytes

TRIES = 3
"""Number of processes that may die over the same request before it is given up."""

AHEAD = 2
"""Most pieces that a process has at once, so that it does not wait while this process trains a piece of its own."""

LAST_BYTES = 4096
"""Number of last bytes of a process's output that are searched for its last line."""


class GivenUp(Exception):
    """Several processes died over a request."""


@dataclass(frozen=True)
class Running:
    """A process, and the file of its output besides replies."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]


class GpuProcesses:
    """The processes of the further GPUs; each starts with the first request to it.

    Args:
        command: Starts a process, whose code calls `serve_site`.
        environments: The environment variables of each process that differ from those of this one.
        begin: The message from which a process opens its site.
    """

    def __init__(
        self, command: Sequence[str], environments: Sequence[Mapping[str, str]], begin: SiteMessage
    ) -> None:
        self._command, self._environments, self._begin = list(command), environments, begin.to_bytes()
        self._running: dict[int, Running] = {}
        self._closed, self._starting = False, Lock()
        self._threads = [ThreadPoolExecutor(1) for _ in environments]

    def __len__(self) -> int:
        return len(self._environments)

    def close(self) -> None:
        """End the processes, also in the middle of a request."""
        with self._starting:
            self._closed = True
            for running in list(self._running.values()):
                running.process.kill()
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        for number in list(self._running):
            self._end(number)

    def ask(self, number: int, request: SiteMessage) -> Future[SiteMessage]:
        """Send a request to a process, after those that it has not answered yet.

        Returns:
            Its reply. `GivenUp` is raised if several processes died over the request, and UserError if the process cannot open
            its site, or refuses the request.
        """
        return self._threads[number].submit(self._answer, number, request.to_bytes())

    def _answer(self, number: int, request: bytes) -> SiteMessage:
        reason = ""
        for _ in range(TRIES):
            try:
                if number not in self._running:
                    self._open(number)
                return self._exchange(number, request)
            except UserError as error:
                raise UserError(f"the process of GPU {number + 1}: {error}") from error
            except (OSError, EOFError):
                if number not in self._running:
                    raise  # the system starts no more processes
                reason = self._end(number)
        raise GivenUp(f"{TRIES} processes died over it; the last one {reason}")

    def _open(self, number: int) -> None:
        """Start a process, and wait until it has opened its site."""
        environment, output = {**os.environ, **self._environments[number]}, TemporaryFile()
        with self._starting:
            if self._closed:
                raise UserError("the run has ended")
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # a Ctrl-C reaches this process, which ends it
            )
            self._running[number] = Running(process, output)
        try:
            self._exchange(number, self._begin)
        except UserError:
            self._end(number)
            raise
        except (OSError, EOFError):
            raise UserError(
                f"it {self._end(number)} before it had opened its site; try engine.workers=1"
            ) from None

    def _exchange(self, number: int, request: bytes) -> SiteMessage:
        process = self._running[number].process
        assert process.stdin is not None
        assert process.stdout is not None
        send_bytes(process.stdin, request)
        return receive_reply(process.stdout)

    def _end(self, number: int) -> str:
        """End a process, and return how it ended, with the last line of its output."""
        running = self._running.pop(number)
        process = running.process
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        try:
            code = process.wait(1)  # it may be ending by itself
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        with running.output as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = [line.strip() for line in output.read().decode(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        return end_reason(code) + (f" ({last})" if last else "")


@dataclass(frozen=True)
class SeveralGpus(TrainsInPieces):
    """A backend that trains and answers on several GPUs, of which this process has the first.

    Attributes:
        processes: The processes of the others.
    """

    processes: GpuProcesses

    def begin(self) -> int:
        """Return the number of processes, with this one."""
        return len(self.processes) + 1

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        """Answer questions; the batches are those of one process, and each process answers some of them."""
        count = self.begin()
        asked = [
            self.processes.ask(number, answer_request(questions, share=[number + 1, count]))
            for number in range(len(self.processes))
        ]
        parts = [replace(self.inner, share=(0, count)).answer(questions)]
        try:
            parts += [judged_of(one.result()) for one in asked]
        except GivenUp as error:
            raise UserError(f"questions about {questions[0].method}: {error}; try engine.workers=1") from None
        return [merge(one) for one in zip(*parts, strict=True)]

    def results(
        self, pieces: Iterator[Sequence[Assignment]]
    ) -> Iterator[tuple[Sequence[Assignment], Trained]]:
        """Train pieces here, and in the other processes meanwhile."""
        here = replace(self.inner, trained=ignore)
        flying = dict[Future[SiteMessage], tuple[int, Sequence[Assignment]]]()
        while True:
            own = next(pieces, None)
            self._send(pieces, flying)
            if own is not None:
                yield own, list(timed(here, own))
            elif flying:
                wait(flying, return_when=FIRST_COMPLETED)
            else:
                return
            for reply in [one for one in flying if one.done()]:
                _, assigned = flying.pop(reply)
                yield assigned, self._read(reply)

    def _send(
        self,
        pieces: Iterator[Sequence[Assignment]],
        flying: dict[Future[SiteMessage], tuple[int, Sequence[Assignment]]],
    ) -> None:
        """Send pieces to the processes, until each has one and then until each has `AHEAD`."""
        for most in range(1, AHEAD + 1):
            for number in range(len(self.processes)):
                has = sum(at == number for at, _ in flying.values())
                if has < most and (piece := next(pieces, None)) is not None:
                    head = {"rows": self.inner.rows, "recompute": self.recompute}
                    request = SiteMessage("train", head, tuple(one.to_bytes() for one in piece))
                    flying[self.processes.ask(number, request)] = number, piece

    def _read(self, reply: Future[SiteMessage]) -> Trained:
        layout = self.inner.site.tuned.layout
        try:
            return [from_bytes(one, layout) for one in reply.result().parts]
        except GivenUp as error:
            return str(error)


OpenSite = Callable[[Mapping[str, Any]], AbstractContextManager[Site]]
"""Opens the site of a process, from the values of the first message to it."""


def serve_site(open_site: OpenSite) -> None:
    """Open a site, and answer the requests of `CardProcesses` on standard input until they end.

    Args:
        open_site: Opens the site; its errors are the reply to the first request.
    """
    end_with_parent()
    ignore_signals()  # the process that asks gets the signals too, and ends this one
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed here must not come between messages
    with ExitStack() as stack:
        sites = list[Site]()

        def answer(request: SiteMessage) -> SiteMessage:
            if not sites:
                sites.append(stack.enter_context(open_site(request.head)))
                return SiteMessage("joined")
            return _answer(sites[0], request)

        serve(answer, sys.stdin.buffer, replies)


def _answer(site: Site, request: SiteMessage) -> SiteMessage:
    head = request.head
    backend = InProcess(site, head.get("rows", 1), share=tuple(head.get("share", (0, 1))))
    with gradient_checkpointing(site.tuned.vlm, head.get("recompute", False)):
        return reply_to(backend, site.tuned.layout, request)
