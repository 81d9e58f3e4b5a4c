"""The headline scores of a sweep as observations for paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fedloom.report.federation_gain import client_scores, main_score, task_scores, tasks_in
from fedloom.report.run_results import number
from fedloom.report.significance import Observation
from fedloom.report.sweeps.sweep_results import SEED, CellRun, SweepRun
from fedloom.tasks.score_answers import HEADLINES

LOWER = frozenset({"unparsed", "dropped", "unjudged"})
"""Scores for which lower is better."""


class Measure(NamedTuple):
    """A task ("" if it was not recorded) and the name of its score."""

    task: str
    metric: str

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
            clients = _clients(cell, name, measure.task)
            observation = Observation(
                cell.name, {**shared, method: name}, cell.values.get(SEED), value, clients
            )
            result.setdefault(measure, []).append(observation)
    return result


def _clients(cell: CellRun, method: str, task: str) -> tuple[float | None, ...]:
    """Return a method's score for each client that has the task, on data like the client's own."""
    by_task = client_scores(cell.scores.get(method, {}))
    return tuple(
        scores[task] if task in scores else scores[""] for scores in by_task if task in scores or "" in scores
    )


def _scores(cell: CellRun) -> dict[Kind, float | None]:
    """Return the headline scores of a cell, for each method and task."""
    if cell.result is None:
        return {}
    tasks = tasks_in(cell.result)
    if len(tasks) > 1:
        return {
            (method, Measure(task, HEADLINES.get(task, "accuracy"))): value
            for method, by_task in task_scores(cell.result).items()
            for task, value in by_task.items()
        }
    measure = Measure("".join(tasks), main_score(cell.result))
    return {(method, measure): number(scores, measure.metric) for method, scores in cell.scores.items()}


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
