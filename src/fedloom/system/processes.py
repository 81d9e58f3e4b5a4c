"""Run work in forked copies of this process, which send back only their results.

A copy shares the memory of its original until either writes to it, so models and data need not be loaded or sent
again. Forking works on Linux only, and not once an accelerator is in use, which no copy can share.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import torch

from fedloom.system.errors import UserError, error_sentence, user_message
from fedloom.system.signals import defer_signals, ignore_signals

Work = Callable[[], Iterator[bytes]]
"""The work of one process; what it yields is sent to the original."""

FRAME = struct.Struct("<BQ")
"""Kind of a message, and number of its bytes."""
MESSAGE, FAILURE, END = 0, 1, 2
PIPE = 2**20
"""Bytes of a pipe's buffer."""
_FEWER = "try --set engine.workers=1, and a sweep without --jobs"
DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of prctl."""


def can_fork() -> bool:
    """Return whether this process can be forked: on Linux, as long as it uses no accelerator."""
    return sys.platform == "linux" and not torch.cuda.is_initialized()


def threads_per_process(processes: int) -> int:
    """Return this process's number of threads divided among several copies of it, at least one each."""
    return max(1, torch.get_num_threads() // processes)


OnLoss = Callable[[int, str], None]
"""A function (number of a part that failed, reason such as "was killed (SIGKILL)")."""


def run_forked(
    parts: Sequence[Work], threads: int, lost: OnLoss | None = None, *, only_killed: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Run each part in a forked process of its own.

    The processes ignore signals that ask them to end; they end when this iterator is closed.

    Args:
        parts: The work of each process.
        threads: Threads of each process, ≥ 1.
        lost: A function that is called, in place of raising, where a part raised an error or its process was killed; the
            other parts continue.
        only_killed: Whether `lost` is called for killed processes only; an error of a part is then raised.

    Yields:
        (number of the part, message); the messages of each part in order, those of several parts as they arrive.

    Raises:
        UserError: A part raised it, or a process was killed.
        RuntimeError: A part raised something else; the message holds its traceback.
    """
    running: dict[int, int] = {}
    pipes: list[int] = []
    try:
        for part in parts:
            with defer_signals():  # a signal must come either before the fork, or after its process is listed
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


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of locks that threads hold; only a progress bar's thread has one, and no part prints.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def end_with_parent() -> None:
    """Let this process be killed when the thread ends that started it; only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _work(part: Work, write: int, threads: int, others: Sequence[int]) -> NoReturn:
    """Run a part in the copy, and end the process without returning into the original's code."""
    try:
        end_with_parent()
        ignore_signals()  # the original gets the signals too, and ends its copies
        for other in others:
            os.close(other)
        _enlarge(write)
        torch.set_num_threads(threads)
        for message in part():
            _send(write, MESSAGE, message)
        _send(write, END, b"")
    except BrokenPipeError:
        pass  # the original no longer reads
    except BaseException as error:
        mistake = user_message(error) is not None
        text = error_sentence(error) if mistake else f"{error_sentence(error)}\n{traceback.format_exc()}"
        _send(write, FAILURE, json.dumps([mistake, text]).encode())
    finally:
        os._exit(0)


def _enlarge(pipe: int) -> None:
    """Give a pipe a larger buffer."""
    import fcntl  # here, because this module is imported where nothing can be forked, such as on Windows

    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)


def _send(write: int, kind: int, message: bytes) -> None:
    unsent = memoryview(FRAME.pack(kind, len(message)) + message)
    while unsent:
        unsent = unsent[os.write(write, unsent) :]


def _messages(
    pipes: Sequence[int], running: dict[int, int], lost: OnLoss | None, only_killed: bool
) -> Iterator[tuple[int, bytes]]:
    """Yield all messages until every process has reported its end, or has died."""
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
                    failure = end_reason(os.waitstatus_to_exitcode(status))
                    if lost is None:
                        raise UserError(f"a worker process {failure}; {_FEWER}")
                if failure and lost is not None:
                    lost(number, failure.partition("\n")[0])


def end_reason(code: int) -> str:
    """Return how a process ended that did not report its end, from its exit code, or minus the number of a signal.

    Example:
        >>> end_reason(1)
        'ended by itself with exit code 1'
    """
    if code >= 0:
        return f"ended by itself with exit code {code}"
    reason = ", perhaps because memory ran out" if -code == signal.SIGKILL else ""
    return f"was killed ({signal.Signals(-code).name}){reason}"


def _frames(waiting: bytearray) -> Iterator[tuple[int, bytes]]:
    """Remove the complete messages from the front of a buffer, and yield them."""
    while len(waiting) >= FRAME.size:
        kind, length = FRAME.unpack_from(waiting)
        if len(waiting) < FRAME.size + length:
            return
        message = bytes(waiting[FRAME.size : FRAME.size + length])
        del waiting[: FRAME.size + length]
        yield kind, message
