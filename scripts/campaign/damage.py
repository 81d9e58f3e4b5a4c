"""Damage one file at a time and use the folder: the result must be the same, or the damage must be named."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests.adapter_files import import_adapter

from campaign.world import World, outcome
from fedloom.experiment.experiment import Experiment
from fedloom.models.load_model import load_vlm
from fedloom.report.run_page import write_report
from fedloom.run_log import RunLog
from fedloom.runs import single_run
from fedloom.runs.run_setup import Models
from fedloom.runs.verify_files import verify
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import prepare, release
from fedloom.tuning.strategies import LoRA, merged_stage, strategy

Outcomes = dict[str, Counter[str]]
"""Kind of file → how often its damage was "named", changed nothing ("same"), went "unnoticed" or ended in a traceback."""


class Stopped(Exception):
    """Raised in place of a kill, so that this process continues."""


def scored(world: World, out: Path, models: Models) -> None:
    """Stop a run after its methods are finished and before anything is exported."""

    def stopping(*_: object) -> None:
        raise Stopped

    export, single_run.export = single_run.export, stopping
    try:
        world.run(out, models)
    except Stopped:
        pass
    finally:
        single_run.export = export


def begun(world: World, out: Path, models: Models) -> None:
    """Stop a run in its last round."""
    append = RunLog.append

    def stopping(record: RunLog, kind: str, values: dict[str, Any]) -> None:
        if kind == "round" and values["round"] == world.experiment.train.rounds - 1:
            raise Stopped
        append(record, kind, values)

    RunLog.append = stopping  # type: ignore[method-assign]
    try:
        world.run(out, models)
    except Stopped:
        pass
    finally:
        RunLog.append = append  # type: ignore[method-assign]


def damages(world: World, folder: Path, count: int, seed: int) -> tuple[Outcomes, list[str]]:
    """Damage files of a finished run, of one whose methods are finished, of an unfinished one, of its data and its model.

    Args:
        world: The small run.
        folder: An empty folder to work in.
        count: Number of damages, spread evenly over the files.
        seed: Decides which bits are flipped and where files are truncated.

    Returns:
        The outcomes by kind of file, and a line for each failure.
    """
    models: Models = {}
    runs = {name: folder / name for name in ("finished", "scored", "unfinished")}
    world.run(runs["finished"], models)
    scored(world, runs["scored"], models)
    begun(world, runs["unfinished"], models)
    wanted, rng = outcome(runs["finished"]), np.random.default_rng(seed)
    roots = {**runs, "data": world.data, "model": world.model}
    places = [one for name, root in roots.items() for one in _places(root, name)]
    outcomes, wrong = Outcomes(), list[str]()
    for number in range(count):
        where, name = places[number * len(places) // count]
        trial = folder / "trial"
        copy = world.copy(trial / "world") if where in ("data", "model") else world
        out = trial / "run"
        shutil.copytree(runs.get(where, runs["unfinished" if number % 2 else "finished"]), out)
        root = {"data": copy.data, "model": copy.model}.get(where, out)
        damage = _damage(root / name, rng)
        fate = _fate(copy, out, wanted, models)
        if where == "finished" and name != ".lock" and "memory/" not in name and not verify(out)[1]:
            fate = "unnoticed by verify"
        kind = f"{where}: {_kind(name)}"
        outcomes.setdefault(kind, Counter())[fate.partition(":")[0]] += 1
        if fate not in ("same", "named"):
            wrong.append(f"{where}/{name}, {damage}: {fate}")
        shutil.rmtree(trial)
    return outcomes, wrong


def _places(root: Path, where: str) -> Iterator[tuple[str, str]]:
    for file in sorted(root.rglob("*")):
        if file.is_file() and file.stat().st_size:
            yield where, file.relative_to(root).as_posix()


def _kind(name: str) -> str:
    """Return a file's name without the numbers in it."""
    return re.sub(r"\d+", "N", re.sub(r"^methods/[^/]+/", "methods/", name))


def _damage(file: Path, rng: np.random.Generator) -> str:
    """Flip one bit or truncate the file; return which."""
    content = bytearray(file.read_bytes())
    place = int(rng.integers(len(content)))
    if rng.random() < 0.25:
        file.write_bytes(content[:place])
        return f"cut at byte {place}"
    bit = int(rng.integers(8))
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {place} flipped"


def _fate(world: World, out: Path, wanted: dict[str, Any], models: Models) -> str:
    """Resume a run, write its report and load its adapter; return the outcome."""
    steps: list[Callable[[], object]] = [
        # A model that was loaded before the damage would hide it.
        lambda: world.go_on(out, models if (world.model in _loaded(models)) else None),
        lambda: world.run(out, models),
        lambda: write_report([out], out.parent / "page.html"),
        lambda: _load(world.experiment, out),
    ]
    named = False
    for step in steps:
        try:
            step()
        except UserError:
            named = True
        except Exception as error:
            return f"traceback: {type(error).__name__}: {error}"
    if named:
        return "named"
    got = outcome(out)
    odd = [key for key in wanted if got.get(key) != wanted[key]]
    return f"unnoticed: {', '.join(odd)}" if odd else "same"


def _loaded(models: Models) -> set[Path]:
    return {Path(vlm.name) for vlm in models.values()}


def _load(experiment: Experiment, out: Path) -> None:
    chosen = experiment.strategy
    vlm = load_vlm(experiment.model.path)
    stages = strategy(chosen.name, LoRA(chosen.rank, chosen.alpha, chosen.targets, chosen.dropout))
    tuned = prepare(vlm, merged_stage(stages), 0)
    for file in sorted((out / "adapter").rglob("adapter_model.safetensors")):
        import_adapter(tuned, file.parent)
    release(tuned)
