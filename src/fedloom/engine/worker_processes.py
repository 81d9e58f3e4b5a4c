"""Train clients in several processes, or on several devices, at once: each trains its share as `InProcess` does.

A process is a copy of this one with its own cores, for processors with more cores than one client's batch can use. Updates
return through a pipe, as the same messages that another machine would send. A device has a copy of the model and a thread
that keeps it busy. The updates are those of one process with as many threads, or of one device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from fedloom.client.learning_rate import steps_of
from fedloom.engine.client_order import WAITING_BYTES
from fedloom.engine.in_process import InProcess, TrainsElsewhere, ignore
from fedloom.models.batches import encode
from fedloom.params import Layout
from fedloom.system.processes import run_forked, run_threaded, threads_per_process
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned
from fedloom.wire.framing import prepend_field, split_field
from fedloom.wire.messages import Answer, Assignment, Missing, Update, answer_from_bytes

CLIENTS_PER_COPY = 64
"""Number of clients that a copy of this process trains before a new copy is made, which takes some 20 ms."""

Timed = tuple[Answer, dict[str, float]]
"""A client's answer, and the seconds that each kind of work for it took."""


@dataclass(frozen=True)
class Workers(TrainsElsewhere):
    """A backend that divides the cohort among copies of this process, or among several devices.

    Attributes:
        inner: The backend with which each of them trains its clients. In processes, clients keep their memory in files.
        count: Number of processes, ≥ 2; they share this process's threads.
        replicas: Copies of the model on other devices; if there are any, each device trains a share, and no process is
            copied.
    """

    count: int
    replicas: tuple[Tuned, ...] = ()

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Train clients and yield their updates in the order of `assignments`.

        A client that raises is `Missing`, and so are the clients that a killed process had not trained yet.
        """
        remaining = iter(assignments)
        room = WAITING_BYTES // (4 * max(1, self.inner.site.tuned.layout.size))
        size = max(self.count, min(CLIENTS_PER_COPY * self.count, room))
        while window := list(islice(remaining, size)):
            yield from self._together(window, clock)

    def _together(self, window: Sequence[Assignment], clock: Clock) -> Iterator[Answer]:
        clock.lap("load")
        started, steps = time.perf_counter(), [self._prepare(assignment) for assignment in window]
        shares = deal(steps, self.count)
        unanswered = [iter(share) for share in shares]
        done: dict[int, Timed] = {}
        ends: dict[int, str] = {}
        for number, (answer, spent) in self._results([[window[k] for k in share] for share in shares], ends):
            if isinstance(answer, Update):
                if answer.keeps and not self.replicas and not self.inner.site.memory.shared:
                    raise ValueError("what clients keep in a copy of this process is lost; keep it in files")
                self.inner.trained(answer)
            done[next(unanswered[number])] = answer, spent
        for number, lost in enumerate(unanswered):
            for k in lost:
                done[k] = Missing(window[k].client, f"its process {ends[number]}"), {}
        # Seconds that passed here for each second of work in a process.
        work = sum(sum(spent.values()) for _, spent in done.values())
        passed = (time.perf_counter() - started) / work if work else 0.0
        clock.skip()
        for k in range(len(window)):
            answer, spent = done.pop(k)
            clock.add({name: seconds * passed for name, seconds in spent.items()})
            yield answer

    def _prepare(self, assignment: Assignment) -> int:
        """Tokenize a client's examples, so that no copy has to do it again; return how many steps the client takes."""
        site = self.inner.site
        with suppress(Exception):  # the client is missing then, and the copy gives the reason
            local = site.method(assignment.method)
            settings = local.stages[assignment.stage].settings
            conversations = local.conversations(assignment.client)
            for conversation in conversations:
                encode(site.tuned.vlm, conversation, [conversation.answer])
            steps = steps_of(settings, len(conversations))
            if local.second is None:
                return steps
            return steps + steps * (local.second.epochs or settings.epochs) // settings.epochs
        return 1

    def _results(
        self, shares: Sequence[Sequence[Assignment]], ends: dict[int, str]
    ) -> Iterator[tuple[int, Timed]]:
        """Train all shares at once; yield the number of a share, an answer and its time, as answers arrive.

        If a process is killed, `ends` holds how it ended, by the number of its share.
        """
        each = replace(self.inner, trained=ignore)
        if self.replicas:
            sites = [each.site, *(replace(each.site, tuned=tuned) for tuned in self.replicas)]
            # With few clients there may be fewer shares than models.
            pairs = [(replace(each, site=site), share) for site, share in zip(sites, shares, strict=False)]
            yield from run_threaded([partial(_train_share, *pair) for pair in pairs])
            return
        layout = each.site.tuned.layout
        parts = [partial(_packed, each, share) for share in shares]
        for number, message in run_forked(
            parts, threads_per_process(self.count), ends.__setitem__, only_killed=True
        ):
            yield number, _unpacked(message, layout)


def _train_share(backend: InProcess, assignments: Sequence[Assignment]) -> Iterator[Timed]:
    clock = Clock()
    for answer in backend.train(assignments, clock):
        yield answer, clock.take()


def _packed(backend: InProcess, assignments: Sequence[Assignment]) -> Iterator[bytes]:
    for answer, spent in _train_share(backend, assignments):
        yield prepend_field(json.dumps(spent).encode(), answer.to_bytes())


def _unpacked(message: bytes, layout: Layout) -> Timed:
    """Read a message of `_packed`."""
    times, answer = split_field(message)
    return answer_from_bytes(answer, layout), json.loads(times)


def deal(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divide work so that all workers have about as much to do: the largest first, each to the least loaded worker.

    Returns:
        Positions in `sizes` for each worker that has any, ascending.

    Example:
        >>> deal([11, 16, 10, 8, 20], 2)
        [[0, 1, 3], [2, 4]]
    """
    shares: list[list[int]] = [[] for _ in range(min(count, len(sizes)))]
    loads = [0] * len(shares)
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        least = loads.index(min(loads))
        shares[least].append(k)
        loads[least] += sizes[k]
    return sorted(sorted(share) for share in shares)
