"""The log of a run: an append-only file of JSON lines, each with a digest that covers all lines before it.

The last line's digest, the head of the log, stands for the whole log. Whoever keeps it elsewhere can prove later that the
lines up to it were not rewritten; see `position_of_head`. Without a kept head, or a manifest with the file's digest, a log
whose digests were all computed anew cannot be told from an original.

Logs that version 0.2 and earlier began have a CRC-32 in each line. They are read, checked and continued in the same way, but
a CRC-32 is made for accidents: such a log has no head.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.system.errors import UserError
from fedloom.system.json_files import parse_object, to_json, write_atomic


@dataclass(frozen=True)
class _Chain:
    """How the lines of a log are chained.

    Attributes:
        key: The last key of a line, under which its checksum is.
        digits: Number of hexadecimal digits of a checksum.
        checksum: Content → its checksum.
    """

    key: str
    digits: int
    checksum: Callable[[bytes], bytes]

    @property
    def mark(self) -> bytes:
        """The bytes between the values of a line and its checksum."""
        return f', "{self.key}": "'.encode()

    def of(self, line: bytes) -> bytes:
        """Return the checksum of a whole line, which the next line's checksum covers."""
        return line[-2 - self.digits : -2]

    def is_intact(self, line: bytes, before: bytes) -> bool:
        """Return whether a line without its newline is undamaged and follows a line with the checksum `before`."""
        return line == self.line(line[: line.rfind(self.mark)] + b"}", before)

    def line(self, text: bytes, before: bytes) -> bytes:
        """Return the text of a JSON object with its checksum as the last value."""
        return text[:-1] + self.mark + self.checksum(before + text) + b'"}'


_SHA256 = _Chain("line_sha256", 64, lambda content: hashlib.sha256(content).hexdigest().encode())
_CRC32 = _Chain("crc32", 8, lambda content: b"%08x" % zlib.crc32(content))
"""The chain of logs that version 0.2 and earlier began."""

CHECKS = (_SHA256.key, _CRC32.key)
"""The keys under which a line holds its checksum."""

Follower = Callable[[Mapping[str, Any]], None]
"""A function that is called with each line of a run's log: its "kind" ("start", "round", "evaluation", "end" …) and its values."""


class RunLog:
    """The log of a run: one JSON object a line, only ever appended to.

    The last key of a line, `line_sha256`, is the SHA-256 of the digest of the line before and of the line without it, so
    that a missing, repeated or moved line is noticed too. A line cut short by a crash is dropped when the file
    is opened again; whole lines are never changed. Lines are synced, so a checkpoint never outlives the line before it.

    Args:
        path: The file, which is made if it does not exist.
        follow: Called with each new line after it was written.

    Raises:
        UserError: A line is damaged.
    """

    def __init__(self, path: Path, follow: Follower | None = None) -> None:
        self.path, self._follow = path, follow
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            content = path.read_bytes()
            whole, last = content[: (cut := content.rfind(b"\n") + 1)], content[cut:]
            chain = _chain_of(content)
            # A whole last line lacks only its newline, or has a damaged character in place of it.
            before = chain.of(whole[:-1])
            repaired = next(
                (line + b"\n" for line in (last, last[:-1]) if chain.is_intact(line, before)), b""
            )
            if last:
                write_atomic(path, whole + repaired)
        else:
            path.touch()
        self._chain, self._last = _chain_of(path.read_bytes()), b""
        for _, line in _checked_lines(path):
            self._last = self._chain.of(line)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def append(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add one line `{"kind": kind, …}` and flush it to the operating system.

        Raises:
            UserError: The file was removed since it was opened.
        """
        text = to_json({"kind": kind, **values})
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)  # without O_CREAT
        except FileNotFoundError:
            raise UserError(f"{self.path.parent} was removed while it was being written to") from None
        line = self._chain.line(text.encode(), self._last)
        with open(descriptor, "ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(descriptor)
        self._last = self._chain.of(line)
        if self._follow is not None:
            self._follow({"kind": kind, **values})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from (line for _, line in read_lines(self.path))


def require_length(path: Path, length: int) -> None:
    """Check that a log has not lost lines that a checkpoint relies on.

    Raises:
        UserError: The log has fewer bytes than `length`.
    """
    if (size := path.stat().st_size) < length:
        raise UserError(
            f"{path} is damaged: it has {size:,} bytes, but the run's checkpoints expect {length:,}; run it again from "
            "the start with --rerun"
        )


def read_lines(path: Path, *, checked: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the content of each line of a log, without its checksum.

    Args:
        path: The log.
        checked: Whether every line must have a checksum; lines of version 0.1 have none. An incomplete last line was
            cut short by a crash, and is skipped.

    Raises:
        UserError: A line is damaged, or is no JSON object.
    """
    for number, line in _checked_lines(path, checked):
        try:
            value = parse_object(path, line.decode(), number)
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: not UTF-8 text") from None
        for key in CHECKS:
            value.pop(key, None)
        yield number, value


def head_of(path: Path) -> str | None:
    """Return the head of a log, the digest of its last line; None for an empty log and one that is chained by CRC-32.

    Raises:
        UserError: A line is damaged.
    """
    digests = _digests(path)
    return digests[-1] if digests else None


def position_of_head(path: Path, head: str) -> tuple[int, int]:
    """Return the number of the line whose digest was the head of a log when it was kept, and the number of lines today.

    Args:
        path: The log.
        head: What `head_of` returned.

    Raises:
        UserError: A line is damaged; or no line has this digest, as the log was rewritten or cut since.
    """
    digests = _digests(path)
    if digests is None:
        raise UserError(
            f"{path} was begun by an earlier version, which chained lines by CRC-32: it has no head"
        )
    if head not in digests:
        raise UserError(
            f"{path} is not the log with the head {head}: it was rewritten or cut since, or it is another run's"
        )
    return digests.index(head) + 1, len(digests)


def _digests(path: Path) -> list[str] | None:
    """Return the digest of each line of a log, or None if it is chained by CRC-32."""
    chain = _chain_of(path.read_bytes())
    digests = [chain.of(line).decode() for _, line in _checked_lines(path)]
    return digests if chain is _SHA256 else None


def _chain_of(content: bytes) -> _Chain:
    """Return how the lines of a log are chained: a log keeps what its first line began with."""
    first = content[: content.find(b"\n") + 1].rstrip() or content
    return _CRC32 if _CRC32.mark in first[-32:] else _SHA256


def _checked_lines(path: Path, checked: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line; see `read_lines`."""
    content, before = path.read_bytes(), b""
    chain = _chain_of(content)
    # A file is split at newlines only; str.splitlines also splits at U+2028 and others inside texts.
    *lines, last = content.split(b"\n")
    if last and not (checked and not chain.is_intact(last, chain.of(lines[-1]) if lines else b"")):
        lines.append(last)  # else it was cut short by a crash, and is dropped when the run continues
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if (checked or chain.mark in line) and not chain.is_intact(line, before):
            raise UserError(
                f"{path}, line {number}: damaged, or lines before it are missing: the checksum does not match; run it "
                "again with --rerun"
            )
        before = chain.of(line)
        yield number, line
