"""Do something in a copy of this process, which is killed where it renames a file into place."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable


def killed_at(work: Callable[[], object], dies: Callable[[int, str], bool], after: bool = False) -> bool:
    """Return whether a copy of this process was killed while it did something.

    Args:
        work: What it does.
        dies: Whether it dies at a call of os.replace, from the call's number, counted from 1, and its target.
        after: Whether it dies after the call instead of before it.
    """
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    real, calls = os.replace, itertools.count(1)

    def replace(source: str, target: str) -> None:
        now = dies(next(calls), str(target))
        if now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        os.replace = replace
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)  # it was not killed
