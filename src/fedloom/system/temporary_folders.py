"""Folders to work in whose content appears elsewhere by one rename, and that nothing outlives for long.

A process that is killed cannot remove its folder. Each folder holds a file that its process keeps locked; the system
unlocks it when the process ends, however it ends, and whoever comes next removes what is not locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "lock"


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a folder to work in, `.NAME-XXXXXXXX.tmp`, and remove it in the end, with what killed processes left.

    Args:
        parent: Where; it is made if it does not exist. What is made in the folder can be renamed into it.
        name: NAME, which stands for the work: leftovers of other names stay.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent, name)
    folder, lock = _locked(parent, name)
    try:
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = str(parent)  # a full disk names no file, or one in a folder that is gone by then
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_leftovers(parent: Path, name: str) -> None:
    """Remove the folders of `temporary_folder` whose processes were killed; those of processes that live are left alone."""
    pattern = re.compile(rf"\.{re.escape(name)}-[a-z0-9_]{{8}}\.tmp")
    with suppress(OSError):  # what cannot be listed or removed hinders nobody
        for left in sorted(parent.iterdir()):
            if pattern.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
                with suppress(OSError):
                    lock = _lock(left)
                    try:
                        shutil.rmtree(left, ignore_errors=True)
                    finally:
                        os.close(lock)


def _locked(parent: Path, name: str) -> tuple[Path, int]:
    """Make a folder with its lock, once more where somebody took it for a leftover before it was locked."""
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".tmp", dir=parent))
        except OSError as error:
            error.filename = str(parent)  # nobody knows the other name
            raise
        with suppress(FileNotFoundError, BlockingIOError):
            lock = _lock(folder)
            if (folder / LOCK).exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int:
    """Lock a folder until what is returned is closed.

    Raises:
        BlockingIOError: Somebody else has locked it.
    """
    lock = os.open(
        folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
    )
    try:
        # Unlike lockf, this also keeps threads of one process apart.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock
