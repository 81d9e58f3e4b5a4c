"""The base of backends that train in other processes, which get a few clients at a time, whenever they are idle."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fedloom.client.local_job import Job
from fedloom.engine.in_process import WINDOW, TrainsElsewhere, blocks
from fedloom.engine.timed_answers import Timed
from fedloom.system.errors import is_of_accelerator
from fedloom.system.timing import Clock
from fedloom.wire.messages import Answer, Assignment, Missing, Update

CLIENTS_PER_PROCESS = 64
"""Number of clients for each process that are sorted together, so that those with most work begin first."""

Trained = Sequence[Timed] | str
"""The answers of the clients of a piece, or the reason why there are none."""


@dataclass(frozen=True)
class TrainsInPieces(TrainsElsewhere, ABC):
    """A backend that trains pieces of a round's clients in other processes; the updates are those of `InProcess`.

    Attributes:
        inner: The site in this process, the number of clients that train side by side, and what is called after updates.
        recompute: Whether layers are recomputed.
    """

    recompute: bool = field(default=False, kw_only=True)

    @abstractmethod
    def begin(self) -> int:
        """Prepare to train, and return the number of processes."""

    @abstractmethod
    def results(
        self, pieces: Iterator[Sequence[Assignment]]
    ) -> Iterator[tuple[Sequence[Assignment], Trained]]:
        """Train pieces, and yield each as it is done, with its answers or the reason why there are none."""

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Train clients and yield their updates as they are done; a client that raises, or kills processes, is `Missing`."""
        if not self.inner.site.memory.shared:
            raise ValueError(
                "the memory of another process is lost when it ends; keep clients' memories in files"
            )
        processes = self.begin()
        clock.lap("load")
        begun = time.perf_counter()
        for assigned, answers in self.results(self._pieces(assignments, processes)):
            clock.skip()
            passed = time.perf_counter() - begun
            if isinstance(answers, str):
                yield from [Missing(one.client, answers) for one in assigned]
            else:
                work = sum(sum(spent.values()) for _, spent in answers)
                passed = (
                    passed / work if work else 0.0
                )  # seconds here for each second of work in another process
                for answer, spent in answers:
                    if isinstance(answer, Update):
                        self.inner.trained(answer)
                    clock.add({name: seconds * passed for name, seconds in spent.items()})
                    yield answer
            begun = time.perf_counter()

    def _pieces(self, assignments: Iterable[Assignment], processes: int) -> Iterator[Sequence[Assignment]]:
        """Divide assignments into pieces: single clients, or the blocks of clients side by side that there are in one process."""
        rows, coming = self.inner.rows, iter(assignments)
        if rows > 1:
            while window := list(islice(coming, rows * WINDOW)):
                yield from self._blocks(window)
        while window := list(islice(coming, CLIENTS_PER_PROCESS * processes)):
            yield from ([one] for one in sorted(window, key=self._examples, reverse=True))

    def _blocks(self, window: Sequence[Assignment]) -> Iterator[Sequence[Assignment]]:
        jobs = dict[int, Job]()
        for k, assignment in enumerate(window):
            try:
                jobs[k] = self.inner.site.job(assignment)
            except (Exception, SystemExit) as error:  # the process that gets it gives the reason
                if is_of_accelerator(error):
                    raise
                yield [assignment]
        for block in blocks(jobs, self.inner.rows):
            yield [window[k] for k in block]

    def _examples(self, assignment: Assignment) -> int:
        return self.inner.site.method(assignment.method).profiles[assignment.client].examples
