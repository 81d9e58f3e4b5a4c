"""Lock a run folder, so that no two processes, and no two threads of one, write to it at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedloom.system.errors import UserError
from fedloom.system.file_locks import OPENED, lock_for_process
from fedloom.system.json_files import TEMPORARY
from fedloom.system.manifest import LOCK

_OWN: dict[tuple[int, int, int], object] = {}
"""The folders that this process has locked: its id, and device and inode of the folder. The system's locks keep processes apart,
and not the threads of one; besides, a process loses its lock as soon as one of its threads closes the file again."""


@contextmanager
def open_run_folder(folder: Path) -> Iterator[None]:
    """Create a folder if necessary, lock it, and remove it at the end if nothing was begun in it.

    Raises:
        UserError: Another process is working in it.
    """
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(folder):
            remove_temporary_files(folder)
            yield
    finally:
        with suppress(OSError):
            if created and {file.name for file in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes and threads from working in an existing folder; the lock ends with this process, however it ends.

    Raises:
        UserError: Another process, or another thread of this one, is working in it.
    """
    place, here = os.stat(folder), object()
    key = (os.getpid(), place.st_dev, place.st_ino)
    if _OWN.setdefault(key, here) is not here:  # one step, so that of two threads only one finds its own mark
        raise UserError(_occupied(folder, "another run of this process"))
    try:
        number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | OPENED, 0o666)
        with open(number, "w", encoding="ascii") as file:
            try:
                lock_for_process(file.fileno())
            except (BlockingIOError, PermissionError):
                raise UserError(_occupied(folder, "another process")) from None
            yield
    finally:
        del _OWN[key]


def _occupied(folder: Path, by: str) -> str:
    return f"{folder}: {by} is working in it; wait until it ends, or choose another folder with --out"


def remove_temporary_files(folder: Path) -> None:
    """Remove the unfinished files that a killed process left in a folder, which this process must have locked."""
    for file in filter(is_temporary, [*folder.rglob(".*")]):
        file.unlink()


def is_temporary(file: Path) -> bool:
    """Return whether a file was still being written when its process ended."""
    return TEMPORARY.fullmatch(file.name) is not None and file.is_file()
