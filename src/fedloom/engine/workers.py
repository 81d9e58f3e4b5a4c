"""Clients in several processes at once, for processors with more cores than one client's batch can use.

Each process is a copy of this one that trains its share of the cohort as `InProcess` does, on its own cores;
updates come back through a pipe. The updates are those of one process with as many threads.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from safetensors.torch import load, save

from fedloom.client.train import Result, Work
from fedloom.engine.in_process import InProcess, ignore
from fedloom.models.batch import encode
from fedloom.params import Layout, Params
from fedloom.processes import forked
from fedloom.record import Clock
from fedloom.types import ClientUpdate, Tensors

EACH = 64
"""Clients of one worker between two copies of this process; a copy takes some 20 ms."""
HELD = 2**28
"""Bytes of updates that may wait for their turn."""
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Workers:
    """A backend that deals the cohort out to copies of this process.

    Attributes:
        inner: How each of them trains its clients.
        count: Number of processes, ≥ 2; they share this process's threads.
    """

    inner: InProcess
    count: int

    def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Result]:
        """Train clients and yield their updates in the order of `works`."""
        coming = iter(works)
        room = HELD // (4 * max(1, self.inner.tuned.layout.size))
        size = max(self.count, min(EACH * self.count, room))
        while window := list(islice(coming, size)):
            yield from self._together(window, clock)

    def _together(self, works: Sequence[Work], clock: Clock) -> Iterator[Result]:
        for work in works:  # tokenised here once, and not in every copy again
            for one in work.conversations:
                encode(self.inner.tuned.vlm, one, [one.answer])
        clock.lap("data")
        shares = dealt([work.steps for work in works], self.count)
        each = replace(self.inner, trained=ignore)
        parts = [partial(_share, each, [works[k] for k in share]) for share in shares]
        threads = max(1, torch.get_num_threads() // self.count)
        done: dict[int, Result] = {}
        spent: dict[str, float] = {}
        found = [0] * len(shares)
        coming, following = forked(parts, threads), 0
        for number, message in coming:
            if found[number] == len(shares[number]):  # the last message tells where the time went
                for name, seconds in json.loads(message).items():
                    spent[name] = spent.get(name, 0.0) + seconds
                continue
            k = shares[number][found[number]]
            found[number] += 1
            done[k] = unpacked(message, works[k].broadcast.params.layout)
            self.inner.trained(done[k][0])
            while following in done:
                clock.lap(WAITING)
                yield done.pop(following)
                following += 1
        clock.lap(WAITING)
        clock.spread(WAITING, spent)


WAITING = "workers"
"""Time in which this process waits for others, before it is known what they did in it."""


def _share(backend: InProcess, works: Sequence[Work]) -> Iterator[bytes]:
    clock = Clock()
    yield from (packed(result) for result in backend.map(works, clock))
    yield json.dumps(clock.seconds).encode()


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


def packed(result: Result) -> bytes:
    """Write a client's update, and what the client keeps, as bytes."""
    update, kept = result
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {"delta": update.delta.flat.clone()}
    tensors |= {f"extras/{name}": value.clone() for name, value in update.extras.items()}
    tensors |= {f"kept/{name}": value.clone() for name, value in kept.items()}
    told = json.dumps([update.client, update.weight, dict(update.metrics)]).encode()
    return LENGTH.pack(len(told)) + told + save(tensors)


def unpacked(message: bytes, layout: Layout) -> Result:
    """Read what `packed` wrote."""
    (length,) = LENGTH.unpack_from(message)
    start = LENGTH.size + length
    client, weight, metrics = json.loads(message[LENGTH.size : start])
    tensors = load(message[start:])
    delta = Params(layout, tensors["delta"])
    return ClientUpdate(client, delta, weight, _named("extras/", tensors), metrics), _named("kept/", tensors)


def _named(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
