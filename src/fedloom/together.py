"""Train what methods ask for: one after the other, or in step over one model, so that their clients stand side by side.

What goes on in step may be methods of one run, or cells of a sweep: runs of other seeds, algorithms or scenarios over
the same base. Each has its own commits, its own record and its own share of the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from fedloom.answering import workers_of
from fedloom.client.train import Work
from fedloom.engine.fit import MOST, Fit, remembered, short_of_memory
from fedloom.engine.in_process import WINDOW, InProcess
from fedloom.engine.rounds import Committed, Run, Standing, draw_cohort, run_rounds, works_of
from fedloom.engine.workers import Workers
from fedloom.folder import ENGINE
from fedloom.hashes import cache_folder
from fedloom.manifest import read_sealed, write_sealed
from fedloom.models.compiled import compiling
from fedloom.models.recompute import recomputing
from fedloom.record import Clock
from fedloom.training import Setting, Trained, Training
from fedloom.types import ClientUpdate

CELLS = 8
"""Cells of a sweep that go on in step at most, so that some are done before long."""


def train_together(asked: Sequence[Training]) -> list[Trained]:
    """Train what methods ask for in step, over the one model that their runs share.

    Where a mistake stops that, either half goes on by itself from its last commits, until the training that makes it
    is alone with it.
    """
    begun, clocks = time.perf_counter(), [Clock() for _ in asked]
    try:
        parts = [
            [replace(run, committed=_counted(run.committed, clock)) for run in one.runs()]
            for one, clock in zip(asked, clocks, strict=True)
        ]
        standings = iter(_in_step(asked, list(chain.from_iterable(parts))))
    except Exception as error:  # a full disk or too little memory stops one training, and not those beside it
        if len(asked) == 1:
            return [Trained(error, time.perf_counter() - begun)]
        half = len(asked) // 2
        return [*train_together(asked[:half]), *train_together(asked[half:])]
    ended = [list(islice(standings, len(part))) for part in parts]
    own = [
        sum(now.seconds - run.standing.seconds for now, run in zip(found, part, strict=True))
        + sum(clock.seconds.values())
        for found, part, clock in zip(ended, parts, clocks, strict=True)
    ]
    common = (time.perf_counter() - begun - sum(own)) / len(asked)
    return [Trained(found, seconds + common) for found, seconds in zip(ended, own, strict=True)]


def _counted(committed: Committed, clock: Clock) -> Committed:
    """Let a clock count what is done between rounds."""

    def counted(now: Standing, log: dict[str, Any]) -> Standing | None:
        clock.skip()
        after = committed(now, log)
        clock.lap("commit")
        return after

    return counted


def _in_step(asked: Sequence[Training], runs: Sequence[Run]) -> list[Standing]:
    setting = asked[0].setting
    left = sum(max(run.left, 0) * len(draw_cohort(run.schedule, 0)) for run in runs)
    setting.progress.stage(_label(asked), left)
    if not left:
        return [run.standing for run in runs]

    def trained(update: ClientUpdate) -> None:
        setting.progress.advance(1, loss=update.metrics["loss"])

    with ExitStack() as changed:
        compiled, twice = setting.experiment.engine.compile, _recompute(setting, runs)
        for tuned in (setting.tuned, *setting.twins):
            changed.enter_context(compiling(tuned.vlm, compiled))
            changed.enter_context(recomputing(tuned.vlm, twice))
        backend = backend_of([one.setting for one in asked], runs, trained)
        if len(asked) > 1:
            for one in asked:
                one.setting.record.append("together", {"training": one.label, "of": len(asked)})
        return run_rounds(runs, backend)


def _works(runs: Sequence[Run]) -> list[Work]:
    """Return some of the works of runs' next rounds: those that choices are made by."""
    return list(islice(chain.from_iterable(works_of(run) for run in runs if run.left > 0), MOST))


def _recompute(setting: Setting, runs: Sequence[Run]) -> bool:
    chosen = setting.experiment.engine.recompute
    return chosen == "always" or (chosen == "auto" and short_of_memory(setting.tuned, _works(runs)[0]))


def _label(asked: Sequence[Training]) -> str:
    """Name what goes on at once: at most three of its names, and how many cells of a sweep it is of."""
    names = list(dict.fromkeys(one.label for one in asked))
    told = ", ".join(names if len(names) < 4 else [*names[:2], f"{len(names) - 2} more"])
    cells = len({one.setting.folder for one in asked})
    return told if cells == 1 else f"{told} of {cells} cells"


def backend_of(
    settings: Sequence[Setting], runs: Sequence[Run], trained: Callable[[ClientUpdate], None]
) -> InProcess | Workers:
    """Say where clients train: as the experiment says, as the first run did before, or as measured.

    Args:
        settings: What the runs belong to; each writes down what was chosen.
        runs: The trainings, at least one with rounds left.
        trained: Called with every update.
    """
    first, works = settings[0], _works(runs)
    chosen, tuned, known = first.experiment.engine, first.tuned, Fit(1)
    if len(works) < 2:
        return InProcess(tuned, 1, trained)
    if "auto" in (chosen.side_by_side, chosen.workers):
        known = _noted(first.folder) or _measured(first, works, _clients(runs))
        for setting in settings:
            if _noted(setting.folder) != known:
                write_sealed(setting.folder / ENGINE, known.to_json(), setting.folder)
                setting.record.append("engine", known.to_json())
    rows = known.rows if chosen.side_by_side == "auto" else chosen.side_by_side
    if first.twins:
        workers = len(first.twins) + 1
    else:
        workers = known.workers if chosen.workers == "auto" else workers_of(first)
    inner = InProcess(tuned, rows if tuned.stackable else 1, trained)
    return inner if workers == 1 else Workers(inner, workers, first.twins)


def _clients(runs: Sequence[Run]) -> int:
    """Count the clients of the runs' next rounds."""
    return sum(len(draw_cohort(run.schedule, run.round)) for run in runs if run.left > 0)


def _noted(folder: Path) -> Fit | None:
    file = folder / ENGINE
    return Fit(**read_sealed(file)) if file.exists() else None


def _measured(setting: Setting, works: Sequence[Work], clients: int) -> Fit:
    known_here = cache_folder() / "side-by-side.json"
    compiled = setting.experiment.engine.compile
    return remembered(known_here, setting.tuned, works, clients, workers_of(setting), compiled=compiled)


def cells_together(first: Training) -> int:
    """Say how many cells of a sweep go on in step, from what the first of them asks for.

    As its experiment says. Otherwise, where several rows pay, as many as keep the rows busy with clients that are
    alike; where they do not, one.
    """
    setting, engine = first.setting, first.setting.experiment.engine
    if engine.together != "auto":
        return engine.together
    try:
        runs = first.runs()
        works, workers = list(islice(cycle(_works(runs)), MOST)), workers_of(setting)
        if not works or not setting.tuned.stackable:
            return 1
        with compiling(setting.tuned.vlm, engine.compile):
            wide = _measured(setting, works, MOST * workers)
    except Exception:
        return 1  # the cell says what is wrong when it trains
    rows = wide.rows if engine.side_by_side == "auto" else engine.side_by_side
    return 1 if rows == 1 else min(CELLS, math.ceil(WINDOW * rows * wide.workers / _clients(runs)))
