"""Kill a run at many points or fill its disk, resume it, and compare the result with that of an undisturbed run."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from campaign.world import World, outcome

POINTS = ("replace", "fsync", "open", "unlink", "mkdir")
"""Calls of the operating system before which a run may be killed; a kill between two of them changes no file."""

FULL = {errno.ENOSPC}


def calls(world: World, out: Path) -> int:
    """Count the calls of `POINTS` in an undisturbed run."""
    read, write = os.pipe()

    def work() -> None:
        count = [0]
        patched(lambda: count.__setitem__(0, count[0] + 1))
        world.run(out)
        os.write(write, str(count[0]).encode())

    assert _child(work) == 0, "the undisturbed run failed"
    os.close(write)
    with open(read) as pipe:
        return int(pipe.read())


def kills(world: World, folder: Path, count: int, seed: int) -> dict[str, list[str]]:
    """Kill a run or fill its disk `count` times.

    Two thirds of the faults are kills before a call, a sixth are second kills while the run resumes after the first, a
    sixth are full disks.

    Returns:
        Kind of fault → for each fault "same", or the failure.
    """
    rng = np.random.default_rng(seed)
    number, wanted = calls(world, folder / "whole"), outcome(folder / "whole")
    points = np.linspace(1, number, count).astype(int)
    outcomes: dict[str, list[str]] = {"kill": [], "two kills": [], "full disk": []}
    for place, point in enumerate(points):
        kind = "full disk" if place % 6 == 1 else "two kills" if place % 6 == 4 else "kill"
        out = folder / f"run-{place}"
        fault = _full_at(int(point)) if kind == "full disk" else kill_at(int(point))
        _disturbed(world.run, out, fault)
        if kind == "two kills":
            _disturbed(world.go_on, out, kill_at(int(rng.integers(1, number))))
        outcomes[kind].append(_ended(world, out, wanted) or f"at call {point}")
    return outcomes


def _ended(world: World, out: Path, wanted: dict[str, Any]) -> str:
    """Resume in a new process; return "same", or the difference."""
    code = _child(lambda: world.go_on(out))
    if code:
        return f"going on failed with exit code {code}"
    got = outcome(out)
    odd = [key for key in wanted if got.get(key) != wanted[key]]
    return f"different: {', '.join(odd)}" if odd else "same"


def _disturbed(work: Callable[[Path], None], out: Path, fault: Callable[[], Callable[[], None]]) -> None:
    def working() -> None:
        patched(fault())
        work(out)

    _child(working, quiet=True)


def kill_at(point: int) -> Callable[[], Callable[[], None]]:
    def fault() -> Callable[[], None]:
        left = [point]

        def called() -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        return called

    return fault


def _full_at(point: int) -> Callable[[], Callable[[], None]]:
    def fault() -> Callable[[], None]:
        left = [point]

        def called() -> None:
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return called

    return fault


def patched(called: Callable[[], None]) -> None:
    """Call a function before each call of the operating system; only for a process that ends soon."""

    def before(real: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def patched(*arguments: Any, **named: Any) -> Any:
            if writes(*arguments):
                called()
            return real(*arguments, **named)

        return patched

    def opened_to_write(path: Any, flags: int = 0, *rest: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    for name in POINTS:
        setattr(os, name, before(getattr(os, name), opened_to_write if name == "open" else lambda *_: True))


def _child(work: Callable[[], None], *, quiet: bool = False) -> int:
    """Call a function in a forked process; return its exit code, negative for a signal."""
    pid = os.fork()
    if not pid:
        _work(work, quiet)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _work(work: Callable[[], None], quiet: bool) -> NoReturn:
    code = 1
    try:
        if quiet:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        code = 0
    except BaseException:
        if not quiet:
            traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(code)
