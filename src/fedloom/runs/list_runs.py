"""List the runs and sweeps in a folder, each with its state and its main figure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedloom.report.sweeps.sweep_results import headline
from fedloom.runs.follow import SWEEP, read_cells
from fedloom.runs.run_folder import EXPERIMENT, RESULT, is_finished
from fedloom.system.errors import UserError, reading, user_errors
from fedloom.system.file_locks import OPENED, lock_for_process
from fedloom.system.json_files import read_json
from fedloom.system.manifest import LOCK, check_listed

State = Literal["finished", "running", "interrupted", "damaged", "unreadable"]


@dataclass(frozen=True)
class Listed:
    """A run or a sweep.

    Attributes:
        folder: Its folder.
        kind: "run", "sweep", or "folder" for one that may not be read.
        state: Its state.
        figure: Its main figure, or how much of it is done, or why it is damaged or unreadable.
        changed: When it last changed, in seconds since 1970.
    """

    folder: Path
    kind: Literal["run", "sweep", "folder"]
    state: State
    figure: str
    changed: float


def list_runs(folder: Path) -> list[Listed]:
    """Return the runs and sweeps in a folder or below it, the newest last; cells of a sweep are not listed themselves.

    Raises:
        UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; `fedloom run` writes to runs/ unless --out names another")
    return sorted(_below(folder), key=lambda one: one.changed)


def _below(folder: Path) -> Iterator[Listed]:
    try:
        with reading(folder):
            inside = sorted(folder.iterdir())
            files = {path.name for path in inside if path.is_file()}
            folders = [path for path in inside if path.is_dir() and not path.is_symlink()]
    except UserError as error:
        yield Listed(folder, "folder", "unreadable", str(error), folder.stat().st_mtime)
        return
    if SWEEP in files:
        yield _sweep(folder)
    elif EXPERIMENT in files:
        yield _run(folder)
    else:
        for inner in folders:
            if not inner.name.startswith("."):
                yield from _below(inner)


def _run(folder: Path) -> Listed:
    changed = (folder / EXPERIMENT).stat().st_mtime
    try:
        with user_errors():
            check_listed(folder, (EXPERIMENT, RESULT))
            name = str(read_json(folder / EXPERIMENT).get("name", ""))
            if is_finished(folder):
                result = read_json(folder / RESULT, {"scores": dict})
                changed = (folder / RESULT).stat().st_mtime
                return Listed(folder, "run", "finished", headline(result), changed)
            methods = sorted(path.parent.name for path in folder.glob(f"methods/*/{RESULT}"))
            figure = f"{name}; finished methods: {', '.join(methods) or 'none'}"
            return Listed(folder, "run", _unfinished(folder), figure, changed)
    except (UserError, KeyError, TypeError) as error:
        return Listed(folder, "run", "damaged", str(error), changed)


def _sweep(folder: Path) -> Listed:
    changed = (folder / SWEEP).stat().st_mtime
    try:
        with user_errors():
            cells = read_cells(folder / SWEEP, "state")["cells"]
            done, failed = (sum(cell["state"] == state for cell in cells) for state in ("done", "failed"))
            figure = f"{done} of {len(cells)} cells are done" + (f", {failed} failed" if failed else "")
            state = "finished" if done == len(cells) else _unfinished(folder)
            return Listed(folder, "sweep", state, figure, changed)
    except UserError as error:
        return Listed(folder, "sweep", "damaged", str(error), changed)


def _unfinished(folder: Path) -> State:
    """Return whether another process works in a folder."""
    try:
        number = os.open(folder / LOCK, os.O_RDWR | OPENED)
    except OSError:
        return "interrupted"
    try:
        lock_for_process(number)
        return "interrupted"
    except OSError:
        return "running"
    finally:
        os.close(number)
