"""The scores of a sweep as readings: each with all it depends on, each task by its own headline score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fedloom.report.federation_gain import client_scores, main_score, task_scores, tasks_in
from fedloom.report.paired_tests import Reading
from fedloom.report.run_results import number
from fedloom.report.sweeps.sweep_results import SEED, CellRun, SweepRun
from fedloom.tasks.score_answers import HEADLINES

LOWER = frozenset({"unparsed", "dropped", "unjudged"})
"""Scores of which less is better."""


class Measure(NamedTuple):
    """What a score measures: the task ("" where it was not recorded), and the score's name."""

    task: str
    metric: str

    @property
    def lower(self) -> bool:
        """Whether less of it is better."""
        return self.metric in LOWER


Kind = tuple[str, Measure]
"""A method and what is measured of it."""


def readings_of(sweep: SweepRun, method: str) -> dict[Measure, list[Reading]]:
    """Return all headline scores of a sweep: what is measured → readings.

    A cell that is not done has those that it would have, without a value.

    Args:
        sweep: What was read.
        method: The name under which readings have their method among their factors; no axis may have it.
    """
    scores = [_scores(cell) for cell in sweep.cells]
    expected = _expected(sweep, scores)
    found: dict[Measure, list[Reading]] = {}
    for cell, known in zip(sweep.cells, scores, strict=True):
        shared = {axis: str(cell.values[axis]) for axis in sweep.settings}
        values = known or dict.fromkeys(expected(cell))
        for (name, measure), value in values.items():
            clients = _clients(cell, name, measure.task)
            one = Reading(cell.name, {**shared, method: name}, cell.values.get(SEED), value, clients)
            found.setdefault(measure, []).append(one)
    return found


def _clients(cell: CellRun, method: str, task: str) -> tuple[float | None, ...]:
    """Return a method's score for each client that has the task, on data like the client's own."""
    found = client_scores(cell.scores.get(method, {}))
    return tuple(one[task] if task in one else one[""] for one in found if task in one or "" in one)


def _scores(cell: CellRun) -> dict[Kind, float | None]:
    """Return the headline scores of a cell: one of each method, or one of each task of it."""
    if cell.result is None:
        return {}
    tasks = tasks_in(cell.result)
    if len(tasks) > 1:
        return {
            (method, Measure(task, HEADLINES.get(task, "accuracy"))): value
            for method, found in task_scores(cell.result).items()
            for task, value in found.items()
        }
    measure = Measure("".join(tasks), main_score(cell.result))
    return {(method, measure): number(found, measure.metric) for method, found in cell.scores.items()}


def _expected(
    sweep: SweepRun, scores: Sequence[Mapping[Kind, float | None]]
) -> Callable[[CellRun], list[Kind]]:
    """Return what a cell that is not done would have: what others have, whichever value they share with it."""
    seen: dict[tuple[str, str], set[Kind]] = {}
    for cell, known in zip(sweep.cells, scores, strict=True):
        for axis, value in cell.values.items():
            seen.setdefault((axis, str(value)), set()).update(known)
    every = list(dict.fromkeys(kind for known in scores for kind in known))

    def expected(cell: CellRun) -> list[Kind]:
        shared = [seen[axis, str(value)] for axis, value in cell.values.items()]
        return [kind for kind in every if all(kind in kinds for kinds in shared if kinds)]

    return expected
