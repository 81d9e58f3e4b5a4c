"""A whole message between a server and a site: its kind, a few plain values, and messages of `fedloom.messages`.

    envelope = magic "FLE1" · checksum of what follows (4 bytes) · head, JSON · parts

Head and parts have their lengths before them. The digit of the magic is the version: a site and a server of different
versions refuse each other with a reason. Over a socket, eight bytes with its length go before an envelope.
"""

from __future__ import annotations

import json
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

MAGIC = b"FLE1"
START = struct.Struct("<4sI")
LENGTH = struct.Struct("<Q")


class Stream(Protocol):
    """Two ways of bytes, as a socket's file has them."""

    def read(self, size: int, /) -> bytes:
        """Read so many bytes, or fewer at the end."""
        ...

    def write(self, content: bytes, /) -> int:
        """Write bytes."""
        ...

    def flush(self) -> None:
        """Send what was written."""
        ...

    def close(self) -> None:
        """Close both ways."""
        ...


@dataclass(frozen=True)
class Envelope:
    """A message as a whole.

    Attributes:
        kind: What is asked, or what the answer is.
        head: Plain values, as JSON has them.
        parts: Messages of `fedloom.messages`, as bytes.
    """

    kind: str
    head: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parts: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """Write the envelope as bytes."""
        head = json.dumps({"kind": self.kind, **self.head}).encode()
        content = b"".join(LENGTH.pack(len(one)) + one for one in (head, *self.parts))
        return START.pack(MAGIC, zlib.crc32(content)) + content

    @staticmethod
    def from_bytes(content: bytes) -> Envelope:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: The bytes are damaged, or from another version.
        """
        if content[:3] != MAGIC[:3] or len(content) < START.size:
            raise ValueError("this is no message of fedloom")
        magic, checksum = START.unpack_from(content)
        if magic != MAGIC:
            raise ValueError(
                "the message is from another version of fedloom; install the same one at both ends"
            )
        if zlib.crc32(memoryview(content)[START.size :]) != checksum:
            raise ValueError("the message was damaged on its way")
        head, *parts = _parts(content)
        values = json.loads(head)
        if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
            raise ValueError("the message has no kind")
        return Envelope(values.pop("kind"), values, tuple(parts))


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


def write_frame(stream: Stream, content: bytes) -> None:
    """Write bytes with their length before them."""
    stream.write(LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def read_frame(stream: Stream) -> bytes:
    """Read what `write_frame` wrote.

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
def connected(path: str) -> Iterator[Stream]:
    """Connect to a process of this machine that listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rwb") as stream:
            yield stream
