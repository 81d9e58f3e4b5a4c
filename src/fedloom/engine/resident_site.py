"""The process that a site is: it lives as long as the site takes part, keeps the model, and answers one message at a time.

Flower starts a short process for every message, which passes it on over a Unix socket. So the model, its cache and the
data are loaded once, whatever the number of rounds. An answer is kept until the next message: where its delivery failed,
the same message is answered at once, without training again.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedloom.client.site import Question
from fedloom.engine.envelope import Envelope, read_frame, write_frame
from fedloom.engine.ordering import SILENT
from fedloom.engine.remote import judged_plain, question_from
from fedloom.engine.rounds import Backend
from fedloom.failures import client_failure
from fedloom.messages import Assignment, Missing
from fedloom.params import Layout
from fedloom.record import Clock
from fedloom.types import UserError


def anything(asked: Sequence[Assignment]) -> None:
    """Allow whatever is asked."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A run that a site takes part in.

    Attributes:
        backend: How its clients train.
        layout: Names and shapes of what is exchanged.
        joined: What the server is sent when the site joins.
        allowed: Called with what clients are asked; it raises `UserError` for what the owner does not allow.
        replies: Whether answers to single examples may leave.
        evaluate: Scores a model on the site's own held-out part; None where it has none of its own.
        privacy: Method → what is added to its updates or clipped of them, as arguments of its parts.
    """

    backend: Backend
    layout: Layout
    joined: Envelope
    allowed: Callable[[Sequence[Assignment]], None] = anything
    replies: bool = True
    evaluate: Callable[[Question], Mapping[str, Any]] | None = None
    privacy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


Open = Callable[[Envelope], AbstractContextManager[Opened]]
"""(the server's first message) → the run, for as long as it is open; it raises `UserError` to refuse it."""


@dataclass
class ResidentSite:
    """Answer a server's messages.

    Attributes:
        name: The site's name.
        open: How a run is opened.
        left: Called with every request and answer before it leaves, and with the run if there is one.
        told: Called with a sentence about what happens.
    """

    name: str
    open: Open
    left: Callable[[Envelope, Envelope, Opened | None], None]
    told: Callable[[str], None]
    _run: Opened | None = None
    _begun: bytes = b""
    _stack: ExitStack = field(default_factory=ExitStack)
    _last: tuple[bytes, bytes] = (b"", b"")

    def answer(self, content: bytes) -> bytes:
        """Answer a message; whatever goes wrong is an answer too."""
        digest = hashlib.sha256(content).digest()
        if self._last[0] == digest:
            return self._last[1]
        try:
            request = Envelope.from_bytes(content)
            run = self._run
            answer = self._answer(request, digest)
        except (Exception, SystemExit) as error:
            reason = client_failure(error)
            self.told(f"refused what the server asked: {reason}")
            request, answer = Envelope(""), Envelope("refused", {"site": self.name, "reason": reason})
            run = None
        self.left(request, answer, self._run or run)
        if answer.kind == "refused":
            return answer.to_bytes()
        reply = answer.to_bytes()
        if answer.kind != "joined":  # that one is kept as long as the run is open
            self._last = (digest, reply)
        return reply

    def close(self) -> None:
        """Let go of the run and its model."""
        self._run, self._begun, self._last = None, b"", (b"", b"")
        self._stack.close()

    def _answer(self, request: Envelope, digest: bytes) -> Envelope:
        if request.kind == "begin":
            return self._begin(request, digest)
        if request.kind == "end":
            self.told("the run is over")
            self.close()
            return Envelope("ended", {"site": self.name})
        run = self._run
        if run is None:
            raise UserError("the site has not joined this run; it must be sent the run first")
        if request.kind in ("train", "measure"):
            return self._clients(run, request)
        if request.kind == "evaluate" and run.evaluate is not None:
            question = question_from(request.parts[0], run.layout)
            return Envelope("answered", {"site": self.name, **run.evaluate(question)})
        if request.kind == "answer":
            if not run.replies:
                raise UserError(
                    "answers to single examples do not leave this site; its owner may allow `replies`"
                )
            questions = [question_from(one, run.layout) for one in request.parts]
            judged = [judged_plain(one) for one in run.backend.answer(questions)]
            return Envelope("answered", {"site": self.name, "judged": judged})
        raise UserError(f"the server asks for {request.kind!r}, which this version of fedloom does not know")

    def _begin(self, request: Envelope, digest: bytes) -> Envelope:
        if self._run is None or self._begun != digest:
            self.close()
            self.told("joining a run; the model is loaded")
            self._run, self._begun = self._stack.enter_context(self.open(request)), digest
            self.told("joined")
        assert self._run is not None
        return self._run.joined

    def _clients(self, run: Opened, request: Envelope) -> Envelope:
        asked = [Assignment.from_bytes(one, run.layout) for one in request.parts]
        run.allowed(asked)
        found = (
            run.backend.train(asked, Clock())
            if request.kind == "train"
            else run.backend.measure(asked, str(request.head.get("probe")))
        )
        answers = {answer.client: answer.to_bytes() for answer in found}
        silent = {
            one.client: Missing(one.client, SILENT).to_bytes() for one in asked if one.client not in answers
        }
        parts = tuple({**answers, **silent}[one.client] for one in asked)
        self.told(f"round {request.head.get('round', 0)}: {len(answers)} of {len(asked)} clients answered")
        return Envelope("answered", {"site": self.name, "round": request.head.get("round")}, parts)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """Listen on a Unix socket that only this user can reach; yield it, and its path."""
    with tempfile.TemporaryDirectory(prefix="fedloom-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder) / "site")
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
        yield listener, path


def serve(
    site: ResidentSite, listener: socket.socket, every: Callable[[float], Any], seconds: float = 0.5
) -> None:
    """Answer messages, one after the other, until an exception ends it.

    Args:
        site: Who answers.
        listener: Where connections come in.
        every: Called between messages, about every `seconds`, with the seconds for which there was none.
        seconds: See `every`.
    """
    listener.settimeout(seconds)
    idle = 0.0
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            idle += seconds
            every(idle)
            continue
        idle = 0.0
        with connection, suppress(OSError, EOFError):  # whoever asked has ended; the server asks again
            connection.settimeout(None)
            with connection.makefile("rwb") as stream:
                write_frame(stream, site.answer(read_frame(stream)))
        every(0.0)
