"""Read a sweep folder back and average its cells over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fedloom.report.client_verdicts import client_tasks, own_scores
from fedloom.report.federation_gain import baseline_of, count_clients, local_method, main_score, tasks_in
from fedloom.report.findings import headline_method
from fedloom.report.run_results import Json, at, number, read_document
from fedloom.report.shared_scores import for_everybody, has_both, own_models, shared_model
from fedloom.report.significance import ClientCounts, Estimate, estimate
from fedloom.report.tables import base, is_federated, percent
from fedloom.report.training_work import Work, read_work
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest
from fedloom.system.json_files import parse_object, read_json, require_key
from fedloom.system.manifest import SEAL, check_listed, read_sealed

Models = Callable[[Json], Json | None]
"""A function from a method's scores to those of its shared model, or of clients' own models; see `shared_scores`."""

SEED = "seed"
"""The axis that is averaged over."""

NO_SCORES = ("best", "worst", "unparsed")
"""Figures among a method's scores that are not scores themselves."""


@dataclass(frozen=True)
class CellRun:
    """A cell of a sweep with its result.

    Attributes:
        name: Its name, made of its labels.
        values: Axis → label.
        digest: Digest of its experiment.
        folder: Its run folder, relative to the sweep folder.
        state: "waiting", "begun", "done" or "failed".
        error: Why it failed, or None.
        result: The content of its result.json; None unless it is done.
        text_only: Whether its model is a language model that sees no images; False unless it is done.
        linear_text: The text features of its linear baseline, `evaluate.linear_text`; "words" unless it is done.
        work: Method → its work; empty unless the cell is done and has its record.
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
    work: Mapping[str, Work] = field(default_factory=dict)

    @property
    def scores(self) -> Json:
        """Method → scores; empty unless the cell is done."""
        return (self.result or {}).get("scores", {})

    @property
    def metric(self) -> str | None:
        """The name of its main score; None unless the cell is done."""
        return main_score(self.result) if self.result else None


@dataclass(frozen=True)
class SweepRun:
    """A sweep: its axes with their labels, its cells, and published figures or None.

    On the axes in `choose`, the value with the highest validation score is to be chosen for each method.
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
        """The main score of the cells, or the first one if they have several."""
        return next((cell.metric for cell in self.cells if cell.metric), "accuracy")

    @property
    def mixed_tasks(self) -> bool:
        """Whether cells have different tasks, whose scores must not be averaged together."""
        return len(self.by_task) > 1

    @property
    def by_task(self) -> dict[tuple[str, ...], SweepRun]:
        """The finished cells of each task, or of the same tasks, as a sweep; scores of different tasks are not averaged."""
        found: dict[tuple[str, ...], list[CellRun]] = {}
        for cell in self.cells:
            if cell.result is not None:
                found.setdefault(tuple(sorted(tasks_in(cell.result))), []).append(cell)
        return {tasks: replace(self, cells=tuple(cells)) for tasks, cells in found.items()}

    @property
    def has_both(self) -> bool:
        """Whether any method has a shared model and clients' own models."""
        return any(has_both(cell.scores) for cell in self.cells)

    @property
    def metrics(self) -> list[str]:
        """The names of all scores of the cells, with `metric` first."""
        others = (
            name for cell in self.cells for scores in cell.scores.values() for name in scores_of(scores)
        )
        return list(dict.fromkeys([self.metric, *others]))

    @property
    def parts(self) -> Json:
        """Name of an algorithm or part → what it does, for the cells that are done."""
        return {name: text for cell in self.cells for name, text in (at(cell.result, "parts") or {}).items()}

    @property
    def text_only(self) -> bool:
        """Whether the models of all cells that are done see no images."""
        done = [cell.text_only for cell in self.cells if cell.result is not None]
        return bool(done) and all(done)

    @property
    def linear_texts(self) -> list[str]:
        """The text features of the linear baselines of the cells, in order of first appearance."""
        return list(dict.fromkeys(cell.linear_text for cell in self.cells if "linear" in cell.scores))

    @property
    def settings(self) -> list[str]:
        """All axes but the seed."""
        return [axis for axis in self.axes if axis != SEED]


def read_sweep(folder: Path) -> SweepRun:
    """Read `sweep.json` and the results of the cells that are done.

    Raises:
        UserError: There is no sweep in the folder, or a file is broken.
    """
    file = folder / "sweep.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a sweep folder: it has no sweep.json")
    value = read_state(file)
    cells, axes = [], require_key(file, value, "axes", dict)
    for axis in axes:
        require_key(file, axes, axis, list)
    for row in require_key(file, value, "cells", list):
        if not isinstance(row, dict):
            raise UserError(f'{file}: every entry of "cells" must be an object')
        state, cell_folder = require_key(file, row, "state", str), require_key(file, row, "folder", str)
        result = _result(folder / cell_folder, row.get("result")) if state == "done" else None
        values, digest = require_key(file, row, "values", dict), require_key(file, row, "digest", str)
        if lacking := [axis for axis in axes if axis not in values]:
            raise UserError(f'{file}: "values" of the cell {row.get("name")!r} lack the axis {lacking[0]!r}')
        cells.append(
            CellRun(
                require_key(file, row, "name", str),
                values,
                digest,
                cell_folder,
                state,
                row.get("error"),
                result,
                result is not None and _text_only(folder / cell_folder),
                _linear_text(folder / cell_folder) if result is not None else "words",
                read_work(folder / cell_folder) if result is not None else {},
            )
        )
    name, published = require_key(file, value, "name", str), value.get("published")
    if published is not None:
        published = require_key(file, value, "published", dict)
        for setting in require_key(file, published, "scores", dict):
            require_key(file, published["scores"], setting, dict)
    digest, quick = require_key(file, value, "digest", str), bool(value.get("quick"))
    choose = require_key(file, value, "choose", list) if "choose" in value else []
    if lacking := [axis for axis in choose if axis not in axes or axis == SEED]:
        raise UserError(f'{file}: "choose" names {lacking[0]!r}, which is no axis to choose along')
    return SweepRun(name, digest, quick, axes, tuple(cells), published, tuple(choose))


def read_state(file: Path) -> dict[str, Any]:
    """Read a `sweep.json`, whose seal version 0.1 did not write.

    Raises:
        UserError: It is missing or damaged.
    """
    value = read_json(file)
    return read_sealed(file) if "version" in value or SEAL in value else value


def _text_only(folder: Path) -> bool:
    """Return whether a run's model sees no images, from the first line of its record."""
    file = folder / "record.jsonl"
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as record:
        return at(parse_object(file, record.readline()), "images") is False


def _linear_text(folder: Path) -> str:
    """Return the text features of the linear baseline in a run's experiment."""
    file = folder / "experiment.json"
    value = read_json(file) if file.is_file() else {}
    return str(at(value, "evaluate", "linear_text") or "words")


def _result(folder: Path, expected: str | None) -> Json:
    """Read the result of a cell that is done, and check the digests of all its files that a report reads.

    Raises:
        UserError: A file is missing or damaged.
    """
    file = folder / "result.json"
    # Results that were copied without the other files still make a page; what is there is as the run wrote it.
    others = [name for name in ("experiment.json", "record.jsonl") if (folder / name).is_file()]
    check_listed(folder, [file.name, *others])
    if expected is not None and (not file.is_file() or file_digest(file) != expected):
        raise UserError(
            f"{file} differs from the result of the sweep's cell; run the sweep's command again to check all cells"
        )
    result = read_document(file)
    for method in require_key(file, result, "scores", dict):
        require_key(file, result["scores"], method, dict)
    return result


def scores_of(scores: Json) -> list[str]:
    """Return the names of a method's scores, without figures of single clients and other figures."""
    return [name for name in scores if number(scores, name) is not None and name not in NO_SCORES]


def cells_by_setting(sweep: SweepRun) -> dict[str, list[CellRun]]:
    """Group cells that differ only in their seed; label → cells, in the sweep's order."""
    groups: dict[str, list[CellRun]] = {}
    for cell in sweep.cells:
        words = [str(cell.values[axis]) for axis in sweep.settings]
        groups.setdefault(", ".join(words) or sweep.name, []).append(cell)
    return groups


def cells_by_value(sweep: SweepRun, axis: str) -> dict[str, list[CellRun]]:
    """Group cells that have the same value on one axis; label → cells, in the order of the axis."""
    return {
        str(value): [cell for cell in sweep.cells if cell.values[axis] == value] for value in sweep.axes[axis]
    }


def by_seed(
    cells: Sequence[CellRun], method: str, metric: str | None = None, of: Models = for_everybody
) -> dict[Any, float]:
    """Return seed → score of a method, averaged over the cells with that seed that have the score.

    Args:
        cells: The cells.
        method: The method.
        metric: The score; None for the main score of each cell, which must then have the same task.
        of: The models whose scores count.
    """
    scores: dict[Any, list[float]] = {}
    for cell in cells:
        value = number(of(cell.scores.get(method, {})), metric or cell.metric)
        if value is not None:
            scores.setdefault(cell.values.get(SEED), []).append(value)
    return {seed: fmean(values) for seed, values in scores.items()}


def mean_over_seeds(
    cells: Sequence[CellRun], method: str, metric: str | None = None, of: Models = for_everybody
) -> Estimate | None:
    """Return a method's mean score with its interval over seeds, see `by_seed`; None if no cell has the score."""
    return estimate(by_seed(cells, method, metric, of).values())


def paired_difference(
    cells: Sequence[CellRun], method: str, other: str, metric: str | None = None
) -> Estimate | None:
    """Return the mean difference of two methods on the global test set with its interval, paired by seed; None without pairs.

    Shared models are compared with shared ones, and means over clients' own models with such means. Only against training
    alone, which has no shared model, a shared model is compared with the mean over clients' own models.
    """
    kinds: list[tuple[Models, Models]] = [(shared_model, shared_model), (own_models, own_models)]
    if base(other) == "local":
        kinds.insert(1, (shared_model, own_models))
    for ours_of, theirs_of in kinds:
        ours, theirs = by_seed(cells, method, metric, ours_of), by_seed(cells, other, metric, theirs_of)
        if paired := estimate([value - theirs[seed] for seed, value in ours.items() if seed in theirs]):
            return paired
    return None


def own_difference(cells: Sequence[CellRun], method: str, other: str) -> Estimate | None:
    """Return the mean difference of two methods on data like each client's own, paired by client and seed.

    It is averaged over the clients of a cell, over the cells of a seed, and then over seeds; None without pairs, and if cells
    have several tasks.
    """
    scores: dict[Any, list[float]] = {}
    for cell in cells:
        if cell.result is None or len(tasks := client_tasks(cell.result)) != 1:
            continue
        ours, theirs = (own_scores(cell.scores.get(name, {}), tasks[0]) for name in (method, other))
        differences = [value - theirs[client] for client, value in ours.items() if client in theirs]
        if differences:
            scores.setdefault(cell.values.get(SEED), []).append(fmean(differences))
    return estimate(fmean(values) for values in scores.values())


def metric_of(cells: Sequence[CellRun]) -> str | None:
    """Return the name of the main score of cells with one task; None if no cell is done."""
    return next((cell.metric for cell in cells if cell.metric), None)


def best_federated(scores: Mapping[str, float | None]) -> str | None:
    """Return the federated method with the highest score, the first of equal ones; None if there is none."""
    known = {method: value for method, value in scores.items() if is_federated(method) and value is not None}
    return max(known, key=lambda method: known[method], default=None)


def local_of(sweep: SweepRun) -> str | None:
    """Return the method of a sweep by which each client trains alone, or None."""
    return local_method(dict.fromkeys(sweep.methods))


def baselines_in(sweep: SweepRun) -> dict[str, str | None]:
    """Return method → the method with whose models clients compare its models, or None; see `baseline_of`."""
    return {method: baseline_of(method, sweep.methods) for method in sweep.methods}


def headline(result: Json) -> str:
    """Summarize a run in one line: the scores of local training, the main federated method and the highest one.

    The score of a federated method is on the global test set, followed by the numbers of clients that are better off and
    worse off with it than alone.
    """
    main = main_score(result)
    reached = {method: number(for_everybody(scores), main) for method, scores in result["scores"].items()}
    best, local = best_federated(reached), local_method(reached)
    methods = [method for method in (local, headline_method(result), best) if method]
    shown = list(dict.fromkeys(methods)) or list(reached)[:3]
    texts = {
        method: f"{method} {percent(reached[method])}{_clients_clause(result, method)}" for method in shown
    }
    if best in methods[:-1]:
        return ", ".join(texts.values())
    return ", ".join(
        f"highest on the test set: {text}" if method == best else text for method, text in texts.items()
    )


def _clients_clause(result: Json, method: str) -> str:
    local = baseline_of(method, result["scores"])
    if local is None or not is_federated(method):
        return ""
    counts = count_clients(result["scores"][method], result["scores"][local])
    return (
        f" ({counts.better} of {counts.known} clients better off than alone, {counts.worse} worse off)"
        if counts
        else ""
    )


def count_clients_in_cells(cells: Sequence[CellRun], method: str, other: str | None) -> ClientCounts:
    """Count the clients of all cells that are better off and worse off with a method than with another one."""
    counts = ClientCounts()
    for cell in cells:
        if other is not None and method in cell.scores and other in cell.scores:
            counts = counts.plus(count_clients(cell.scores[method], cell.scores[other]))
    return counts
