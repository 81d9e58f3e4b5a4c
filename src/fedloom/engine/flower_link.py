"""The server's end of Flower: a SuperLink that is kept running, and the app beside it through which bytes go."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedloom.engine.envelope import Envelope, Stream, read_frame, write_frame
from fedloom.engine.flower_processes import PATIENCE, Security, last_lines, stop, submit, superlink
from fedloom.engine.post import Renewed
from fedloom.types import UserError

LIFE = 7 * 24 * 3600.0
"""Seconds for which Flower keeps a message; how long a round waits is decided by its deadline."""

STARTS = 5
"""Times in a row that Flower is started again before the server gives up."""


@dataclass(frozen=True)
class FlowerReply:
    """What came back for a message; see `fedloom.engine.post.Reply`."""

    message: str
    content: bytes
    error: str | None


class FlowerLink:
    """Carry messages through a SuperLink; one that ends is started again on the same port.

    Args:
        port: The SuperLink's port on the loopback device.
        security: How its connections are secured.
        home: Folder of Flower's files.
        path: The Unix socket on which Flower's app reaches this process.
        noted: Called with a sentence when Flower is started again.
    """

    def __init__(
        self, port: int, security: Security, home: Path, path: Path, noted: Callable[[str], None]
    ) -> None:
        self._port, self._security, self._home, self._noted = port, security, home, noted
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(1.0)
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: Stream | None = None

    def open(self) -> None:
        """Start Flower, and begin a run at it.

        Raises:
            UserError: It does not start.
        """
        if self._process is not None and self._process.poll() is not None:
            stop(self._process)
            self._process = None
        if self._process is None:
            self._process = superlink(self._port, self._security, self._home)
        submit(self._port, self._security, str(self._path), self._home)
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                connection.settimeout(None)
                with connection:  # the stream keeps it open
                    self._stream = connection.makefile("rwb")
                return
            if time.monotonic() > end or self._process.poll() is not None:
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
        """See `Post`."""
        return {int(node): str(name) for node, name in self._ask(Envelope("nodes")).head["nodes"]}

    def send(self, node: int, content: bytes, group: str, action: str = "fedloom") -> str | None:
        """See `Post`; `action` is one of the site's app."""
        head = {"node": node, "group": group, "seconds": LIFE, "action": action}
        return self._ask(Envelope("send", head, (content,))).head["id"]

    def collect(self, messages: Sequence[str]) -> Sequence[FlowerReply]:
        """See `Post`."""
        if not messages:
            return []
        found = self._ask(Envelope("collect", {"ids": list(messages)}))
        return [
            FlowerReply(one["id"], part, one["error"])
            for one, part in zip(found.head["replies"], found.parts, strict=True)
        ]

    def _ask(self, request: Envelope) -> Envelope:
        """Ask Flower's app for something; where it has ended, begin anew.

        Raises:
            Renewed: It was begun anew.
            UserError: It could not be.
        """
        assert self._stream is not None
        try:
            write_frame(self._stream, request.to_bytes())
            return Envelope.from_bytes(read_frame(self._stream))
        except (OSError, EOFError) as error:
            self._again(error)
            raise Renewed from error

    def _again(self, error: Exception) -> None:
        self._noted(f"Flower ended ({error}); it is started again")
        with suppress(OSError):
            if self._stream is not None:
                self._stream.close()
        for attempt in range(STARTS):
            try:
                self.open()
                return
            except (UserError, subprocess.TimeoutExpired):
                if attempt == STARTS - 1:
                    raise
                time.sleep(2.0**attempt)


@contextmanager
def flower_link(
    port: int, security: Security, home: Path, noted: Callable[[str], None]
) -> Iterator[FlowerLink]:
    """Run Flower for as long as the block lasts; see `FlowerLink`."""
    with ExitStack() as stack:
        # Paths of sockets are short: the run folder's may not be.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedloom-"))
        link = FlowerLink(port, security, home, Path(folder) / "server", noted)
        stack.callback(link.close)
        link.open()
        yield link
