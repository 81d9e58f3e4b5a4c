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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedloom.engine.envelope import Envelope, read_frame, write_frame
from fedloom.engine.ordering import SILENT
from fedloom.engine.remote import judged_plain, question_from
from fedloom.engine.rounds import Backend
from fedloom.failures import client_failure
from fedloom.messages import Assignment, Missing
from fedloom.params import Layout
from fedloom.record import Clock
from fedloom.types import UserError


@dataclass(frozen=True, eq=False)
class Opened:
    """A run that a site takes part in.

    Attributes:
        backend: How its clients train.
        layout: Names and shapes of what is exchanged.
        joined: What the server is sent when the site joins.
    """

    backend: Backend
    layout: Layout
    joined: Envelope


Open = Callable[[Envelope], AbstractContextManager[Opened]]
"""(the server's first message) → the run, for as long as it is open; it raises `UserError` to refuse it."""


@dataclass
class ResidentSite:
    """Answer a server's messages.

    Attributes:
        name: The site's name.
        open: How a run is opened.
        allowed: Called with every request before it is answered; it raises `UserError` to refuse it.
        left: Called with every request and answer before it leaves.
        told: Called with a sentence about what happens.
    """

    name: str
    open: Open
    allowed: Callable[[Envelope, Opened | None], None]
    left: Callable[[Envelope, Envelope], None]
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
            self.allowed(request, self._run)
            answer = self._answer(request, digest)
            self.left(request, answer)
        except (Exception, SystemExit) as error:
            reason = client_failure(error)
            self.told(f"refused what the server asked: {reason}")
            return Envelope("refused", {"site": self.name, "reason": reason}).to_bytes()
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
        if request.kind == "answer":
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
