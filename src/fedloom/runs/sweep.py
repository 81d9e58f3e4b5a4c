"""Run every cell of a grid, skip finished cells, go on after a kill, and write a report over all cells."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from fedloom.experiment.experiment import Experiment
from fedloom.experiment.grid import Cell, Grid
from fedloom.report.sweeps.sweep_page import write_sweep_report
from fedloom.report.sweeps.sweep_results import headline
from fedloom.report.tables import counted
from fedloom.runs.run_folder import discard, held_experiment, is_finished
from fedloom.runs.run_lock import is_temporary, lock_folder
from fedloom.runs.sweep_tasks import run_cell, run_on_cluster
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest
from fedloom.system.json_files import read_json, read_text
from fedloom.system.manifest import LOCK, write_sealed
from fedloom.system.progress import Progress, duration
from fedloom.version import __version__

State = Literal["waiting", "begun", "done", "failed"]
PLACE = struct.Struct("<I")
"""The format in which processes pass on a cell's place in the grid."""


@dataclass(frozen=True)
class Row:
    """The state of a cell, as recorded in `sweep.json`.

    Attributes:
        cell: The cell.
        folder: Its run folder, relative to the sweep's.
        state: The state of its run.
        error: The reason for which it failed, or None.
        result: SHA-256 of its run's `result.json`; None unless it is done.
    """

    cell: Cell
    folder: str
    state: State = "waiting"
    error: str | None = None
    result: str | None = None


def default_sweep_folder(grid: Grid) -> Path:
    """Return `runs/<name>-<first 8 of the digest>`, with `-quick` in it for the quick form."""
    return Path("runs") / f"{grid.name}{'-quick' if grid.quick else ''}-{grid.digest[:8]}"


def run_sweep(
    grid: Grid,
    folder: Path,
    tell: Callable[[str], None],
    make_progress: Callable[[], Progress],
    jobs: int = 1,
    *,
    rerun: bool = False,
) -> dict[str, Any]:
    """Run the cells that are not done yet, in the grid's order.

    Cells share loaded models, with the images and texts that these have encoded. A cell that the folder holds already, under
    any name, is not run again; one that was interrupted goes on from its last checkpoint; one that failed is tried again.

    Args:
        grid: The cells to run.
        folder: The sweep folder: new, empty, or of a sweep, possibly with other cells.
        tell: Takes one line of text for each cell.
        make_progress: Makes the display of a cell's progress; with several jobs nothing is shown.
        jobs: Number of processes that run cells at once, ≥ 1, each with its share of the threads.
        rerun: Discard cells that are damaged or whose data, base model or code changed, and run them again.

    Returns:
        The content of `result.json` in the sweep folder.

    Raises:
        UserError: The folder holds something else, cells are damaged or changed, another process works in the folder,
            or this one cannot be copied.
    """
    check_sweep_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        _renew(grid, folder, rerun)
        _run_all(grid, folder, tell, make_progress, jobs)
        return write_sweep_report(folder)


def _run_all(
    grid: Grid,
    folder: Path,
    tell: Callable[[str], None],
    make_progress: Callable[[], Progress],
    jobs: int,
) -> None:
    rows = _begin(grid, folder)
    done = sum(row.state == "done" for row in rows)
    if done:
        tell(f"{done} of {counted(len(rows), 'cell')} {'is' if done == 1 else 'are'} done already")
    models: dict[Any, Any] = {}
    since, tried = time.perf_counter(), set[int]()

    def put(index: int, row: Row) -> None:
        rows[index] = row
        tried.add(index)
        if row.state != "begun":  # another cell may be the same experiment; then it is done too
            rows[:] = [_current(folder, other) if other.state == "waiting" else other for other in rows]
        _write(grid, folder, rows)
        if row.state == "begun":
            tell(f"[{index + 1}/{len(rows)}] {row.cell.name}: begins")
        else:
            tell(_line(folder, rows, index, (time.perf_counter() - since) / len(tried)))

    waiting = _waiting(folder, rows)
    if jobs > 1 and waiting:
        _run_jobs(folder, rows, waiting, put, jobs)
    for index, experiment in waiting.items():
        if rows[index].state == "waiting":
            put(index, replace(rows[index], state="begun"))
            with closing(make_progress()) as progress:
                mistake = run_cell((experiment, folder / rows[index].folder), progress, models)
            row = rows[index]
            put(index, _done(folder, row) if mistake is None else replace(row, state="failed", error=mistake))


def _renew(grid: Grid, folder: Path, rerun: bool) -> None:
    """Discard cells whose run can neither be used nor resumed, or refuse to go on with them.

    Raises:
        UserError: There are such cells, and `rerun` is false.
    """
    begun = {
        k: folder / row.folder for k, row in enumerate(_begin(grid, folder)) if (folder / row.folder).exists()
    }
    if not begun:
        return
    from fedloom.runs.single_run import unusable_cells

    reasons = unusable_cells({k: (grid.cells[k].experiment, path) for k, path in begun.items()})
    if reasons and not rerun:
        first = next(iter(reasons.values()))
        raise UserError(
            f"{counted(len(reasons), 'cell')} of {folder} can be used no more, the first because {first}. With --rerun "
            "all of them are run again"
        )
    for k in reasons:
        discard(begun[k])


def _waiting(folder: Path, rows: Sequence[Row]) -> dict[int, Experiment]:
    """Return the experiment that is run for each waiting cell, in the grid's order.

    A cell that was begun goes on with the experiment in its folder; of cells with the same experiment only the first is there.
    """
    waiting = {row.folder: index for index, row in reversed([*enumerate(rows)]) if row.state == "waiting"}
    if not waiting:
        return {}
    return {
        k: held_experiment(folder / rows[k].folder) or rows[k].cell.experiment
        for k in sorted(waiting.values())
    }


def check_sweep_folder(folder: Path) -> None:
    """Check that a folder holds nothing but a sweep.

    Raises:
        UserError: The folder holds something else.
    """
    if folder.is_dir():
        names = {file.name for file in folder.iterdir() if not is_temporary(file)} - {LOCK}
        if not names or "sweep.json" in names:
            return
    if folder.exists():
        raise UserError(f"{folder} is not empty and is not a sweep folder; choose another folder with --out")


def _begin(grid: Grid, folder: Path) -> list[Row]:
    """Find or choose the folder of every cell, and write the state of the sweep."""
    folders = {digest: path for path, digest in _run_folders(folder)}
    rows = list[Row]()
    for cell in grid.cells:
        path = folders.setdefault(cell.experiment.digest, f"cells/{cell.folder}")
        rows.append(_current(folder, Row(cell, path)))
    _write(grid, folder, rows)
    return rows


def _run_folders(folder: Path) -> list[tuple[str, str]]:
    """Return the run folders in a sweep folder with the digests of their experiments."""
    files = sorted((folder / "cells").glob("*/experiment.json"))
    folders = list[tuple[str, str]]()
    for file in files:
        with suppress(UserError):  # a damaged file is reported with its cell
            digest = Experiment.from_json(read_text(file), str(file)).digest
            folders.append((f"cells/{file.parent.name}", digest))
    return folders


def _current(folder: Path, row: Row) -> Row:
    """Return a cell's row with the present state of its run; a cell whose folder is damaged has failed."""
    file = folder / row.folder / "experiment.json"
    try:
        if file.exists():
            Experiment.from_json(read_text(file), str(file))
        return _done(folder, row) if is_finished(file.parent) else row
    except UserError as error:
        message = f"{str(error).partition(chr(10))[0]}; --rerun runs the cell again"
        return replace(row, state="failed", error=message)


def _done(folder: Path, row: Row) -> Row:
    return replace(row, state="done", result=file_digest(folder / row.folder / "result.json"))


def _run_jobs(
    folder: Path,
    rows: Sequence[Row],
    cells: Mapping[int, Experiment],
    put: Callable[[int, Row], None],
    jobs: int,
) -> None:
    """Run cells in several processes, of this machine or of a Ray cluster, each of which takes the next waiting cell when it
    has ended one.

    The cell of a killed process has failed; other processes take the waiting ones.
    """
    from fedloom.system.processes import can_fork

    if any(one.engine.backend == "ray" for one in cells.values()):
        tasks = {index: (one, folder / rows[index].folder) for index, one in cells.items()}
        for index, ended, error in run_on_cluster(tasks, jobs):
            failed = replace(rows[index], state="begun" if error is None else "failed", error=error)
            put(index, _done(folder, rows[index]) if ended and error is None else failed)
        return
    if not can_fork():
        raise UserError("--jobs: this system cannot copy a process; leave --jobs out")
    left = dict(cells)
    while left:
        _deal(folder, rows, left, put, jobs)
        before, left = left, {index: cell for index, cell in left.items() if rows[index].state == "waiting"}
        if len(left) == len(before):
            return  # no process has begun a cell


def _deal(
    folder: Path,
    rows: Sequence[Row],
    cells: Mapping[int, Experiment],
    put: Callable[[int, Row], None],
    jobs: int,
) -> None:
    """Let processes run cells until all cells are taken, or no process is left."""
    from fedloom.system.processes import run_forked, threads_per_process

    current: dict[int, int] = {}

    def lost(number: int, reason: str) -> None:
        if (index := current.pop(number, None)) is not None:
            put(index, replace(rows[index], state="failed", error=f"its process {reason}"))

    def job() -> Iterator[bytes]:
        models: dict[Any, Any] = {}
        while place := os.read(queue.fileno(), PLACE.size):  # copies share the position in the file
            (index,) = PLACE.unpack(place)
            yield json.dumps([index, "begun", None]).encode()
            mistake = run_cell((cells[index], folder / rows[index].folder), Progress(None), models)
            yield json.dumps([index, "done" if mistake is None else "failed", mistake]).encode()

    with TemporaryFile(buffering=0) as queue:
        queue.write(b"".join(PLACE.pack(index) for index in cells))
        queue.seek(0)
        for number, message in run_forked([job] * min(jobs, len(cells)), threads_per_process(jobs), lost):
            index, state, error = json.loads(message)
            if state == "begun":
                current[number] = index
            else:
                del current[number]
            row = rows[index]
            put(index, _done(folder, row) if state == "done" else replace(row, state=state, error=error))


def _write(grid: Grid, folder: Path, rows: Sequence[Row]) -> None:
    write_sealed(
        folder / "sweep.json",
        {
            "version": __version__,
            "name": grid.name,
            "digest": grid.digest,
            "quick": grid.quick,
            "axes": {name: list(labels) for name, labels in grid.axes.items()},
            "published": grid.published.model_dump(mode="json") if grid.published else None,
            **({"choose": list(grid.choose)} if grid.choose else {}),
            "cells": [_row_json(row) for row in rows],
        },
        folder,
    )


def _row_json(row: Row) -> Mapping[str, Any]:
    outcome = {
        key: text for key, text in {"error": row.error, "result": row.result}.items() if text is not None
    }
    return {
        "name": row.cell.name,
        "values": dict(row.cell.values),
        "digest": row.cell.experiment.digest,
        "folder": row.folder,
        "state": row.state,
        **outcome,
    }


def _line(folder: Path, rows: Sequence[Row], index: int, mean: float) -> str:
    """Describe how a cell ended, and the time left if the remaining cells take as long as those before."""
    row, waiting = rows[index], sum(other.state == "waiting" for other in rows)
    if row.state == "done":
        outcome = headline(read_json(folder / row.folder / "result.json", {"scores": dict}))
    else:
        outcome = f"failed: {row.error}"
    left = f"; about {duration(mean * waiting)} left" if waiting else ""
    return f"[{index + 1}/{len(rows)}] {row.cell.name}: {outcome}{left}"
