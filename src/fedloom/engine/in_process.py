"""Clients in this process over one frozen model: one after the other, or several side by side.

One after the other is the reference; side by side gives the same updates and wins where a client's batch
is too small to keep the processor busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from fedloom.client.train import Answer, TrainSettings, Work, train
from fedloom.failures import client_failure, short_of_memory
from fedloom.record import Clock
from fedloom.tuning.adapters import Tuned
from fedloom.types import ClientUpdate, Missing

WINDOW = 4
"""How many blocks of clients are looked at together to put alike ones side by side."""


def ignore(update: ClientUpdate) -> None:
    """Do nothing with an update."""


@dataclass(frozen=True)
class InProcess:
    """A backend that swaps clients' parameters into one model.

    Attributes:
        tuned: The model.
        rows: Number of clients that train side by side, ≥ 1; 1 is one after the other.
        trained: Called with every update, for progress.
    """

    tuned: Tuned
    rows: int = 1
    trained: Callable[[ClientUpdate], None] = ignore

    def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Answer]:
        """Train clients and yield their updates in the order of `works`; a client that raises is `Missing`.

        What a block took is shared out evenly, and counted when its client's update is yielded: works of several
        trainings may come mixed, and each is told its own time.
        """
        coming, own = iter(works), Clock()
        while True:
            clock.lap("load")
            own.skip()
            window = list(islice(coming, self.rows * WINDOW if self.rows > 1 else 1))
            if not window:
                return
            own.lap("load")
            reading, done = _share(own, len(window)), dict[int, tuple[Answer, Mapping[str, float]]]()
            for block in blocks(window, self.rows):
                found = _answers(self.tuned, [window[k] for k in block], own)
                share = _share(own, len(block))
                for k, answer in zip(block, found, strict=True):
                    if not isinstance(answer, Missing):
                        self.trained(answer[0])
                    done[k] = answer, share
            clock.skip()
            for k in range(len(window)):
                answer, share = done.pop(k)
                clock.add(reading)
                clock.add(share)
                yield answer


def _answers(tuned: Tuned, works: Sequence[Work], clock: Clock) -> list[Answer]:
    """Train clients side by side; where one raises, each alone, to find which.

    Raises:
        Exception: Memory ran out for several side by side. Fewer rows would round otherwise, so they are not tried.
    """
    try:
        return [*train(tuned, works, clock)]
    except Exception as error:
        if len(works) == 1:
            return [Missing(works[0].client, client_failure(error))]
        if short_of_memory(error):
            raise
    return [answer for work in works for answer in _answers(tuned, [work], clock)]


def _share(clock: Clock, works: int) -> Mapping[str, float]:
    """Take what a clock has counted, divided by the number of works it was for."""
    return {name: seconds / works for name, seconds in clock.take().items()}


def blocks(works: Sequence[Work], rows: int) -> list[list[int]]:
    """Put works side by side that take as many steps and show alike evidence, so that few rows stand idle.

    Returns:
        Blocks of at most `rows` positions in `works`; together they hold every position once.
    """
    kinds: list[tuple[TrainSettings, int, list[int]]] = []
    for k, work in enumerate(works):
        for settings, round, found in kinds:
            if settings == work.settings and round == work.round:
                found.append(k)
                break
        else:
            kinds.append((work.settings, work.round, [k]))
    cut: list[list[int]] = []
    for _, _, found in kinds:
        found.sort(key=lambda k: (*_shape(works[k]), k))
        cut += [found[start : start + rows] for start in range(0, len(found), rows)]
    return cut


def _shape(work: Work) -> tuple[int, float, float]:
    """Return steps, share of conversations with a picture, and mean length of text."""
    count = len(work.conversations)
    pictures = sum(one.picture is not None for one in work.conversations)
    return work.steps, pictures / count, sum(len(one.user) for one in work.conversations) / count
