"""Run one cell of a sweep, in this process or as a task on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedloom.engine.ray_tasks import run_tasks
from fedloom.experiment.experiment import Experiment
from fedloom.runs.ray_setup import actor_request, require_serializable
from fedloom.system.errors import error_sentence
from fedloom.system.progress import Progress

Cell = tuple[Experiment, Path]
"""An experiment and its run folder."""


def run_cell(cell: Cell, progress: Progress, models: dict[str, Any]) -> str | None:
    """Run a cell, and return the reason for which it failed, or None."""
    from fedloom.runs.single_run import run_experiment

    try:
        run_experiment(*cell, progress, models)
    except Exception as error:  # the other cells go on
        return error_sentence(error)
    return None


def run_on_cluster(cells: Mapping[int, Cell], jobs: int) -> Iterator[tuple[int, bool, str | None]]:
    """Run cells as tasks on the Ray cluster that the first of them names, each in one process.

    Args:
        cells: Place in the grid → cell. All nodes must see the folders at the same path.
        jobs: Cells at once; fewer if the cluster lacks room.

    Yields:
        (place, False, None) when a cell begins, and (place, True, the reason for which it failed or None) at its end.

    Raises:
        UserError: Ray is not installed or not reached, or a cell holds Python values, which no other process can get.
    """
    for experiment, _ in cells.values():
        require_serializable(experiment)
    request = actor_request(next(iter(cells.values()))[0], jobs)
    arguments = {
        place: (experiment.to_json(), str(folder.absolute())) for place, (experiment, folder) in cells.items()
    }
    return run_tasks(_run, arguments, request)


def _run(models: dict[str, Any], experiment: str, folder: str) -> str | None:
    return run_cell((Experiment.from_json(experiment), Path(folder)), Progress(None), models)
