"""The process of a site: it runs as long as the site takes part, keeps the model, and answers one message at a time.

Flower starts a short process for every message, which passes it on over a Unix socket. So the model, its cache and the
data are loaded once, whatever the number of rounds. An answer is kept until the next message: if its delivery failed,
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
from fedloom.engine.client_order import SILENT
from fedloom.engine.remote_site import answers_to_plain, question_from_bytes
from fedloom.engine.rounds import Backend
from fedloom.params import Layout
from fedloom.system.errors import UserError, client_failure, user_errors
from fedloom.system.timing import Clock
from fedloom.wire.messages import Assignment, Missing
from fedloom.wire.site_messages import SiteMessage, receive_bytes, send_bytes


def allow_all(assignments: Sequence[Assignment]) -> None:
    """Allow any assignments."""


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run in which a site takes part.

    Attributes:
        backend: How its clients train.
        layout: Names and shapes of the exchanged parameters.
        joined: The answer with which the site joins.
        require_allowed: Called with the assignments of clients; raises `UserError` if the site's owner does not allow one.
        replies: Whether answers to single examples may leave.
        evaluate: Scores a model on the site's own held-out part; None if it has none.
        noise: Method → its parts that add noise to what clients report → their arguments.
    """

    backend: Backend
    layout: Layout
    joined: SiteMessage
    require_allowed: Callable[[Sequence[Assignment]], None] = allow_all
    replies: bool = True
    evaluate: Callable[[Question], Mapping[str, Any]] | None = None
    noise: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


Open = Callable[[SiteMessage], AbstractContextManager[OpenRun]]
"""Function (the server's first message) → context of the run; it raises `UserError` to refuse the run."""


@dataclass
class ResidentSite:
    """Answer a server's messages.

    Attributes:
        name: The site's name.
        open: Opens a run.
        log_departure: Called before each answer leaves, with the request, the answer, and the run if there is one.
        message: Shows a line of text.
        over: Whether the server has ended a run.
        refusal: Why the site takes no part in the run, in the words of the site or of the server; None if it does.
    """

    name: str
    open: Open
    log_departure: Callable[[SiteMessage, SiteMessage, OpenRun | None], None]
    message: Callable[[str], None]
    over: bool = False
    refusal: str | None = None
    _run: OpenRun | None = None
    _begun: bytes = b""
    _stack: ExitStack = field(default_factory=ExitStack)
    _last: tuple[bytes, bytes] = (b"", b"")

    def answer(self, content: bytes) -> bytes:
        """Return the answer to a message; errors are answers, too.

        Raises:
            UserError: The answer cannot be written to the list of what left.
        """
        digest = hashlib.sha256(content).digest()
        if self._last[0] == digest:
            return self._last[1]
        try:
            request = SiteMessage.from_bytes(content)
            run = self._run
            answer = self._answer(request, digest)
        except (Exception, SystemExit) as error:
            reason = client_failure(error)
            self.message(f"refused what the server asked: {reason}")
            request, answer = SiteMessage(""), SiteMessage("refused", {"site": self.name, "reason": reason})
            run = None
        with user_errors():  # what cannot be listed does not leave, and the site ends
            self.log_departure(request, answer, self._run or run)
        if answer.kind == "refused":
            return answer.to_bytes()
        reply = answer.to_bytes()
        if answer.kind != "joined":  # that answer is kept while the run is open
            self._last = (digest, reply)
        return reply

    def close(self) -> None:
        """Close the run and release its model."""
        self._run, self._begun, self._last = None, b"", (b"", b"")
        self._stack.close()

    def _answer(self, request: SiteMessage, digest: bytes) -> SiteMessage:
        if request.kind == "begin":
            return self._begin(request, digest)
        if request.kind == "end":
            self.over = True
            self.message("the run is over")
            self.close()
            return SiteMessage("ended", {"site": self.name})
        if request.kind == "refuse":
            self.refusal = str(request.head.get("reason"))
            self.message(f"the server does not take this site: {self.refusal}")
            self.close()
            return SiteMessage("ended", {"site": self.name})
        run = self._run
        if run is None:
            raise UserError("the site has not joined this run; it must be sent the run first")
        if request.kind in ("train", "measure"):
            return self._clients(run, request)
        if request.kind == "evaluate" and run.evaluate is not None:
            question = question_from_bytes(request.parts[0], run.layout)
            return SiteMessage("answered", {"site": self.name, **run.evaluate(question)})
        if request.kind == "answer":
            if not run.replies:
                raise UserError(
                    "answers to single examples do not leave this site; its owner may allow `replies`"
                )
            questions = [question_from_bytes(one, run.layout) for one in request.parts]
            judged = [answers_to_plain(one) for one in run.backend.answer(questions)]
            return SiteMessage("answered", {"site": self.name, "judged": judged})
        raise UserError(f"the server asks for {request.kind!r}, which this version of fedloom does not know")

    def _begin(self, request: SiteMessage, digest: bytes) -> SiteMessage:
        if self._run is None or self._begun != digest:
            self.close()
            self.message("joining a run; the model is loaded")
            try:
                self._run, self._begun = self._stack.enter_context(self.open(request)), digest
            except UserError as error:
                self.refusal = str(error)
                raise
            self.message("joined")
        self.refusal = None
        assert self._run is not None
        return self._run.joined

    def _clients(self, run: OpenRun, request: SiteMessage) -> SiteMessage:
        assignments = [Assignment.from_bytes(one, run.layout) for one in request.parts]
        run.require_allowed(assignments)
        results = (
            run.backend.train(assignments, Clock())
            if request.kind == "train"
            else run.backend.measure(assignments, str(request.head.get("probe")))
        )
        answers = {answer.client: answer.to_bytes() for answer in results}
        silent = {
            one.client: Missing(one.client, SILENT).to_bytes()
            for one in assignments
            if one.client not in answers
        }
        parts = tuple({**answers, **silent}[one.client] for one in assignments)
        self.message(
            f"round {request.head.get('round', 0)}: {len(answers)} of {len(assignments)} clients answered"
        )
        return SiteMessage("answered", {"site": self.name, "round": request.head.get("round")}, parts)


@contextmanager
def listen(place: Path | None = None) -> Iterator[tuple[socket.socket, str]]:
    """Listen on a Unix socket that only this user can reach; yield the socket and its path.

    Args:
        place: Its path; None for one in a temporary folder.

    Raises:
        UserError: The path cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="fedloom-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder) / "site" if place is None else place.absolute())
        before = os.umask(0o177)
        try:
            if place is not None and place.is_socket():  # of a site that was killed
                place.unlink()
            listener.bind(path)
        except OSError as error:
            raise UserError(f"--socket: {path} cannot be used: {error.strerror or error}") from None
        finally:
            os.umask(before)
        listener.listen()
        yield listener, path
        with suppress(OSError):
            os.unlink(path)


def serve(
    site: ResidentSite, listener: socket.socket, every: Callable[[float], Any], seconds: float = 0.5
) -> None:
    """Answer messages, one after the other, until an exception is raised.

    Args:
        site: The site that answers.
        listener: The socket that accepts connections.
        every: Called between messages, about every `seconds`, with the seconds since the last message.
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
        with (
            connection,
            suppress(OSError, EOFError),
        ):  # the asking process has ended; the server sends it again
            connection.settimeout(None)
            with connection.makefile("rwb") as stream:
                send_bytes(stream, site.answer(receive_bytes(stream)))
        every(0.0)
