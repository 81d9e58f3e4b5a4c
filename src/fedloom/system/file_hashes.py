"""SHA-256 of files, remembered between runs, so that a file that has not changed is not read again.

What is remembered of a file are its size, its times of change and its inode. A file whose values differ from these is
read again. Memory is a convenience: a file of it that is missing, damaged or cannot be written costs time and nothing
else.
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
"""Files that are remembered; the ones that were asked for longest ago are forgotten first."""

LARGEST = 2**28
"""Bytes that a file of remembered digests may have; a larger one is ignored and replaced."""

SETTLED = 2_000_000_000
"""Nanoseconds. The digest of a file that changed less than this ago is not remembered, because a second change may
come within the resolution of the file system's clock and would leave the same times."""

Mark = tuple[int, int, int, int]
"""Size in bytes, time of modification and of change in nanoseconds, and inode of a file."""

Known = dict[str, tuple[Mark, str]]


def cache_folder() -> Path:
    """Return where fedloom keeps what can be computed again: `$FEDLOOM_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("FEDLOOM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedloom"


def file_digest(path: Path, known: Path | None = None) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits; see `file_digests`."""
    return file_digests([path], known)[path]


def file_digests(paths: Iterable[Path], known: Path | None = None) -> dict[Path, str]:
    """Return the SHA-256 of each file's content as 64 hexadecimal digits.

    Args:
        paths: Regular files, or links to some.
        known: Where digests are remembered, a file that is read once and replaced once, as a whole, if there is
            something new. Several processes may share it; None remembers nothing.

    Raises:
        UserError: A file is missing, cannot be read, or is a folder, pipe or device.
    """
    before = {} if known is None else _read(known)
    used: Known = {}
    found: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        place = os.path.abspath(path)
        try:
            mark = _mark(os.stat(path))
            held = before.get(place)
            if held is not None and held[0] == mark:
                found[path], used[place] = held[1], held
                continue
            found[path], mark = _hash(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
        if mark is not None:
            used[place] = mark, found[path]
    if known is not None and any(before.get(place) != row for place, row in used.items()):
        with suppress(OSError):
            _write(known, {**{key: row for key, row in before.items() if key not in used}, **used})
    return found


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value as 64 hexadecimal digits, whatever the order of its objects' keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def combined(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 over digests by name, in the order of their names."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _mark(status: os.stat_result) -> Mark:
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _hash(path: Path) -> tuple[str, Mark | None]:
    """Return a file's digest and its mark, or None where the mark may stay the same through another change."""
    # A pipe that took the file's place since it was looked at must not hold us up.
    with open(
        path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    ) as file:
        start, before = time.time_ns(), _mark(os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = _mark(os.fstat(file.fileno()))
    return digest, after if before == after and start - after[2] > SETTLED else None


def _read(known: Path) -> Known:
    """Read remembered digests; the first line is the SHA-256 of the rest, so that damage is noticed."""
    try:
        if _mark(os.stat(known))[0] > LARGEST:
            return {}
        head, _, body = known.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != head:
            return {}
        return {path: (tuple(mark), digest) for path, *mark, digest in json.loads(body)}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _write(known: Path, rows: Known) -> None:
    newest = list(rows.items())[-MOST:]
    body = json.dumps([[path, *mark, digest] for path, (mark, digest) in newest]).encode()
    write_atomic(known, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
