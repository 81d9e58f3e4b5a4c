"""Work in copies of this process: order, failures, and no process left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.system.errors import UserError
from fedloom.system.processes import PIPE, can_fork, run_forked

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")


def say(messages: list[bytes]) -> Iterator[bytes]:
    yield from messages


def processes() -> set[int]:
    """Return our child processes that still run or were not waited for."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return set()
    return {1}


@given(st.lists(st.lists(st.binary(max_size=50), max_size=5), min_size=1, max_size=4))
def test_every_message_comes_in_the_order_of_its_part(parts: list[list[bytes]]) -> None:
    received: list[list[bytes]] = [[] for _ in parts]
    for number, message in run_forked([partial(say, part) for part in parts], 1):
        received[number].append(message)
    assert received == parts
    assert not processes()


def test_messages_larger_than_a_pipe_come_whole() -> None:
    large = os.urandom(3 * PIPE + 1)
    assert list(run_forked([partial(say, [large, b"", large])], 1)) == [(0, large), (0, b""), (0, large)]


def test_a_part_sees_the_originals_state_and_does_not_change_it() -> None:
    values = [1]

    def change() -> Iterator[bytes]:
        values.append(2)
        yield str(values).encode()
        yield str(torch.get_num_threads()).encode()

    assert [message for _, message in run_forked([change], 1)] == [b"[1, 2]", b"1"]
    assert values == [1]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [(UserError("no such file"), UserError, "^no such file$"), (KeyError("x"), RuntimeError, "KeyError")],
)
def test_an_error_of_a_part_is_raised_in_the_original(
    error: Exception, kind: type[Exception], said: str
) -> None:
    def fail() -> Iterator[bytes]:
        yield b"first"
        raise error

    with pytest.raises(kind, match=said):
        list(run_forked([fail, partial(time_out, 60)], 1))
    assert not processes()


def time_out(seconds: float) -> Iterator[bytes]:
    time.sleep(seconds)
    yield b""


def test_a_killed_process_is_reported_and_the_others_end() -> None:
    def killed() -> Iterator[bytes]:
        yield b""
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"killed.*engine\.workers=1"):
        list(run_forked([killed, partial(time_out, 60)], 1))
    assert not processes()


def test_closing_the_iterator_ends_all_processes() -> None:
    coming = run_forked([partial(say, [b"a"]), partial(time_out, 60)], 1)
    assert next(coming) == (0, b"a")
    coming.close()
    assert not processes()


def test_a_failed_part_is_named_and_the_others_continue() -> None:
    def killed() -> Iterator[bytes]:
        yield b"begun"
        os.kill(os.getpid(), signal.SIGKILL)

    def left() -> Iterator[bytes]:
        yield b"begun"
        os._exit(3)

    def broken() -> Iterator[bytes]:
        yield b"begun"
        raise MemoryError

    lost: dict[int, str] = {}
    parts = [killed, left, broken, partial(say, [b"a", b"b"])]
    messages = [(number, message) for number, message in run_forked(parts, 1, lost.__setitem__)]
    assert [message for number, message in messages if number == 3] == [b"a", b"b"]
    assert {number for number, message in messages if message == b"begun"} == {0, 1, 2}
    assert "SIGKILL" in lost[0]
    assert "exit code 3" in lost[1]
    assert "memory ran out" in lost[2]
    assert set(lost) == {0, 1, 2}
    assert not processes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_copies_ignore_signals_that_ask_to_end(number: signal.Signals) -> None:
    def hit() -> Iterator[bytes]:
        os.kill(os.getpid(), number)
        yield b"still here"

    assert list(run_forked([hit], 1)) == [(0, b"still here")]
