"""What a run wrote down: an append-only file of JSON lines, files that appear whole or not at all, and where time went."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedloom.failures import explained
from fedloom.types import UserError

CHECK = "crc32"
"""The key of a record's line that holds the checksum of the rest of it and of the checksum of the line before."""

_MARK = f', "{CHECK}": "'.encode()

TEMPORARY = re.compile(r"\..+\.\d+(-\d+)?\.tmp", re.DOTALL)
"""Names of files that are being written; see `write_atomic`. Version 0.1 used the shorter ones."""

LARGEST = 2**30
"""Bytes of a file of a run that is still read; none is written that comes near it."""

KINDS = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}
"""What values of JSON are called in messages."""

_NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class Clock:
    """Where time goes: every stretch of it belongs to the name it ended under, so the names add up to the whole.

    Example:
        >>> clock = Clock()
        >>> clock.lap("forward")
        >>> list(clock.seconds)
        ['forward']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def skip(self) -> None:
        """Begin the next stretch now: the time since the last lap is counted elsewhere."""
        self._last = time.perf_counter()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count time by name that was measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Return seconds by name since the last `take`, and start afresh."""
        taken, self.seconds = self.seconds, {}
        self._last = time.perf_counter()
        return taken


def write_atomic(path: Path, content: bytes, root: Path | None = None) -> None:
    """Write a file under a temporary name, sync it, rename it, and sync the folder.

    The temporary name is this thread's own: several may write the same file at once, and the last one stays.

    Args:
        path: The file. Folders above it that are missing are made.
        content: What it holds.
        root: A folder above the file that must be there already; None makes all folders.

    Raises:
        UserError: `root` is not there any more.
    """
    if root is not None and not root.is_dir():
        raise UserError(f"{root} was removed while it was being written to")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            # A full disk does not say whose bytes did not fit.
            error.filename, error.filename2 = str(path), None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that every parser reads: figures that are not finite become null.

    Example:
        >>> to_json({"loss": float("nan"), "steps": 3})
        '{"loss": null, "steps": 3}'
    """
    return json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any, root: Path | None = None) -> None:
    """Write a value as indented JSON, whole or not at all; figures that are not finite become null.

    See `write_atomic` for `root`.
    """
    write_atomic(path, (to_json(value, 2) + "\n").encode(), root)


def read_text(path: Path, largest: int = LARGEST) -> str:
    """Read a file as UTF-8 text; never waits for what is no file.

    Args:
        path: The file.
        largest: Bytes that it may have.

    Raises:
        UserError: It cannot be read, is not UTF-8, too large, or a pipe, a device or a folder.
        FileNotFoundError: It is missing.
    """
    try:
        content = _content(path, largest)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(explained(error) or str(error)) from None
    if len(content) > largest:
        raise UserError(f"{path} is larger than {largest:,} bytes, which no such file is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text") from None


def _content(path: Path, largest: int) -> bytes:
    """Read the first bytes of a file, one more than are wanted where there are more."""
    # Without O_NONBLOCK, opening a pipe waits until somebody writes into it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if kind := _NO_FILES.get(stat.S_IFMT(os.fstat(number).st_mode)):
            raise UserError(f"{path} is {kind}; a file is needed")
        with open(number, "rb", closefd=False) as file:
            return file.read(largest + 1)
    finally:
        os.close(number)


def parse_object(path: Path, text: str, line: int = 1) -> dict[str, Any]:
    """Read text that is one JSON object.

    Args:
        path: The file that the text is from, for messages.
        text: The JSON.
        line: Where in the file it begins.

    Raises:
        UserError: It is not JSON, or no object; with the place.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{place}: not JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise UserError(f"{path}, line {line}: {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}, line {line}: expected a JSON object")
    return value


def read_json(path: Path, keys: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Read a file that holds one JSON object: the door through which every JSON file of a run comes back.

    Args:
        path: The file.
        keys: Keys that must be there, and what each must be: dict, list, str or int.

    Raises:
        UserError: It is missing, unreadable, not UTF-8, not JSON, no object, or lacks a key.
    """
    try:
        value = parse_object(path, read_text(path))
    except FileNotFoundError as error:
        raise UserError(explained(error) or str(error)) from None
    for key, kind in (keys or {}).items():
        expect(path, value, key, kind)
    return value


def expect(place: Path | str, value: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return the value of a key, which must be there and of a kind.

    Raises:
        UserError: It is not.
    """
    found = value.get(key)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise UserError(f'{place}: key "{key}" is missing or is not {KINDS[kind]}')
    return found


class Record:
    """The run's log: one JSON object a line, only ever appended to.

    The last key of a line, `crc32`, is the checksum of the checksum of the line before and of the line without it, so
    that a line that is missing, repeated or moved is noticed too. A line cut short by a crash is dropped when the file
    is opened again; whole lines are never changed. Lines are synced: a checkpoint that follows one never outlives it.

    Raises:
        UserError: A line is not as it was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            content = path.read_bytes()
            whole, last = content[: (cut := content.rfind(b"\n") + 1)], content[cut:]
            # A last line that is whole lacks its end only, which may also be a damaged character.
            before = _link(whole[:-1])
            kept = next((line + b"\n" for line in (last, last[:-1]) if _whole(line, before)), b"")
            if last:
                write_atomic(path, whole + kept)
        else:
            path.touch()
        self._last = b""
        for _, line in _checked(path):
            self._last = _link(line)

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
            place = os.open(self.path, os.O_WRONLY | os.O_APPEND)  # without O_CREAT
        except FileNotFoundError:
            raise UserError(f"{self.path.parent} was removed while it was being written to") from None
        line = _sealed(text.encode(), self._last)
        with open(place, "ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(place)
        self._last = _link(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from (line for _, line in read_lines(self.path))


def require_length(path: Path, length: int) -> None:
    """Check that a record has not lost lines that something else relies on.

    Raises:
        UserError: It has fewer bytes than `length`.
    """
    if (found := path.stat().st_size) < length:
        raise UserError(
            f"{path} is damaged: it has {found:,} bytes, but the run's checkpoints expect {length:,}; run it again from "
            "the start with --rerun"
        )


def read_lines(path: Path, *, checked: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the content of each line of a record, without its checksum.

    Args:
        path: The record.
        checked: Whether every line must have a checksum; lines of version 0.1 have none. A last line without its end
            that is not whole was cut short by a crash, and is passed over.

    Raises:
        UserError: A line is not as it was written, or is no JSON object.
    """
    for number, line in _checked(path, checked):
        try:
            value = parse_object(path, line.decode(), number)
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: not UTF-8 text") from None
        value.pop(CHECK, None)
        yield number, value


def _checked(path: Path, checked: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each line and what it holds; see `read_lines`."""
    before = b""
    # A file is split at newlines only; str.splitlines also splits at U+2028 and others inside texts.
    *lines, last = path.read_bytes().split(b"\n")
    if last and not (checked and not _whole(last, _link(lines[-1]) if lines else b"")):
        lines.append(last)  # else it was cut short by a crash, and is dropped when the run goes on
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if (checked or _MARK in line) and not _whole(line, before):
            raise UserError(
                f"{path}, line {number}: damaged, or lines before it are missing: the checksum does not match; run it "
                "again with --rerun"
            )
        before = _link(line)
        yield number, line


def _link(line: bytes) -> bytes:
    """Return the checksum in a whole line, which the next line's checksum covers."""
    return line[-10:-2]


def _whole(line: bytes, before: bytes) -> bool:
    """Return whether a line without its end is as it was written after a line with the checksum `before`."""
    return line == _sealed(line[: line.rfind(_MARK)] + b"}", before)


def _sealed(text: bytes, before: bytes) -> bytes:
    """Put the checksum of a JSON object into it as its last value."""
    return text[:-1] + _MARK + b"%08x" % zlib.crc32(before + text) + b'"}'
