"""Run every cell of a grid, skip what is done, go on after a kill, and report over all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from fedloom.experiment import Experiment
from fedloom.folder import finished
from fedloom.grid import Cell, Grid
from fedloom.progress import Progress, duration
from fedloom.record import write_json
from fedloom.report.sweep_page import write_sweep_report
from fedloom.report.sweeps import headline
from fedloom.report.tables import counted
from fedloom.types import UserError

State = Literal["waiting", "begun", "done", "failed"]


@dataclass(frozen=True)
class Row:
    """How far a cell has come, as `sweep.json` tells it.

    Attributes:
        cell: The cell.
        folder: Its run folder, relative to the sweep's.
        state: How far it has come.
        error: Why it failed, or None.
    """

    cell: Cell
    folder: str
    state: State = "waiting"
    error: str | None = None


def default_sweep_folder(grid: Grid) -> Path:
    """Return `runs/<name>-<first 8 of the digest>`, with `-quick` in it for the quick form."""
    return Path("runs") / f"{grid.name}{'-quick' if grid.quick else ''}-{grid.digest[:8]}"


def run_sweep(
    grid: Grid, folder: Path, tell: Callable[[str], None], make_progress: Callable[[], Progress]
) -> dict[str, Any]:
    """Run the cells that are not done yet, one after another in the grid's order.

    Cells share loaded models and what those remember of pictures and texts. A cell that the folder holds
    already, under whatever name, is not run again; one that was interrupted goes on from its last commit; one
    that failed is tried again.

    Args:
        grid: What to run.
        folder: The sweep folder: new, empty, or of a sweep, possibly with other cells.
        tell: Takes one line of text for each cell.
        make_progress: Makes what is told how far a cell has come.

    Returns:
        What `result.json` of the sweep folder holds.

    Raises:
        UserError: The folder holds something else.
    """
    check_sweep_folder(folder)
    rows = _begin(grid, folder)
    done = sum(row.state == "done" for row in rows)
    if done:
        tell(f"{done} of {counted(len(rows), 'cell')} {'is' if done == 1 else 'are'} done already")
    models: dict[Any, Any] = {}
    spent = list[float]()
    for index in range(len(rows)):
        if rows[index].state == "done":
            continue
        begun = time.perf_counter()
        rows[index] = _run_cell(grid, folder, rows, index, make_progress, models)
        # Another cell may be the same experiment; then it is done too.
        rows = [_seen(folder, other) if other.state == "waiting" else other for other in rows]
        _write(grid, folder, rows)
        spent.append(time.perf_counter() - begun)
        tell(_line(folder, rows, index, fmean(spent)))
    return write_sweep_report(folder)


def check_sweep_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but a sweep.

    Raises:
        UserError: It does.
    """
    if folder.is_dir() and ((folder / "sweep.json").is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise UserError(f"{folder} is not empty and holds no sweep; choose another folder with --out")


def _begin(grid: Grid, folder: Path) -> list[Row]:
    """Find or choose the folder of every cell and write down where the sweep stands."""
    held = {digest: place for place, digest in _held(folder)}
    rows = list[Row]()
    for cell in grid.cells:
        place = held.setdefault(cell.experiment.digest, f"cells/{cell.folder}")
        rows.append(_seen(folder, Row(cell, place)))
    _write(grid, folder, rows)
    return rows


def _held(folder: Path) -> list[tuple[str, str]]:
    """Return the run folders in a sweep folder with the digests of their experiments."""
    files = sorted((folder / "cells").glob("*/experiment.json"))
    found = [(file, Experiment.from_json(file.read_text(encoding="utf-8"), str(file))) for file in files]
    return [(f"cells/{file.parent.name}", experiment.digest) for file, experiment in found]


def _seen(folder: Path, row: Row) -> Row:
    return replace(row, state="done") if finished(folder / row.folder) else row


def _run_cell(
    grid: Grid,
    folder: Path,
    rows: Sequence[Row],
    index: int,
    make_progress: Callable[[], Progress],
    models: dict[Any, Any],
) -> Row:
    from fedloom.runner import resume_run, run_experiment

    row = rows[index]
    _write(grid, folder, [*rows[:index], replace(row, state="begun"), *rows[index + 1 :]])
    place, progress = folder / row.folder, make_progress()
    try:
        if (place / "experiment.json").exists():
            resume_run(place, progress, models)
        else:
            run_experiment(row.cell.experiment, place, progress, models)
    except UserError as error:
        return replace(row, state="failed", error=str(error))
    finally:
        progress.close()
    return replace(row, state="done")


def _write(grid: Grid, folder: Path, rows: Sequence[Row]) -> None:
    write_json(
        folder / "sweep.json",
        {
            "name": grid.name,
            "digest": grid.digest,
            "quick": grid.quick,
            "axes": {name: list(labels) for name, labels in grid.axes.items()},
            "published": grid.published.model_dump(mode="json") if grid.published else None,
            "cells": [_row_json(row) for row in rows],
        },
    )


def _row_json(row: Row) -> Mapping[str, Any]:
    told = {} if row.error is None else {"error": row.error}
    return {
        "name": row.cell.name,
        "values": dict(row.cell.values),
        "digest": row.cell.experiment.digest,
        "folder": row.folder,
        "state": row.state,
        **told,
    }


def _line(folder: Path, rows: Sequence[Row], index: int, mean: float) -> str:
    """Tell how a cell ended, and the time left if those to come take as long as those before."""
    row, waiting = rows[index], sum(one.state == "waiting" for one in rows)
    if row.state == "done":
        told = headline(json.loads((folder / row.folder / "result.json").read_text(encoding="utf-8")))
    else:
        told = f"failed: {row.error}"
    left = f"; about {duration(mean * waiting)} left" if waiting else ""
    return f"[{index + 1}/{len(rows)}] {row.cell.name}: {told}{left}"
