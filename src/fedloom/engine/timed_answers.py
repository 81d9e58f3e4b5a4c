"""Answers of clients with the time that the work for them took, as one message each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from fedloom.engine.rounds import Backend
from fedloom.params import Layout
from fedloom.system.timing import Clock
from fedloom.wire.framing import prepend_field, split_field
from fedloom.wire.messages import Answer, Assignment, answer_from_bytes

Timed = tuple[Answer, dict[str, float]]
"""A client's answer, and the seconds that each kind of work for it took."""


def timed(backend: Backend, assignments: Iterable[Assignment], clock: Clock | None = None) -> Iterator[Timed]:
    """Train clients; yield each answer with the time that was counted for it, which includes what `clock` has counted before."""
    clock = clock or Clock()
    for answer in backend.train(assignments, clock):
        yield answer, clock.take()


def to_bytes(timed: Timed) -> bytes:
    """Return an answer and its time as bytes."""
    answer, spent = timed
    return prepend_field(json.dumps(spent).encode(), answer.to_bytes())


def from_bytes(message: bytes, layout: Layout) -> Timed:
    """Read an answer and its time, which `to_bytes` wrote.

    Raises:
        ValueError: The bytes are damaged, or for another layout.
    """
    times, answer = split_field(message)
    return answer_from_bytes(answer, layout), json.loads(times)
