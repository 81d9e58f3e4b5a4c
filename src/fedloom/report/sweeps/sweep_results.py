"""Read a sweep folder back and average its cells over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedloom.report.federation_gain import alone_in, fares, main_score, tasks_in
from fedloom.report.findings import headline_method
from fedloom.report.paired_tests import Estimate, Fares, estimate
from fedloom.report.run_results import Json, at, number, read_shaped
from fedloom.report.tables import federated, percent
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest
from fedloom.system.json_files import expect, read_json
from fedloom.system.manifest import SEAL, check_files, read_manifest, read_sealed

SEED = "seed"
"""The axis that is averaged over."""

NO_SCORES = ("best", "worst", "unparsed")
"""Figures beside a method's scores that tell something else."""


@dataclass(frozen=True)
class CellRun:
    """One cell as it was read.

    Attributes:
        name: Made of its labels.
        values: Axis → label.
        digest: Of its experiment.
        folder: Its run folder, relative to the sweep's.
        state: "waiting", "begun", "done" or "failed".
        error: Why it failed, or None.
        result: What its result.json holds; None unless it is done.
        text_only: Whether its model is a language model that sees no images, as far as it has begun.
        linear_text: What its linear baseline knows of texts, `evaluate.linear_text`, as far as it has begun.
    """

    name: str
    values: Json
    digest: str
    folder: str
    state: str
    error: str | None
    result: Json | None
    text_only: bool = False
    linear_text: str = "words"

    @property
    def scores(self) -> Json:
        """Method → scores; empty unless the cell is done."""
        return (self.result or {}).get("scores", {})

    @property
    def metric(self) -> str | None:
        """The score that stands for it; None unless the cell is done."""
        return main_score(self.result) if self.result else None


@dataclass(frozen=True)
class SweepRun:
    """A sweep as it was read: its axes with their labels, its cells, and figures of others or None.

    Of the axes in `choose`, each method has the value with the highest validation score.
    """

    name: str
    digest: str
    quick: bool
    axes: Mapping[str, Sequence[Any]]
    cells: tuple[CellRun, ...]
    published: Json | None
    choose: tuple[str, ...] = ()

    @property
    def methods(self) -> list[str]:
        """All methods of all cells, in order of first appearance."""
        return list(dict.fromkeys(method for cell in self.cells for method in cell.scores))

    @property
    def metric(self) -> str:
        """The score that stands for a cell, the first one of several."""
        return next((cell.metric for cell in self.cells if cell.metric), "accuracy")

    @property
    def mixed(self) -> bool:
        """Whether cells have different tasks, each with its own score, so that no mean goes over all of them."""
        return len({frozenset(tasks_in(cell.result)) for cell in self.cells if cell.result}) > 1

    @property
    def metrics(self) -> list[str]:
        """All scores that some cell has, that one first."""
        found = (name for cell in self.cells for scores in cell.scores.values() for name in scores_of(scores))
        return list(dict.fromkeys([self.metric, *found]))

    @property
    def parts(self) -> Json:
        """What algorithms and parts do, by name, as far as cells are done."""
        return {name: text for cell in self.cells for name, text in (at(cell.result, "parts") or {}).items()}

    @property
    def text_only(self) -> bool:
        """Whether no cell's model sees images, as far as cells are done."""
        done = [cell.text_only for cell in self.cells if cell.result is not None]
        return bool(done) and all(done)

    @property
    def linear_texts(self) -> list[str]:
        """What the linear baselines of the cells that are done know of texts, in order of first appearance."""
        return list(dict.fromkeys(cell.linear_text for cell in self.cells if "linear" in cell.scores))

    @property
    def settings(self) -> list[str]:
        """The axes that are not averaged over."""
        return [axis for axis in self.axes if axis != SEED]


def read_sweep(folder: Path) -> SweepRun:
    """Read `sweep.json` and the results of the cells that are done.

    Raises:
        UserError: There is no sweep in the folder, or a file is broken.
    """
    file = folder / "sweep.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a sweep folder: it has no sweep.json")
    value = read_json(file)
    if "version" in value or SEAL in value:  # version 0.1 wrote neither
        value = read_sealed(file)
    cells, axes = [], expect(file, value, "axes", dict)
    for axis in axes:
        expect(file, axes, axis, list)
    for row in expect(file, value, "cells", list):
        if not isinstance(row, dict):
            raise UserError(f'{file}: "cells" holds something that is no object')
        state, place = expect(file, row, "state", str), expect(file, row, "folder", str)
        result = _result(folder / place, row.get("result")) if state == "done" else None
        values, digest = expect(file, row, "values", dict), expect(file, row, "digest", str)
        if lacking := [axis for axis in axes if axis not in values]:
            raise UserError(f'{file}: "values" of the cell {row.get("name")!r} lack the axis {lacking[0]!r}')
        cells.append(
            CellRun(
                expect(file, row, "name", str),
                values,
                digest,
                place,
                state,
                row.get("error"),
                result,
                result is not None and _text_only(folder / place),
                _linear_text(folder / place) if result is not None else "words",
            )
        )
    name, published = expect(file, value, "name", str), value.get("published")
    if published is not None:
        published = expect(file, value, "published", dict)
        for setting in expect(file, published, "scores", dict):
            expect(file, published["scores"], setting, dict)
    digest, quick = expect(file, value, "digest", str), bool(value.get("quick"))
    choose = expect(file, value, "choose", list) if "choose" in value else []
    if lacking := [axis for axis in choose if axis not in axes or axis == SEED]:
        raise UserError(f'{file}: "choose" names {lacking[0]!r}, which is no axis to choose along')
    return SweepRun(name, digest, quick, axes, tuple(cells), published, tuple(choose))


def _text_only(folder: Path) -> bool:
    """Read from the first line of a run's record whether its model sees no images."""
    try:
        with (folder / "record.jsonl").open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):  # results that were copied without their records still make a page
        return False
    return at(first, "images") is False


def _linear_text(folder: Path) -> str:
    """Read from a run's experiment what its linear baseline knows of texts."""
    try:
        value = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # results that were copied without their experiments still make a page
        value = {}
    return str(at(value, "evaluate", "linear_text") or "words")


def _result(folder: Path, wanted: str | None) -> Json:
    """Read what the run of a cell that is done came to, which has a SHA-256 unless version 0.1 wrote it."""
    file, manifest = folder / "result.json", read_manifest(folder)
    if manifest is not None:
        check_files(folder, manifest, [file.name])
    if wanted is not None and (not file.is_file() or file_digest(file) != wanted):
        raise UserError(
            f"{file} differs from the result of the sweep's cell; run the sweep's command again to check all cells"
        )
    result = read_shaped(file)
    for method in expect(file, result, "scores", dict):
        expect(file, result["scores"], method, dict)
    return result


def scores_of(found: Json) -> list[str]:
    """Return the names of a method's scores, without what belongs to one of its clients or is no score."""
    return [name for name in found if number(found, name) is not None and name not in NO_SCORES]


def rows_of(sweep: SweepRun) -> dict[str, list[CellRun]]:
    """Put cells together that differ by their seed only; label → cells, in the sweep's order."""
    found: dict[str, list[CellRun]] = {}
    for cell in sweep.cells:
        words = [str(cell.values[axis]) for axis in sweep.settings]
        found.setdefault(", ".join(words) or sweep.name, []).append(cell)
    return found


def along(sweep: SweepRun, axis: str) -> dict[str, list[CellRun]]:
    """Put cells together that have the same value on one axis; label → cells, in the axis' order."""
    return {
        str(value): [cell for cell in sweep.cells if cell.values[axis] == value] for value in sweep.axes[axis]
    }


def by_seed(cells: Sequence[CellRun], method: str, metric: str | None = None) -> dict[Any, float]:
    """Return seed → score of a method, averaged over the cells with that seed; cells without it are left out.

    Without a metric it is the score that stands for each cell; cells must not be mixed then.
    """
    found: dict[Any, list[float]] = {}
    for cell in cells:
        value = number(cell.scores.get(method), metric or cell.metric)
        if value is not None:
            found.setdefault(cell.values.get(SEED), []).append(value)
    return {seed: fmean(values) for seed, values in found.items()}


def over_seeds(cells: Sequence[CellRun], method: str, metric: str | None = None) -> Estimate | None:
    """Return a method's mean score with its interval over seeds; None where no cell has one."""
    return estimate(by_seed(cells, method, metric).values())


def difference(
    cells: Sequence[CellRun], method: str, other: str, metric: str | None = None
) -> Estimate | None:
    """Return how much better a method is than another, paired by seed, so that what seeds share cancels out."""
    ours, theirs = by_seed(cells, method, metric), by_seed(cells, other, metric)
    return estimate([value - theirs[seed] for seed, value in ours.items() if seed in theirs])


def metric_of(cells: Sequence[CellRun]) -> str | None:
    """Return the score that stands for cells of one task; None where none is done."""
    return next((cell.metric for cell in cells if cell.metric), None)


def best_federated(scores: Mapping[str, float | None]) -> str | None:
    """Return the federated method with the highest score, the first of equals; None where there is none."""
    known = {method: value for method, value in scores.items() if federated(method) and value is not None}
    return max(known, key=lambda method: known[method], default=None)


def local_of(sweep: SweepRun) -> str | None:
    """Return the method by which each client trains alone, or None."""
    return alone_in(dict.fromkeys(sweep.methods))


def headline(result: Json) -> str:
    """Summarize a run in a few figures: local training, one federated method, and the highest on the test part if another.

    Beside the score of a federated method on the global test set stands how many clients it serves better than their
    own models, where they trained alone.
    """
    main = main_score(result)
    reached = {method: number(scores, main) for method, scores in result["scores"].items()}
    best, local = best_federated(reached), alone_in(reached)
    told = [method for method in (local, headline_method(result), best) if method]
    shown = list(dict.fromkeys(told)) or list(reached)[:3]
    found = {
        method: f"{method} {percent(reached[method])}{_served(result, method, local)}" for method in shown
    }
    if best in told[:-1]:
        return ", ".join(found.values())
    return ", ".join(
        f"highest on the test part: {one}" if method == best else one for method, one in found.items()
    )


def _served(result: Json, method: str, local: str | None) -> str:
    if local is None or not federated(method):
        return ""
    found = fares(result["scores"][method], result["scores"][local])
    return (
        f" ({found.better} of {found.known} clients better than alone, {found.worse} worse)" if found else ""
    )


def _clients(cells: Sequence[CellRun], sweep: SweepRun) -> dict[str, dict[str, int]]:
    """Return method → how many clients of some cells it serves better, as well, and worse than their own models."""
    local, found = local_of(sweep), dict[str, Fares]()
    for cell in cells:
        for method in cell.scores:
            if local is not None and local in cell.scores and method != local:
                more = fares(cell.scores[method], cell.scores[local])
                found[method] = found.get(method, Fares()).plus(more)
    return {method: one._asdict() for method, one in found.items()}


def summary(sweep: SweepRun) -> dict[str, Any]:
    """Return what the sweep's `result.json` holds: every cell's scores, and every row's means over seeds."""
    rows = [
        {
            "row": name,
            "metric": metric_of(cells),
            "methods": {
                method: {"mean": found.mean, "half": found.half, "seeds": found.seeds}
                for method in sweep.methods
                if (found := over_seeds(cells, method))
            },
            "clients": _clients(cells, sweep),
        }
        for name, cells in rows_of(sweep).items()
    ]
    cells = [
        {
            "name": cell.name,
            "values": dict(cell.values),
            "digest": cell.digest,
            "folder": cell.folder,
            "state": cell.state,
            "error": cell.error,
            "scores": dict(cell.scores),
            "bytes": at(cell.result, "bytes"),
            "seconds": at(cell.result, "seconds"),
        }
        for cell in sweep.cells
    ]
    head = {"name": sweep.name, "digest": sweep.digest, "quick": sweep.quick}
    return head | {
        "axes": dict(sweep.axes),
        "metric": None if sweep.mixed else sweep.metric,
        "rows": rows,
        "cells": cells,
    }
