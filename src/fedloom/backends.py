"""Choose where the clients of a run train, and train them there: how many side by side, in how many processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

from fedloom.answering import workers_of
from fedloom.client.train import Work
from fedloom.engine.fit import MOST, Fit, remembered, short_of_memory
from fedloom.engine.in_process import InProcess
from fedloom.engine.rounds import Run, Standing, draw_cohort, run_rounds, works_of
from fedloom.engine.workers import Workers
from fedloom.folder import ENGINE
from fedloom.hashes import cache_folder
from fedloom.manifest import read_sealed, write_sealed
from fedloom.models.compiled import compiling
from fedloom.models.recompute import recomputing
from fedloom.setting import Setting
from fedloom.types import ClientUpdate


def train_runs(setting: Setting, label: str, runs: Sequence[Run]) -> list[Standing]:
    """Train the servers of one stage of a method over the run's model.

    Args:
        setting: What all methods of the run share.
        label: What is trained, for the progress bar.
        runs: One training, or several that share nothing but the model (clients that train alone).

    Returns:
        Where they stand at the end.
    """
    left = sum(max(run.left, 0) * len(draw_cohort(run.schedule, 0)) for run in runs)
    setting.progress.stage(label, left)
    if not left:
        return [run.standing for run in runs]

    def trained(update: ClientUpdate) -> None:
        setting.progress.advance(1, loss=update.metrics["loss"])

    with ExitStack() as changed:
        compiled, twice = setting.experiment.engine.compile, _recompute(setting, runs)
        for tuned in (setting.tuned, *setting.twins):
            changed.enter_context(compiling(tuned.vlm, compiled))
            changed.enter_context(recomputing(tuned.vlm, twice))
        return run_rounds(runs, backend_of(setting, runs, trained))


def _works(runs: Sequence[Run]) -> list[Work]:
    """Return some of the works of runs' next rounds: those that choices are made by."""
    return list(islice(chain.from_iterable(works_of(run) for run in runs if run.left > 0), MOST))


def _recompute(setting: Setting, runs: Sequence[Run]) -> bool:
    chosen = setting.experiment.engine.recompute
    return chosen == "always" or (chosen == "auto" and short_of_memory(setting.tuned, _works(runs)[0]))


def backend_of(
    setting: Setting, runs: Sequence[Run], trained: Callable[[ClientUpdate], None]
) -> InProcess | Workers:
    """Choose where clients train: as the experiment says, as the run did before, or as measured.

    Args:
        setting: What the runs belong to; the choice is written into its folder and record.
        runs: The trainings, at least one with rounds left.
        trained: Called with every update.
    """
    works, chosen, tuned, known = _works(runs), setting.experiment.engine, setting.tuned, Fit(1)
    if len(works) < 2:
        return InProcess(tuned, 1, trained)
    if "auto" in (chosen.side_by_side, chosen.workers):
        before = _noted(setting.folder)
        known = before or _measured(setting, works, _clients(runs))
        if before is None:
            write_sealed(setting.folder / ENGINE, known.to_json(), setting.folder)
            setting.record.append("engine", known.to_json())
    rows = known.rows if chosen.side_by_side == "auto" else chosen.side_by_side
    if setting.twins:
        workers = len(setting.twins) + 1
    else:
        workers = known.workers if chosen.workers == "auto" else workers_of(setting)
    inner = InProcess(tuned, rows if tuned.stackable else 1, trained)
    return inner if workers == 1 else Workers(inner, workers, setting.twins)


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
