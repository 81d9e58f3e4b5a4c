"""SHA-256 of files, cached between runs, so that a file that has not changed is not read again.

The cache holds each file's size, times of change and inode. A file whose values differ is read again. A cache that is
missing, damaged or cannot be written costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic

MOST = 400_000
"""Most files in the cache; those that were not used for the longest time are dropped first."""

LARGEST = 2**28
"""Most bytes of a cache; a larger one is ignored and replaced."""

SETTLED = 2_000_000_000
"""Nanoseconds since the last change of a file before its digest is cached: a second change within the resolution of the
file system's clock would leave the same times."""

Mark = tuple[int, int, int, int]
"""Size in bytes, time of modification and of change in nanoseconds, and inode of a file."""

Remembered = dict[str, tuple[Mark, str]]


def cache_folder() -> Path:
    """Return the folder of values that can be computed again: `$FEDLOOM_CACHE`, else the user's cache folder."""
    folder = os.environ.get("FEDLOOM_CACHE")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedloom"


def file_digest(path: Path, cache: Path | None = None) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits; see `file_digests`."""
    return file_digests([path], cache)[path]


def file_digests(paths: Iterable[Path], cache: Path | None = None) -> dict[Path, str]:
    """Return the SHA-256 of each file's content as 64 hexadecimal digits.

    Args:
        paths: Regular files, or links to them.
        cache: The file of cached digests, which is read once, and replaced once as a whole if a digest is new. Several
            processes may share it; None caches nothing.

    Raises:
        UserError: A file is missing, cannot be read, or is a folder, pipe or device.
    """
    before = {} if cache is None else _read(cache)
    used: Remembered = {}
    digests: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        absolute = os.path.abspath(path)
        try:
            mark = _mark(os.stat(path))
            row = before.get(absolute)
            if row is not None and row[0] == mark:
                digests[path], used[absolute] = row[1], row
                continue
            digests[path], mark = _hash(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
        if mark is not None:
            used[absolute] = mark, digests[path]
    if cache is not None and any(before.get(name) != entry for name, entry in used.items()):
        with suppress(OSError):
            _write(cache, {**{name: entry for name, entry in before.items() if name not in used}, **used})
    return digests


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value as 64 hexadecimal digits, whatever the order of its objects' keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 over digests by name, in the order of their names."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _mark(status: os.stat_result) -> Mark:
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _hash(path: Path) -> tuple[str, Mark | None]:
    """Return a file's digest and its mark; the mark is None where another change might leave it the same."""
    # A pipe that has replaced the file in the meantime must not block.
    with open(
        path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    ) as file:
        start, before = time.time_ns(), _mark(os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = _mark(os.fstat(file.fileno()))
    return digest, after if before == after and start - after[2] > SETTLED else None


def _read(cache: Path) -> Remembered:
    """Read cached digests; the first line is the SHA-256 of the rest, so that damage is noticed."""
    try:
        if _mark(os.stat(cache))[0] > LARGEST:
            return {}
        head, _, body = cache.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != head:
            return {}
        return {path: (tuple(mark), digest) for path, *mark, digest in json.loads(body)}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _write(cache: Path, rows: Remembered) -> None:
    newest = list(rows.items())[-MOST:]
    body = json.dumps([[path, *mark, digest] for path, (mark, digest) in newest]).encode()
    write_atomic(cache, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
