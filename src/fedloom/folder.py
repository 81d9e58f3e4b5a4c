"""What a run folder holds before a run writes to it, so that no run ever overwrites another."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from fedloom.experiment import Experiment
from fedloom.types import UserError

LOCK = ".lock"
"""The empty file by which a process tells others that it works in a folder."""


def default_folder(experiment: Experiment) -> Path:
    """Return `runs/<name>-<first 8 of the digest>`."""
    return Path("runs") / f"{experiment.name}-{experiment.digest[:8]}"


def folder_state(folder: Path, experiment: Experiment) -> Literal["new", "unfinished", "finished"]:
    """Say how far this experiment has come in a folder.

    Raises:
        UserError: The folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return "new"
    held = folder / "experiment.json"
    if not held.is_file():
        raise UserError(f"{folder} is not empty and holds no run; choose another folder with --out")
    digest = Experiment.from_json(held.read_text(encoding="utf-8"), str(held)).digest
    if digest != experiment.digest:
        message = f"{folder} holds another experiment ({digest[:8]}, not {experiment.digest[:8]})"
        raise UserError(f"{message}; choose another folder with --out")
    return "finished" if finished(folder) else "unfinished"


def finished(folder: Path) -> bool:
    """Say whether a run wrote all it had to; the report comes last."""
    return (folder / "result.json").is_file() and (folder / "report.html").is_file()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder that exists; nothing stays locked when this one ends or dies.

    Raises:
        UserError: Another process works in it.
    """
    with open(folder / LOCK, "w", encoding="ascii") as file:
        try:
            # Unlike flock, this is not passed on to copies of the process.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            message = f"{folder}: another process is working in it"
            raise UserError(f"{message}; let it end, or choose another folder with --out") from None
        yield


def tidy(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left in a folder that is this one's `alone`."""
    for left in folder.rglob(".*.tmp"):
        left.unlink()
