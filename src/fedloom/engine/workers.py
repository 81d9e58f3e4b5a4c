"""Clients in several processes at once, for processors with more cores than one client's batch can use.

Each process is a copy of this one that trains its share of the cohort as `InProcess` does, on its own cores;
updates come back through a pipe, each with its share of the time. The updates are those of one process with as many threads.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from safetensors.torch import load, save

from fedloom.client.train import Result, Work
from fedloom.engine.in_process import InProcess, ignore
from fedloom.models.batch import encode
from fedloom.params import Layout, Params
from fedloom.processes import forked, threads_each
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
        clock.lap("load")
        begun = time.perf_counter()
        for work in works:  # tokenised here once, and not in every copy again
            for one in work.conversations:
                encode(self.inner.tuned.vlm, one, [one.answer])
        shares = dealt([work.steps for work in works], self.count)
        each = replace(self.inner, trained=ignore)
        parts = [partial(_share, each, [works[k] for k in share]) for share in shares]
        places = [iter(share) for share in shares]
        done: dict[int, tuple[Result, dict[str, float]]] = {}
        for number, message in forked(parts, threads_each(self.count)):
            k = next(places[number])
            result, spent = _unmarked(message, works[k].broadcast.params.layout)
            self.inner.trained(result[0])
            done[k] = result, spent
        # Seconds that passed here for each second of work in a process.
        passed = (time.perf_counter() - begun) / sum(sum(spent.values()) for _, spent in done.values())
        clock.skip()
        for k in range(len(works)):
            result, spent = done.pop(k)
            clock.add({name: seconds * passed for name, seconds in spent.items()})
            yield result


def _share(backend: InProcess, works: Sequence[Work]) -> Iterator[bytes]:
    clock = Clock()
    for result in backend.map(works, clock):
        told = json.dumps(clock.take()).encode()
        yield LENGTH.pack(len(told)) + told + packed(result)


def _unmarked(message: bytes, layout: Layout) -> tuple[Result, dict[str, float]]:
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
