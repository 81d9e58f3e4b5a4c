"""Lock files against other processes; the system unlocks them when the process ends, however it ends.

Windows has no `fcntl`; there, the first byte of a file is locked with `msvcrt`, and so are threads of one process kept apart.
"""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt
else:
    try:
        import fcntl
    except ImportError:  # a system without POSIX: files cannot be locked, and all else works
        fcntl = None

OPENED = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags with which files are opened: a pipe does not make this process wait, other programs do not inherit the file, and
Windows does not change its bytes."""

NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""The flag that refuses to open a link."""


def lock_for_process(number: int) -> None:
    """Lock an open file for this process, but not for forked copies of it.

    Args:
        number: File descriptor of the file, which is locked until a descriptor of it is closed.

    Raises:
        BlockingIOError, PermissionError: Another process has locked it.
    """
    if sys.platform == "win32":
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
    elif fcntl is not None:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_for_descriptor(number: int) -> None:
    """Lock an open file for this descriptor, so that threads of one process are kept apart too.

    Args:
        number: File descriptor of the file, which is locked until it is closed.

    Raises:
        BlockingIOError, PermissionError: It is locked already.
    """
    if sys.platform == "win32":
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
    elif fcntl is not None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
