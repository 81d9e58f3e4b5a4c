"""Run one cell of a sweep, here or as a task on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedloom.experiment import Experiment
from fedloom.failures import sentence
from fedloom.progress import Progress

Cell = tuple[Experiment, Path]
"""What is run, and its run folder."""


def run_one(cell: Cell, progress: Progress, models: dict[str, Any]) -> str | None:
    """Run a cell and return the mistake that stopped it, if one did."""
    from fedloom.runner import run_experiment

    try:
        run_experiment(*cell, progress, models)
    except Exception as error:  # the other cells go on
        return sentence(error)
    return None


def on_cluster(cells: Mapping[int, Cell], jobs: int) -> Iterator[tuple[int, bool, str | None]]:
    """Run cells as tasks on the Ray cluster that the first of them names, each in one process.

    Args:
        cells: Place in the grid → cell. All nodes must see the folders at the same path.
        jobs: Cells at once, at most as many as there is room for.

    Yields:
        (place, False, None) where a cell is begun, and (place, True, the mistake that stopped it or None) at its end.

    Raises:
        UserError: Ray is not there, or a cell holds what no other process can be given.
    """
    from fedloom.backends import require_written, wanted_of
    from fedloom.engine.ray_tasks import spread

    for experiment, _ in cells.values():
        require_written(experiment)
    wanted = wanted_of(next(iter(cells.values()))[0], jobs)
    arguments = {
        place: (experiment.to_json(), str(folder.absolute())) for place, (experiment, folder) in cells.items()
    }
    return spread(_run, arguments, wanted)


def _run(models: dict[str, Any], experiment: str, folder: str) -> str | None:
    return run_one((Experiment.from_json(experiment), Path(folder)), Progress(None), models)
