"""Write files whole or not at all, and read JSON with a clear message for every mistake in it."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedloom.system.errors import UserError, user_message
from fedloom.system.file_locks import OPENED

TEMPORARY = re.compile(r"\..+\.\d+(-\d+)?\.tmp", re.DOTALL)
"""Names of files that are being written; see `write_atomic`. Version 0.1 wrote the shorter ones."""

LARGEST = 2**30
"""Most bytes of a file that is read; the files of a run are much smaller."""

KINDS = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}
"""Names of JSON's types in messages."""

_NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def write_atomic(path: Path, content: bytes | Iterable[bytes], root: Path | None = None) -> None:
    """Write a file under a temporary name, sync it, rename it, and sync the folder.

    The temporary name belongs to this thread: several threads may write the same file at once, and the last one stays.

    Args:
        path: The file. Missing folders above it are made.
        content: Its bytes, whole or in pieces, of which one at a time is held.
        root: A folder above the file that must exist; None makes all folders.

    Raises:
        UserError: `root` no longer exists.
        IsADirectoryError: The file is a folder.
    """
    refuse_folder(path)
    if root is not None and not root.is_dir():
        raise UserError(f"{root} was removed while it was being written to")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            # The error of a full disk names no file.
            error.filename, error.filename2 = str(path), None
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def refuse_folder(path: Path) -> None:
    """Raise `IsADirectoryError` for a folder, such as `.`, where a file is to be written."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that every parser reads: numbers that are not finite become null.

    Example:
        >>> to_json({"loss": float("nan"), "steps": 3})
        '{"loss": null, "steps": 3}'
    """
    return json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any, root: Path | None = None) -> None:
    """Write a value as indented JSON, whole or not at all; numbers that are not finite become null.

    See `write_atomic` for `root`.
    """
    write_atomic(path, (to_json(value, 2) + "\n").encode(), root)


def read_text(path: Path, largest: int = LARGEST) -> str:
    """Read a file as UTF-8 text, without waiting for a pipe or a device.

    Args:
        path: The file.
        largest: The most bytes that it may have.

    Raises:
        UserError: It cannot be read, is not UTF-8, is too large, or is a pipe, a device or a folder.
        FileNotFoundError: It is missing.
    """
    try:
        content = _content(path, largest)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(user_message(error) or str(error)) from None
    if len(content) > largest:
        raise UserError(f"{path} is larger than {largest:,} bytes; no file of this kind is so large")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text") from None


def _content(path: Path, largest: int) -> bytes:
    """Read a file; of one that is too large, only the first `largest` + 1 bytes."""
    number = os.open(path, os.O_RDONLY | OPENED)
    try:
        if kind := _NO_FILES.get(stat.S_IFMT(os.fstat(number).st_mode)):
            raise UserError(f"{path} is {kind}; a file is needed")
        with open(number, "rb", closefd=False) as file:
            return file.read(largest + 1)
    finally:
        os.close(number)


def parse_object(path: Path, text: str, line: int = 1) -> dict[str, Any]:
    """Parse a text that is one JSON object.

    Args:
        path: The file that contains the text, for messages.
        text: The JSON.
        line: The line of the file at which the text begins, from 1.

    Raises:
        UserError: It is not JSON, or no object; the message has the place.
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
    """Read a file that holds one JSON object; every JSON file of a run is read by this function.

    Args:
        path: The file.
        keys: Required key → type of its value: dict, list, str, int or float.

    Raises:
        UserError: It is missing, unreadable, not UTF-8, not JSON, no object, or lacks a key.
    """
    try:
        value = parse_object(path, read_text(path))
    except FileNotFoundError as error:
        raise UserError(user_message(error) or str(error)) from None
    for key, kind in (keys or {}).items():
        require_key(path, value, key, kind)
    return value


def require_key(place: Path | str, value: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return the value of a required key.

    Raises:
        UserError: The key is missing, or its value is of another type.
    """
    result = value.get(key)
    if not isinstance(result, kind) or (kind is int and isinstance(result, bool)):
        raise UserError(f'{place}: key "{key}" is missing or is not {KINDS[kind]}')
    return result
