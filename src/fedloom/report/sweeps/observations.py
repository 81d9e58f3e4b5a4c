"""The headline scores of a sweep as observations for paired comparisons.

A method has up to two for each task: of its shared model on the global test set, and of its clients on data like their own.
They are never paired with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from fedloom.report.federation_gain import client_scores, main_score, tasks_in
from fedloom.report.run_results import Json, number
from fedloom.report.shared_scores import shared_model
from fedloom.report.significance import Observation
from fedloom.report.sweeps.sweep_results import SEED, CellRun, SweepRun
from fedloom.tasks.score_answers import HEADLINES

LOWER = frozenset({"unparsed", "dropped", "unjudged"})
"""Scores for which lower is better."""


class Measure(NamedTuple):
    """A score, and the model and questions that it is of.

    Attributes:
        task: The task; "" if it was not recorded.
        metric: The name of the score.
        own: Whether it is the mean over clients on data like each client's own, with its own model where it has one, else with
            the shared one; if not, it is of the shared model on the global test set.
    """

    task: str
    metric: str
    own: bool

    @property
    def lower(self) -> bool:
        """Whether a lower score is better."""
        return self.metric in LOWER


Kind = tuple[str, Measure]
"""A method and one of its measures."""


def observations_of(sweep: SweepRun, method: str) -> dict[Measure, list[Observation]]:
    """Return measure → observations, for all headline scores of a sweep.

    A cell that is not done has an observation without a value for each score that it would have.

    Args:
        sweep: The sweep.
        method: The name of the factor that holds the method; no axis may have this name.
    """
    scores = [_scores(cell) for cell in sweep.cells]
    expected = _expected(sweep, scores)
    result: dict[Measure, list[Observation]] = {}
    for cell, cell_scores in zip(sweep.cells, scores, strict=True):
        shared = {axis: str(cell.values[axis]) for axis in sweep.settings}
        values = cell_scores or dict.fromkeys(expected(cell))
        for (name, measure), value in values.items():
            clients = _clients(cell.scores.get(name, {}), measure.task) if measure.own else ()
            observation = Observation(
                cell.name, {**shared, method: name}, cell.values.get(SEED), value, clients
            )
            result.setdefault(measure, []).append(observation)
    return result


def _clients(scores: Json, task: str) -> tuple[float | None, ...]:
    """Return a method's score for each client that has the task, on data like the client's own."""
    return tuple(
        by_task[task] if task in by_task else by_task[""]
        for by_task in client_scores(scores)
        if task in by_task or "" in by_task
    )


def _scores(cell: CellRun) -> dict[Kind, float | None]:
    """Return the headline scores of a cell, for each method and task."""
    return {} if cell.result is None else dict(_headlines(cell, cell.result))


def _headlines(cell: CellRun, result: Json) -> Iterator[tuple[Kind, float | None]]:
    tasks = tasks_in(result)
    several = len(tasks) > 1
    for method, scores in cell.scores.items():
        shared = shared_model(scores)
        for task in tasks if several else ["".join(tasks)]:
            metric = HEADLINES.get(task, "accuracy") if several else main_score(result)
            if shared is not None:
                place = ("tasks", task, metric) if several else (metric,)
                yield (method, Measure(task, metric, own=False)), number(shared, *place)
            if known := [value for value in _clients(scores, task) if value is not None]:
                yield (method, Measure(task, metric, own=True)), fmean(known)


def _expected(
    sweep: SweepRun, scores: Sequence[Mapping[Kind, float | None]]
) -> Callable[[CellRun], list[Kind]]:
    """Return a function that lists the scores which a cell would have if it were done, judging by similar cells."""
    seen: dict[tuple[str, str], set[Kind]] = {}
    for cell, cell_scores in zip(sweep.cells, scores, strict=True):
        for axis, value in cell.values.items():
            seen.setdefault((axis, str(value)), set()).update(cell_scores)
    every = list(dict.fromkeys(kind for cell_scores in scores for kind in cell_scores))

    def expected(cell: CellRun) -> list[Kind]:
        shared = [seen[axis, str(value)] for axis, value in cell.values.items()]
        return [kind for kind in every if all(kind in kinds for kinds in shared if kinds)]

    return expected
