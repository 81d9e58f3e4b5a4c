"""The transport over Flower at the server: a SuperLink that is restarted when it ends, and the app that carries bytes."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedloom.engine.flower_processes import START_SECONDS, Security, last_lines, stop, submit, superlink
from fedloom.engine.site_transport import TransportRestarted
from fedloom.system.errors import UserError
from fedloom.wire.site_messages import SiteMessage, Stream, receive_bytes, send_bytes

MESSAGE_SECONDS = 7 * 24 * 3600.0
"""Seconds for which Flower keeps a message; the deadline of a round is independent of it."""

STARTS = 5
"""Number of attempts in a row to start Flower again before the server gives up."""


@dataclass(frozen=True)
class FlowerReply:
    """The reply to a message; see `fedloom.engine.site_transport.Reply`."""

    message: str
    content: bytes
    error: str | None


class FlowerLink:
    """A transport through a SuperLink, which is started again on the same port if it ends.

    Args:
        port: The SuperLink's port on the loopback device.
        running: Whether somebody else runs it; it is then neither started nor ended here.
        security: How its connections are secured.
        home: Folder of Flower's files.
        path: The Unix socket on which Flower's app reaches this process.
        message: Shows a line of text when Flower is started again.
    """

    def __init__(
        self,
        port: int,
        running: bool,
        security: Security,
        home: Path,
        path: Path,
        message: Callable[[str], None],
    ) -> None:
        self._port, self._security, self._home, self._message = port, security, home, message
        self._running, self._path = running, path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(1.0)
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: Stream | None = None

    def open(self) -> None:
        """Start Flower, and begin a run of its app.

        Raises:
            UserError: Flower does not start, or a SuperLink that should be running does not answer.
        """
        if self._process is not None and self._process.poll() is not None:
            stop(self._process)
            self._process = None
        if self._process is None and not self._running:
            self._process = superlink(self._port, self._security, self._home)
        submit(self._port, self._security, str(self._path), self._home)
        end = time.monotonic() + START_SECONDS
        while True:
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                connection.settimeout(None)
                with connection:  # the stream keeps it open
                    self._stream = connection.makefile("rwb")
                return
            ended = self._process is not None and self._process.poll() is not None
            if self._running and time.monotonic() > end:
                raise UserError(
                    f"--superlink: Flower did not start the run within {START_SECONDS:g} seconds; its SuperLink must run on "
                    "this machine, in an environment with this version of fedloom, and its log has the reason"
                )
            if time.monotonic() > end or ended:
                raise UserError(f"Flower did not start the run{last_lines(self._home / 'superlink.log')}")

    def close(self) -> None:
        """End Flower's processes."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()
        if self._process is not None:
            stop(self._process)
        self._listener.close()

    def nodes(self) -> Mapping[int, str]:
        """See `Transport`."""
        return {int(node): str(name) for node, name in self._ask(SiteMessage("nodes")).head["nodes"]}

    def send(self, node: int, content: bytes, group: str, action: str = "fedloom") -> str | None:
        """See `Transport`; `action` is an action of the site's app."""
        head = {"node": node, "group": group, "seconds": MESSAGE_SECONDS, "action": action}
        return self._ask(SiteMessage("send", head, (content,))).head["id"]

    def collect(self, messages: Sequence[str]) -> Sequence[FlowerReply]:
        """See `Transport`."""
        if not messages:
            return []
        answer = self._ask(SiteMessage("collect", {"ids": list(messages)}))
        return [
            FlowerReply(one["id"], part, one["error"])
            for one, part in zip(answer.head["replies"], answer.parts, strict=True)
        ]

    def _ask(self, request: SiteMessage) -> SiteMessage:
        """Send a request to Flower's app and return the answer; start Flower again if it has ended.

        Raises:
            TransportRestarted: Flower was started again.
            UserError: Flower could not be started again.
        """
        assert self._stream is not None
        try:
            send_bytes(self._stream, request.to_bytes())
            return SiteMessage.from_bytes(receive_bytes(self._stream))
        except (OSError, EOFError) as error:
            self._restart(error)
            raise TransportRestarted from error

    def _restart(self, error: Exception) -> None:
        self._message(f"Flower ended ({error}); it is started again")
        with suppress(OSError):
            if self._stream is not None:
                self._stream.close()
        for attempt in range(STARTS):
            try:
                self.open()
                return
            except UserError:
                if attempt == STARTS - 1:
                    raise
                time.sleep(2.0**attempt)


@contextmanager
def flower_link(
    port: int, security: Security, home: Path, message: Callable[[str], None], *, running: bool = False
) -> Iterator[FlowerLink]:
    """Run Flower while the block runs; see `FlowerLink`."""
    with ExitStack() as stack:
        # Paths of sockets must be short, and that of the run folder may be long.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedloom-"))
        link = FlowerLink(port, running, security, home, Path(folder) / "server", message)
        stack.callback(link.close)
        link.open()
        yield link
