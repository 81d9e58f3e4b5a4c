"""Temporary folders whose content moves to its final place by one rename, and which are removed even after a crash.

A process that is killed cannot remove its folder. Each folder holds a file that its process keeps locked. The system
unlocks the file when the process ends, however it ends, and the next process removes folders that are not locked.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedloom.system.file_locks import NO_LINK, OPENED, lock_for_descriptor

LOCK = "lock"


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a temporary folder `.NAME-XXXXXXXX.tmp`, and remove it at the end; leftovers of killed processes are removed too.

    Args:
        parent: The folder above it, which is made if it does not exist. Files can be renamed from the folder into it.
        name: NAME; leftovers with other names stay.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent, name)
    folder, lock = _make_locked(parent, name)
    try:
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = str(parent)  # the error names no file, or one in the folder that is removed
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_leftovers(parent: Path, name: str) -> None:
    """Remove the folders of `temporary_folder` whose processes were killed; folders of living processes stay."""
    pattern = re.compile(rf"\.{re.escape(name)}-[a-z0-9_]{{8}}\.tmp")
    with suppress(OSError):  # a leftover that cannot be listed or removed does no harm
        for left in sorted(parent.iterdir()):
            if pattern.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
                with suppress(OSError):
                    lock = _lock(left)
                    try:
                        shutil.rmtree(left, ignore_errors=True)
                    finally:
                        os.close(lock)


def _make_locked(parent: Path, name: str) -> tuple[Path, int]:
    """Make a folder and lock it; try again where another process removed it as a leftover before it was locked."""
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".tmp", dir=parent))
        except OSError as error:
            error.filename = str(parent)  # the random name means nothing to the user
            raise
        with suppress(FileNotFoundError, BlockingIOError):
            lock = _lock(folder)
            if (folder / LOCK).exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int:
    """Lock a folder, and return the file descriptor that keeps it locked until it is closed.

    Raises:
        BlockingIOError: Another process or thread has locked it.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | NO_LINK | OPENED, 0o600)
    try:
        lock_for_descriptor(lock)
    except BaseException:
        os.close(lock)
        raise
    return lock
