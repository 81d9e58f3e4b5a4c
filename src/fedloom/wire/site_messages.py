"""A message between a server and a site, with the assignments or updates of several clients, and its way through a socket.

    message = magic "FLE1" · checksum of the rest (4 bytes) · head, JSON · parts

Head and parts are preceded by their lengths. The digit of the magic is the version: a site and a server of different
versions refuse each other with a reason. Over a socket, eight bytes with its length precede a message.
"""

from __future__ import annotations

import json
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

MAGIC = b"FLE1"
START = struct.Struct("<4sI")
LENGTH = struct.Struct("<Q")


class Stream(Protocol):
    """A stream of bytes in both directions, such as the file of a socket."""

    def read(self, size: int, /) -> bytes:
        """Read `size` bytes, or fewer at the end."""
        ...

    def write(self, content: bytes, /) -> int:
        """Write bytes."""
        ...

    def flush(self) -> None:
        """Send the written bytes."""
        ...

    def close(self) -> None:
        """Close both directions."""
        ...


@dataclass(frozen=True)
class SiteMessage:
    """A message between a server and a site.

    Attributes:
        kind: The kind of the request or answer.
        head: Values that JSON can hold.
        parts: Messages of `fedloom.wire.messages`, as bytes.
    """

    kind: str
    head: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parts: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        head = json.dumps({"kind": self.kind, **self.head}).encode()
        content = b"".join(LENGTH.pack(len(one)) + one for one in (head, *self.parts))
        return START.pack(MAGIC, zlib.crc32(content)) + content

    @staticmethod
    def from_bytes(content: bytes) -> SiteMessage:
        """Read a message that `to_bytes` wrote.

        Raises:
            ValueError: The bytes are damaged, or from another version.
        """
        if content[:3] != MAGIC[:3] or len(content) < START.size:
            raise ValueError("this is not a message of fedloom")
        magic, checksum = START.unpack_from(content)
        if magic != MAGIC:
            raise ValueError(
                "the message is from another version of fedloom; install the same one at both ends"
            )
        if zlib.crc32(memoryview(content)[START.size :]) != checksum:
            raise ValueError("the message was damaged on its way")
        head, *parts = _parts(content)
        try:
            values = json.loads(head)
        except RecursionError:
            raise ValueError("the head of the message is nested too deeply") from None
        if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
            raise ValueError("the message has no kind")
        return SiteMessage(values.pop("kind"), values, tuple(parts))


def _parts(content: bytes) -> Iterator[bytes]:
    at = START.size
    while at < len(content):
        if at + LENGTH.size > len(content):
            raise ValueError("the message is cut short")
        (size,) = LENGTH.unpack_from(content, at)
        at += LENGTH.size
        if size > len(content) - at:
            raise ValueError("the message is cut short")
        yield content[at : at + size]
        at += size


def send_bytes(stream: Stream | IO[bytes], content: bytes) -> None:
    """Write bytes, preceded by their length."""
    stream.write(LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def receive_bytes(stream: Stream | IO[bytes]) -> bytes:
    """Read bytes that `send_bytes` wrote.

    Raises:
        EOFError: The other side has ended.
    """
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError("the other side has ended")
    (size,) = LENGTH.unpack(head)
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("the other side has ended")
    return content


@contextmanager
def connect_to_socket(path: str) -> Iterator[Stream]:
    """Connect to a process of this machine that listens on a Unix socket; yield the stream."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rwb") as stream:
            yield stream
