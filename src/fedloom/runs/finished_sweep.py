"""Run a sweep from Python, and read its runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from fedloom.config.yaml_document import read_document
from fedloom.experiment.grid import load_grid
from fedloom.report.sweeps.sweep_page import write_sweep_report
from fedloom.runs.finished_run import FinishedRun, ResultFolder, load_run
from fedloom.runs.run_folder import REPORT, RESULT
from fedloom.runs.sweep import default_sweep_folder, run_sweep
from fedloom.runs.typed_table import Table
from fedloom.system.errors import UserError
from fedloom.system.given_path import given_path
from fedloom.system.json_files import read_json
from fedloom.system.manifest import check_listed
from fedloom.system.progress import make_passing_progress

STATE = "sweep.json"
"""The file of a sweep folder with the state of every cell."""


@dataclass(frozen=True, slots=True)
class CellScore:
    """A score of a method in a cell of a sweep, on the test set.

    Attributes:
        cell: The name of the cell.
        values: Axis → the label of the cell.
        method: The method.
        slice: The modalities of the test examples that its model saw: "both", "image" or "text".
        metric: The name of the score.
        value: The score; None if it is undefined. A fraction 0..1, but "cider" 0..10.
        task: The task, or None for the mean over all tasks.
    """

    cell: str
    values: Mapping[str, Any]
    method: str
    slice: str
    metric: str
    value: float | None
    task: str | None = None


@dataclass(frozen=True, eq=False)
class FinishedSweep(ResultFolder):
    """A sweep."""

    @property
    def failed(self) -> dict[str, str]:
        """Name of a cell that failed → the reason."""
        return {cell["name"]: str(cell.get("error")) for cell in self._cells if cell["state"] == "failed"}

    @property
    def runs(self) -> dict[str, FinishedRun]:
        """Name of a cell → its run, for the cells that are finished."""
        return {
            cell["name"]: load_run(self.folder / cell["folder"])
            for cell in self._cells
            if cell["state"] == "done"
        }

    @cached_property
    def scores(self) -> Table[CellScore]:
        """Every score of every cell that is finished, as `FinishedRun.scores` has those of one."""
        values = {cell["name"]: cell["values"] for cell in self._cells}
        return Table(
            CellScore,
            (
                CellScore(name, values[name], *(getattr(row, column) for column in run.scores.columns))
                for name, run in self.runs.items()
                for row in run.scores
            ),
        )

    def report(self) -> Path:
        """Write the report again, and return its path."""
        write_sweep_report(self.folder)
        return self.folder / REPORT

    @property
    def _cells(self) -> list[Mapping[str, Any]]:
        return list(self.result["cells"])


def load_sweep(folder: Path | str) -> FinishedSweep:
    """Load a sweep, all of whose cells that are finished can be read.

    Raises:
        UserError: The folder holds no sweep with a result, or a file of it is damaged.
    """
    folder = given_path(folder, "folder")
    if (folder / "experiment.json").is_file():
        raise UserError(f"{folder} is a single run; load it with fedloom.load_run")
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} is not a sweep folder: it holds no {STATE}")
    if not (folder / RESULT).is_file():
        raise UserError(
            f"{folder} holds a sweep that is not finished; the same call of fedloom.sweep continues it"
        )
    check_listed(folder, (RESULT,))
    return FinishedSweep(folder, read_json(folder / RESULT, {"cells": list}))


def _changes(changes: Any) -> list[str]:
    """Return changes as the command line gives them."""
    if not isinstance(changes, Mapping):
        raise UserError(
            "fedloom.sweep: changes must be a dict from keys to values, such as {'train.lr': 3e-4}"
        )
    try:
        return [
            f"{key}={json.dumps(os.fspath(value) if isinstance(value, Path) else value)}"
            for key, value in cast("Mapping[str, Any]", changes).items()
        ]
    except (TypeError, ValueError) as error:
        raise UserError(f"fedloom.sweep: changes hold a value that is no plain data ({error})") from None


def sweep(
    recipe: str | Path | Mapping[str, Any],
    out: Path | str | None,
    changes: Mapping[str, Any],
    *,
    quick: bool,
    jobs: int,
    quiet: bool,
    rerun: bool,
    plugins: Sequence[str | Path] = (),
) -> FinishedSweep:
    """Run every experiment of a grid; see `fedloom.sweep`."""
    if not isinstance(recipe, str | Path | Mapping):
        raise UserError(
            f"fedloom.sweep: expected the name of a recipe, a path, or a dict with `grid`, not a value of type "
            f"{type(recipe).__name__}; the settings of an Experiment as a dict are .model_dump(mode='json', exclude_unset=True)"
        )
    if not isinstance(plugins, list | tuple) or not all(isinstance(plugin, str | Path) for plugin in plugins):
        raise UserError(
            "fedloom.sweep: plugins must be a list of paths of Python files, which every cell reads again"
        )
    if isinstance(recipe, Mapping):
        try:
            text = json.dumps(recipe)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"fedloom.sweep: the grid holds a value that is no plain data ({error})"
            ) from None
        source = read_document(text, "the grid")
    else:
        source = str(given_path(recipe, "recipe"))
    given = _changes(changes)
    grid = load_grid(source, given, [str(plugin) for plugin in plugins], quick=quick)
    folder = default_sweep_folder(grid) if out is None else given_path(out, "out")

    def tell(line: str) -> None:
        if not quiet:
            print(line)

    result = run_sweep(grid, folder, tell, lambda: make_passing_progress(quiet), jobs, rerun=rerun)
    return FinishedSweep(folder, result)
