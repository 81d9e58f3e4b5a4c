"""Train clients in several copies of this process at once: each trains its share as `InProcess` does.

A copy has its own cores, for CPUs with more cores than one client's batch can use. Updates return through a pipe, as
the same messages that another machine would send. They are those of one process with as many threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from fedloom.client.learning_rate import steps_of
from fedloom.engine.client_order import WAITING_BYTES
from fedloom.engine.in_process import TrainsElsewhere, ignore
from fedloom.engine.timed_answers import Timed, from_bytes, timed, to_bytes
from fedloom.models.batches import encode
from fedloom.system.processes import run_forked, threads_per_process
from fedloom.system.timing import Clock
from fedloom.wire.messages import Answer, Assignment, Missing, Update

CLIENTS_PER_COPY = 64
"""Number of clients that a copy of this process trains before a new copy is made, which takes some 20 ms."""


@dataclass(frozen=True)
class Workers(TrainsElsewhere):
    """A backend that divides the cohort among copies of this process.

    Attributes:
        inner: The backend with which each of them trains its clients, which keep their memory in files.
        count: Number of processes, ≥ 2; they share this process's threads.
    """

    count: int

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
                if answer.keeps and not self.inner.site.memory.shared:
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
        each, layout = replace(self.inner, trained=ignore), self.inner.site.tuned.layout

        def messages(share: Sequence[Assignment]) -> Iterator[bytes]:
            return map(to_bytes, timed(each, share))

        parts = [partial(messages, share) for share in shares]
        for number, message in run_forked(
            parts, threads_per_process(self.count), ends.__setitem__, only_killed=True
        ):
            yield number, from_bytes(message, layout)


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
