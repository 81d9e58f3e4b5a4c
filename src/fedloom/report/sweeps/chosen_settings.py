"""Settings that a sweep chooses by validation score: one value per method for each axis in the recipe's `choose`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from fedloom.report.paired_tests import Estimate
from fedloom.report.run_results import Json, at, number
from fedloom.report.sweeps.sweep_results import SEED, CellRun, SweepRun, over_seeds


@dataclass(frozen=True)
class Choice:
    """The choice for a method in one setting of the other axes.

    Attributes:
        row: The setting, as the rows of tables name it.
        method: The method.
        values: Chosen axis → label; None where no value has validation scores of all seeds.
        validation: The highest mean validation score over seeds, a fraction; None without a choice.
        metric: Which score it is; None without a choice.
        test: The method's score on the test part at the chosen values; None without a choice.
        missing: Names of the cells without a validation score of the method; their values cannot be chosen.
    """

    row: str
    method: str
    values: Json | None
    validation: float | None
    metric: str | None
    test: Estimate | None
    missing: tuple[str, ...]


def choices(sweep: SweepRun) -> list[Choice]:
    """Choose for each setting and method the values with the highest mean validation score over seeds.

    The first in the listed order is taken of equals. A value that lacks the validation score of any of its cells cannot
    be chosen, for its mean would be one over other seeds. Test scores are not looked at.

    Args:
        sweep: What was read; nothing is chosen where it has no `choose`.
    """
    if not sweep.choose:
        return []
    return [one for row, cells in _rows(sweep).items() for one in _of_row(sweep, row, cells)]


def _rows(sweep: SweepRun) -> dict[str, list[CellRun]]:
    """Put cells together that differ only by the chosen axes and the seed; label → cells."""
    others = [axis for axis in sweep.settings if axis not in sweep.choose]
    found: dict[str, list[CellRun]] = {}
    for cell in sweep.cells:
        label = ", ".join(str(cell.values[axis]) for axis in others) or sweep.name
        found.setdefault(label, []).append(cell)
    return found


def _of_row(sweep: SweepRun, row: str, cells: Sequence[CellRun]) -> Iterator[Choice]:
    for method in sweep.methods:
        asked = [cell for cell in cells if cell.result is None or method in cell.scores]
        if not any(cell.result for cell in asked) and any(cell.result for cell in cells):
            continue  # the setting has other methods
        missing = tuple(cell.name for cell in asked if _validated(cell, method) is None)
        best: list[CellRun] = []
        for some in _by_value(sweep, asked):
            if all(cell.name not in missing for cell in some) and (
                not best or _mean(some, method) > _mean(best, method)
            ):
                best = some
        if not best:
            yield Choice(row, method, None, None, None, None, missing)
            continue
        values = {axis: best[0].values[axis] for axis in sweep.choose}
        metric = at(best[0].result, "validation", "methods", method, "metric")
        test = over_seeds(best, method)
        yield Choice(row, method, values, _mean(best, method), str(metric or "accuracy"), test, missing)


def _by_value(sweep: SweepRun, cells: Sequence[CellRun]) -> list[list[CellRun]]:
    """Put cells together that have the same values on the chosen axes, in the order of the axes' labels."""
    found: dict[tuple[int, ...], list[CellRun]] = {}
    places = {axis: [json.dumps(label) for label in sweep.axes[axis]] for axis in sweep.choose}
    for cell in cells:
        place = tuple(places[axis].index(json.dumps(cell.values[axis])) for axis in sweep.choose)
        found.setdefault(place, []).append(cell)
    return [found[place] for place in sorted(found)]


def _validated(cell: CellRun, method: str) -> float | None:
    return number(cell.result, "validation", "methods", method, "score")


def _mean(cells: Sequence[CellRun], method: str) -> float:
    return fmean(value for cell in cells if (value := _validated(cell, method)) is not None)


def chosen(sweep: SweepRun, found: Sequence[Choice]) -> SweepRun:
    """Return the sweep without the axes that were chosen along: each method has its scores at the chosen values.

    A method without a choice has no scores, so that comparisons name what they lack.

    Args:
        sweep: What was read.
        found: Its choices, as `choices` returns them; the sweep is returned as it is where it has no `choose`.
    """
    if not sweep.choose:
        return sweep
    of_row: dict[str, list[Choice]] = {}
    for one in found:
        of_row.setdefault(one.row, []).append(one)
    cells: list[CellRun] = []
    for row, several in _rows(sweep).items():
        by_seed: dict[str, list[CellRun]] = {}
        for cell in several:
            by_seed.setdefault(json.dumps(cell.values.get(SEED)), []).append(cell)
        cells += [_merged(sweep, row, some, of_row.get(row, [])) for some in by_seed.values()]
    axes = {axis: labels for axis, labels in sweep.axes.items() if axis not in sweep.choose}
    return replace(sweep, axes=axes, cells=tuple(cells), choose=())


def _merged(sweep: SweepRun, row: str, cells: Sequence[CellRun], found: Sequence[Choice]) -> CellRun:
    """Make one cell of those that differ by the chosen axes only: each method's scores come from its own."""
    first = next((cell for cell in cells if cell.result is not None), cells[0])
    scores: dict[str, Any] = {}
    for choice in found:
        own = [cell for cell in cells if choice.values is not None and _has(cell, choice.values)]
        scores[choice.method] = own[0].scores.get(choice.method, {}) if own else {}
    values = {axis: label for axis, label in first.values.items() if axis not in sweep.choose}
    seed = f"{SEED}={json.dumps(values[SEED])}" if SEED in values else ""
    name = ", ".join(word for word in (row, seed) if word)
    result = None if first.result is None else {**first.result, "scores": scores}
    return replace(first, name=name, values=values, result=result)


def _has(cell: CellRun, values: Mapping[str, Any]) -> bool:
    return all(json.dumps(cell.values[axis]) == json.dumps(label) for axis, label in values.items())


def choice_json(one: Choice) -> dict[str, Any]:
    """Return a choice for `result.json`; scores are fractions as all scores there."""
    test = one.test
    return {
        "row": one.row,
        "method": one.method,
        "values": one.values,
        "validation": one.validation,
        "metric": one.metric,
        "test": None if test is None else {"mean": test.mean, "half": test.half, "seeds": test.seeds},
        "missing": list(one.missing),
    }
