"""Clients in several processes, or on several devices, at once: each trains its share of the cohort as `InProcess` does.

A process is a copy of this one, with cores of its own, for processors with more cores than one client's batch can use;
updates come back through a pipe. A device has a copy of the model and a thread that keeps it busy. The updates are
those of one process with as many threads, or of one device.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from safetensors.torch import load, save

from fedloom.client.train import Answer, Work
from fedloom.engine.in_process import InProcess, ignore
from fedloom.models.batch import encode
from fedloom.params import Layout, Params
from fedloom.processes import forked, threaded, threads_each
from fedloom.record import Clock
from fedloom.tuning.adapters import Tuned
from fedloom.types import ClientUpdate, Missing, Tensors

EACH = 64
"""Clients of one worker between two copies of this process; a copy takes some 20 ms."""
HELD = 2**28
"""Bytes of updates that may wait for their turn."""
LENGTH = struct.Struct("<I")

Timed = tuple[Answer, dict[str, float]]
"""What a client came to, and where the time for it went."""


@dataclass(frozen=True)
class Workers:
    """A backend that deals the cohort out to copies of this process, or to several devices.

    Attributes:
        inner: How each of them trains its clients.
        count: Number of processes, ≥ 2; they share this process's threads.
        twins: Copies of the model on other devices; where there are any, each device trains a share, and no process
            is copied.
    """

    inner: InProcess
    count: int
    twins: tuple[Tuned, ...] = ()

    def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Answer]:
        """Train clients and yield their updates in the order of `works`.

        A client that raises is `Missing`, and so are those that a process which is killed had yet to train.
        """
        coming = iter(works)
        room = HELD // (4 * max(1, self.inner.tuned.layout.size))
        size = max(self.count, min(EACH * self.count, room))
        while window := list(islice(coming, size)):
            yield from self._together(window, clock)

    def _together(self, works: Sequence[Work], clock: Clock) -> Iterator[Answer]:
        clock.lap("load")
        begun = time.perf_counter()
        for work in works:  # tokenised here once, and not in every copy again
            with suppress(Exception):  # the client is missing then, and the copy says why
                for one in work.conversations:
                    encode(self.inner.tuned.vlm, one, [one.answer])
        shares = dealt([work.steps for work in works], self.count)
        places = [iter(share) for share in shares]
        done: dict[int, Timed] = {}
        ends: dict[int, str] = {}
        for number, (answer, spent) in self._results([[works[k] for k in share] for share in shares], ends):
            if not isinstance(answer, Missing):
                self.inner.trained(answer[0])
            done[next(places[number])] = answer, spent
        for number, rest in enumerate(places):
            for k in rest:
                done[k] = Missing(works[k].client, f"its process {ends[number]}"), {}
        # Seconds that passed here for each second of work in a process.
        spent_there = sum(sum(spent.values()) for _, spent in done.values())
        passed = (time.perf_counter() - begun) / spent_there if spent_there else 0.0
        clock.skip()
        for k in range(len(works)):
            answer, spent = done.pop(k)
            clock.add({name: seconds * passed for name, seconds in spent.items()})
            yield answer

    def _results(self, shares: Sequence[Sequence[Work]], ends: dict[int, str]) -> Iterator[tuple[int, Timed]]:
        """Train each share and yield (its number, an answer and where the time for it went), as answers come.

        How a process ended that was killed is put into `ends`, by the number of its share.
        """
        each = replace(self.inner, trained=ignore)
        if self.twins:
            models = (self.inner.tuned, *self.twins)
            # There may be fewer shares than models, where there are few clients.
            here = [(replace(each, tuned=tuned), share) for tuned, share in zip(models, shares, strict=False)]
            yield from threaded([partial(_share, *one) for one in here])
            return
        layout = shares[0][0].broadcast.params.layout
        parts = [partial(_marked, each, share) for share in shares]
        for number, message in forked(parts, threads_each(self.count), ends.__setitem__, only_killed=True):
            yield number, _unmarked(message, layout)


def _share(backend: InProcess, works: Sequence[Work]) -> Iterator[Timed]:
    clock = Clock()
    for result in backend.map(works, clock):
        yield result, clock.take()


def _marked(backend: InProcess, works: Sequence[Work]) -> Iterator[bytes]:
    for result, spent in _share(backend, works):
        told = json.dumps(spent).encode()
        yield LENGTH.pack(len(told)) + told + packed(result)


def _unmarked(message: bytes, layout: Layout) -> Timed:
    """Read a result, and where the time for it went."""
    (length,) = LENGTH.unpack_from(message)
    start = LENGTH.size + length
    return unpacked(message[start:], layout), json.loads(message[LENGTH.size : start])


def dealt(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Deal works out so that every worker has about as much to do: the largest first, each to the least laden.

    Returns:
        Positions in `sizes` for each worker that has any, ascending.

    Example:
        >>> dealt([11, 16, 10, 8, 20], 2)
        [[0, 4], [1, 2, 3]]
    """
    shares: list[list[int]] = [[] for _ in range(min(count, len(sizes)))]
    laden = [0] * len(shares)
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        least = laden.index(min(laden))
        shares[least].append(k)
        laden[least] += sizes[k]
    return sorted(sorted(share) for share in shares)


def packed(answer: Answer) -> bytes:
    """Write a client's update, and what the client keeps, or why there is none, as bytes."""
    if isinstance(answer, Missing):
        told = json.dumps([answer.client, answer.reason]).encode()
        return LENGTH.pack(len(told)) + told
    update, kept = answer
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {"delta": update.delta.flat.clone()}
    tensors |= {f"extras/{name}": value.clone() for name, value in update.extras.items()}
    tensors |= {f"kept/{name}": value.clone() for name, value in kept.items()}
    told = json.dumps([update.client, update.weight, dict(update.metrics)]).encode()
    return LENGTH.pack(len(told)) + told + save(tensors)


def unpacked(message: bytes, layout: Layout) -> Answer:
    """Read what `packed` wrote."""
    (length,) = LENGTH.unpack_from(message)
    start = LENGTH.size + length
    client, *told = json.loads(message[LENGTH.size : start])
    if len(message) == start:
        return Missing(client, *told)
    weight, metrics = told
    tensors = load(message[start:])
    delta = Params(layout, tensors["delta"])
    return ClientUpdate(client, delta, weight, _named("extras/", tensors), metrics), _named("kept/", tensors)


def _named(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
