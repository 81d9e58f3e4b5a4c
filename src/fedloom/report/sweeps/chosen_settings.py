"""Settings that a sweep chooses by validation score: one value per method for each axis in the recipe's `choose`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from fedloom.report.run_results import Json, at, number
from fedloom.report.significance import Estimate
from fedloom.report.sweeps.sweep_results import SEED, CellRun, SweepRun, mean_over_seeds


@dataclass(frozen=True)
class Choice:
    """The chosen values of a method in one setting of the other axes.

    Attributes:
        row: The setting, as the rows of tables name it.
        method: The method.
        values: Chosen axis → label; None if no value has validation scores of all seeds.
        validation: The highest mean validation score over seeds, a fraction; None without a choice.
        metric: The name of the validation score; None without a choice.
        test: The method's score on the test set at the chosen values; None without a choice.
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

    Of equal values, the first in the order of the axis is chosen. A value that lacks the validation score of one of its
    cells cannot be chosen, because its mean would be over other seeds. Test scores are not used.

    Args:
        sweep: The sweep; without axes in `choose` there are no choices.
    """
    if not sweep.choose:
        return []
    return [choice for row, cells in _rows(sweep).items() for choice in _choices_of_row(sweep, row, cells)]


def _rows(sweep: SweepRun) -> dict[str, list[CellRun]]:
    """Group cells that differ only in the chosen axes and the seed; label → cells."""
    others = [axis for axis in sweep.settings if axis not in sweep.choose]
    rows: dict[str, list[CellRun]] = {}
    for cell in sweep.cells:
        label = ", ".join(str(cell.values[axis]) for axis in others) or sweep.name
        rows.setdefault(label, []).append(cell)
    return rows


def _choices_of_row(sweep: SweepRun, row: str, cells: Sequence[CellRun]) -> Iterator[Choice]:
    for method in sweep.methods:
        candidates = [cell for cell in cells if cell.result is None or method in cell.scores]
        if not any(cell.result for cell in candidates) and any(cell.result for cell in cells):
            continue  # the setting has other methods
        missing = tuple(cell.name for cell in candidates if _validated(cell, method) is None)
        best: list[CellRun] = []
        for group in _by_value(sweep, candidates):
            if all(cell.name not in missing for cell in group) and (
                not best or _mean(group, method) > _mean(best, method)
            ):
                best = group
        if not best:
            yield Choice(row, method, None, None, None, None, missing)
            continue
        values = {axis: best[0].values[axis] for axis in sweep.choose}
        metric = at(best[0].result, "validation", "methods", method, "metric")
        test = mean_over_seeds(best, method)
        yield Choice(row, method, values, _mean(best, method), str(metric or "accuracy"), test, missing)


def _by_value(sweep: SweepRun, cells: Sequence[CellRun]) -> list[list[CellRun]]:
    """Group cells that have the same values on the chosen axes, in the order of the axes' labels."""
    groups: dict[tuple[int, ...], list[CellRun]] = {}
    labels = {axis: [json.dumps(label) for label in sweep.axes[axis]] for axis in sweep.choose}
    for cell in cells:
        position = tuple(labels[axis].index(json.dumps(cell.values[axis])) for axis in sweep.choose)
        groups.setdefault(position, []).append(cell)
    return [groups[position] for position in sorted(groups)]


def _validated(cell: CellRun, method: str) -> float | None:
    return number(cell.result, "validation", "methods", method, "score")


def _mean(cells: Sequence[CellRun], method: str) -> float:
    return fmean(value for cell in cells if (value := _validated(cell, method)) is not None)


def with_chosen_values(sweep: SweepRun, picked: Sequence[Choice]) -> SweepRun:
    """Return the sweep without the axes in `choose`: each method has its scores at the chosen values.

    A method without a choice has no scores, so that comparisons list the missing ones.

    Args:
        sweep: The sweep; without axes in `choose` it is returned unchanged.
        picked: Its choices, as `choices` returns them.
    """
    if not sweep.choose:
        return sweep
    of_row: dict[str, list[Choice]] = {}
    for choice in picked:
        of_row.setdefault(choice.row, []).append(choice)
    cells: list[CellRun] = []
    for row, members in _rows(sweep).items():
        by_seed: dict[str, list[CellRun]] = {}
        for cell in members:
            by_seed.setdefault(json.dumps(cell.values.get(SEED)), []).append(cell)
        cells += [_merged(sweep, row, same_seed, of_row.get(row, [])) for same_seed in by_seed.values()]
    axes = {axis: labels for axis, labels in sweep.axes.items() if axis not in sweep.choose}
    return replace(sweep, axes=axes, cells=tuple(cells), choose=())


def _merged(sweep: SweepRun, row: str, cells: Sequence[CellRun], picked: Sequence[Choice]) -> CellRun:
    """Merge cells that differ only in the chosen axes: each method has its scores at its chosen values."""
    first = next((cell for cell in cells if cell.result is not None), cells[0])
    scores: dict[str, Any] = {}
    for choice in picked:
        own = [cell for cell in cells if choice.values is not None and _has_values(cell, choice.values)]
        scores[choice.method] = own[0].scores.get(choice.method, {}) if own else {}
    values = {axis: label for axis, label in first.values.items() if axis not in sweep.choose}
    seed = f"{SEED}={json.dumps(values[SEED])}" if SEED in values else ""
    name = ", ".join(word for word in (row, seed) if word)
    result = None if first.result is None else {**first.result, "scores": scores}
    return replace(first, name=name, values=values, result=result)


def _has_values(cell: CellRun, values: Mapping[str, Any]) -> bool:
    return all(json.dumps(cell.values[axis]) == json.dumps(label) for axis, label in values.items())


def choice_json(choice: Choice) -> dict[str, Any]:
    """Return a choice for `result.json`; scores are fractions."""
    test = choice.test
    return {
        "row": choice.row,
        "method": choice.method,
        "values": choice.values,
        "validation": choice.validation,
        "metric": choice.metric,
        "test": None if test is None else {"mean": test.mean, "half": test.half, "seeds": test.seeds},
        "missing": list(choice.missing),
    }
