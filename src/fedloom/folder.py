"""What a run folder holds before a run writes to it, so that no run ever overwrites another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedloom.experiment import Experiment
from fedloom.types import UserError


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
