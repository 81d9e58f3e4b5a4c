"""Run a sweep from Python, and read its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.config.yaml_document import read_document
from fedloom.experiment.grid import load_grid
from fedloom.report.sweeps.sweep_page import write_sweep_report
from fedloom.runs.finished_run import FinishedRun, ResultFolder, load_run
from fedloom.runs.run_folder import REPORT
from fedloom.runs.sweep import default_sweep_folder, run_sweep
from fedloom.system.errors import UserError
from fedloom.system.progress import make_passing_progress


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

    def report(self) -> Path:
        """Write the report again, and return its path."""
        write_sweep_report(self.folder)
        return self.folder / REPORT

    @property
    def _cells(self) -> list[Mapping[str, Any]]:
        return list(self.result["cells"])


def sweep(
    recipe: str | Path | Mapping[str, Any],
    out: Path | str | None,
    changes: Mapping[str, Any],
    *,
    quick: bool,
    jobs: int,
    quiet: bool,
    rerun: bool,
) -> FinishedSweep:
    """Run every experiment of a grid; see `fedloom.sweep`."""
    if isinstance(recipe, Mapping):
        try:
            text = json.dumps(recipe)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"fedloom.sweep: the grid holds a value that is no plain data ({error})"
            ) from None
        source = read_document(text, "the grid")
    else:
        source = str(recipe)
    given = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    grid = load_grid(source, given, quick=quick)
    folder = default_sweep_folder(grid) if out is None else Path(out)

    def tell(line: str) -> None:
        if not quiet:
            print(line)

    result = run_sweep(grid, folder, tell, lambda: make_passing_progress(quiet), jobs, rerun=rerun)
    return FinishedSweep(folder, result)
