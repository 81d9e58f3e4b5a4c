"""Work in several processes, each a copy of this one made when the work is known: only what they find travels.

A copy shares the memory of its original until either writes to it, so models and data are there without being
loaded or sent. Linux only, and not once an accelerator is in use, which no copy can share.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import selectors
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NoReturn, TypeVar

import torch

from fedloom.system.errors import UserError, explained, sentence
from fedloom.system.signals import deferred, ignored

T = TypeVar("T")

Part = Callable[[], Iterator[bytes]]
"""One process's work: what it yields is sent to the original."""

FRAME = struct.Struct("<BQ")
"""Kind of a message, and its bytes."""
MESSAGE, FAILURE, END = 0, 1, 2
PIPE = 2**20
"""Bytes that may wait between two processes."""
_FEWER = "try --set engine.workers=1, and a sweep without --jobs"
DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of prctl."""


def can_fork() -> bool:
    """Return whether this process can be copied: on Linux, and as long as it uses no accelerator."""
    return sys.platform == "linux" and not torch.cuda.is_initialized()


def threads_each(processes: int) -> int:
    """Return how many of this process's threads each of several copies of it has, at least one."""
    return max(1, torch.get_num_threads() // processes)


Lost = Callable[[int, str], None]
"""Takes the number of a part that will not end, and why: "was killed (SIGKILL)"."""


def forked(
    parts: Sequence[Part], threads: int, lost: Lost | None = None, *, only_killed: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Do each part in a process of its own.

    The processes hear no signal that asks to end; whoever stops listening to this iterator ends them.

    Args:
        parts: What to do.
        threads: Threads of each process, ≥ 1.
        lost: Called in place of raising where a part raised something or its process was killed; the other parts
            go on.
        only_killed: Whether `lost` is for killed processes only; what a part raises is then raised.

    Yields:
        (number of the part, message), in the order of messages within a part and as they come between parts.

    Raises:
        UserError: A part raised it, or a process was killed.
        RuntimeError: A part raised something else; the message holds its traceback.
    """
    running: dict[int, int] = {}
    pipes: list[int] = []
    try:
        for part in parts:
            with deferred():  # a signal must find either no copy, or one that is known here
                read, write = os.pipe()
                pid = _fork()
                if pid == 0:
                    _work(part, write, threads, (read, *pipes))
                os.close(write)
                pipes.append(read)
                running[read] = pid
        yield from _messages(pipes, running, lost, only_killed)
    finally:
        for read, pid in running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)


def threaded(parts: Sequence[Callable[[], Iterator[T]]]) -> Iterator[tuple[int, T]]:
    """Do each part in a thread of its own, for work that an accelerator does.

    Args:
        parts: What to do.

    Yields:
        (number of the part, what it yields), in order within a part and as they come between parts.

    Raises:
        Exception: What a part raised; the others are stopped at what they yield next.
    """
    found: SimpleQueue[tuple[int, T] | Exception | None] = SimpleQueue()
    stopped = False

    def work(number: int, part: Callable[[], Iterator[T]]) -> None:
        try:
            for value in part():
                found.put((number, value))
                if stopped:
                    return
            found.put(None)
        except Exception as error:
            found.put(error)

    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        try:
            for number, part in enumerate(parts):
                pool.submit(work, number, part)
            left = len(parts)
            while left:
                one = found.get()
                if isinstance(one, Exception):
                    raise one
                if one is None:
                    left -= 1
                else:
                    yield one
        finally:
            stopped = True


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of threads that hold locks; a progress bar's is the only one, and no part prints.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _work(part: Part, write: int, threads: int, others: Sequence[int]) -> NoReturn:
    """Do a part in the copy; never return into the original's code."""
    try:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        ignored()  # the original hears signals too and ends its copies
        for other in others:
            os.close(other)
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE)
        torch.set_num_threads(threads)
        for message in part():
            _send(write, MESSAGE, message)
        _send(write, END, b"")
    except BrokenPipeError:
        pass  # nobody listens any more
    except BaseException as error:
        mistake = explained(error) is not None
        told = sentence(error) if mistake else f"{sentence(error)}\n{traceback.format_exc()}"
        _send(write, FAILURE, json.dumps([mistake, told]).encode())
    finally:
        os._exit(0)


def _send(write: int, kind: int, message: bytes) -> None:
    rest = memoryview(FRAME.pack(kind, len(message)) + message)
    while rest:
        rest = rest[os.write(write, rest) :]


def _messages(
    pipes: Sequence[int], running: dict[int, int], lost: Lost | None, only_killed: bool
) -> Iterator[tuple[int, bytes]]:
    """Read what comes until every process has said that it is done, or is lost."""
    waiting = {read: bytearray() for read in pipes}
    with selectors.DefaultSelector() as selector:
        for read in pipes:
            selector.register(read, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                read = key.fd
                piece = os.read(read, PIPE)
                number, ended = pipes.index(read), not piece
                waiting[read] += piece
                failure = "" if piece else None
                for kind, message in _frames(waiting[read]):
                    if kind == MESSAGE:
                        yield number, message
                        continue
                    ended = True
                    if kind == FAILURE:
                        mistake, failure = json.loads(message)
                        if lost is None or only_killed:
                            raise UserError(failure) if mistake else RuntimeError(failure)
                if not ended:
                    continue
                selector.unregister(read)
                os.close(read)
                _, status = os.waitpid(running.pop(read), 0)
                if failure is None:
                    failure = _death(status)
                    if lost is None:
                        raise UserError(f"a worker process {failure}; {_FEWER}")
                if failure and lost is not None:
                    lost(number, failure.partition("\n")[0])


def _death(status: int) -> str:
    """Describe how a process ended that did not report it itself."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended by itself with exit code {code}"
    reason = ", perhaps because memory ran out" if -code == signal.SIGKILL else ""
    return f"was killed ({signal.Signals(-code).name}){reason}"


def _frames(waiting: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take whole messages off the front of what has come."""
    while len(waiting) >= FRAME.size:
        kind, length = FRAME.unpack_from(waiting)
        if len(waiting) < FRAME.size + length:
            return
        message = bytes(waiting[FRAME.size : FRAME.size + length])
        del waiting[: FRAME.size + length]
        yield kind, message
