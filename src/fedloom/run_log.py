"""The log of a run: an append-only file of JSON lines, each with a checksum that covers the line before it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedloom.system.errors import UserError
from fedloom.system.json_files import parse_object, to_json, write_atomic

CHECK = "crc32"
"""The key under which a line holds the checksum of the rest of it and of the checksum of the line before."""

_MARK = f', "{CHECK}": "'.encode()


Follower = Callable[[Mapping[str, Any]], None]
"""A function that is called with each line of a run's log: its "kind" ("start", "round", "evaluation", "end" …) and its values."""


class RunLog:
    """The log of a run: one JSON object a line, only ever appended to.

    The last key of a line, `crc32`, is the checksum of the line without it and of the checksum of the line before, so
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
            # A whole last line lacks only its newline, or has a damaged character in place of it.
            before = _checksum_of(whole[:-1])
            repaired = next((line + b"\n" for line in (last, last[:-1]) if _is_intact(line, before)), b"")
            if last:
                write_atomic(path, whole + repaired)
        else:
            path.touch()
        self._last = b""
        for _, line in _checked_lines(path):
            self._last = _checksum_of(line)

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
        line = _with_checksum(text.encode(), self._last)
        with open(descriptor, "ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(descriptor)
        self._last = _checksum_of(line)
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
        value.pop(CHECK, None)
        yield number, value


def _checked_lines(path: Path, checked: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line; see `read_lines`."""
    before = b""
    # A file is split at newlines only; str.splitlines also splits at U+2028 and others inside texts.
    *lines, last = path.read_bytes().split(b"\n")
    if last and not (checked and not _is_intact(last, _checksum_of(lines[-1]) if lines else b"")):
        lines.append(last)  # else it was cut short by a crash, and is dropped when the run continues
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if (checked or _MARK in line) and not _is_intact(line, before):
            raise UserError(
                f"{path}, line {number}: damaged, or lines before it are missing: the checksum does not match; run it "
                "again with --rerun"
            )
        before = _checksum_of(line)
        yield number, line


def _checksum_of(line: bytes) -> bytes:
    """Return the checksum of a whole line, which the next line's checksum covers."""
    return line[-10:-2]


def _is_intact(line: bytes, before: bytes) -> bool:
    """Return whether a line without its newline is undamaged and follows a line with the checksum `before`."""
    return line == _with_checksum(line[: line.rfind(_MARK)] + b"}", before)


def _with_checksum(text: bytes, before: bytes) -> bytes:
    """Return the text of a JSON object with its checksum as the last value."""
    return text[:-1] + _MARK + b"%08x" % zlib.crc32(before + text) + b'"}'
