"""Check before a run that what it needs is here: device, model, layers to train, data, clients, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from fedloom.data import check_usable
from fedloom.experiment.experiment import Experiment
from fedloom.models.empty_model import empty_vlm
from fedloom.models.hub import Source
from fedloom.models.text_only import check_pattern
from fedloom.runs.plan_run import device_of
from fedloom.runs.resource_plan import disk_bytes
from fedloom.runs.run_setup import load_run_data, stages_of
from fedloom.runs.site_setup import make_site
from fedloom.scenarios.validation_part import plan_and_validation
from fedloom.system.errors import UserError, user_errors
from fedloom.tuning.adapters import check_targets, empty_tuned
from fedloom.tuning.strategies import merged_stage

T = TypeVar("T")


def require_resources(experiments: Iterable[tuple[Experiment, Path]]) -> None:
    """Check what experiments need; those with the same data, model and clients are checked once.

    Args:
        experiments: Experiments with their run folders.

    Raises:
        UserError: Requirements are not met; the message has a line for each.
    """
    faults, seen = dict[str, None](), set[str]()
    for experiment, folder in experiments:
        key = experiment.model_dump_json(
            include={"data", "model", "strategy", "scenario", "methods", "evaluate"}
        )
        if key not in seen:
            seen.add(key)
            faults |= dict.fromkeys(resource_faults(experiment, folder))
    if faults:
        count = "one requirement is" if len(faults) == 1 else f"{len(faults)} requirements are"
        raise UserError("\n  ".join([f"the keys are valid, but {count} not met:", *faults]))


def resource_faults(experiment: Experiment, folder: Path) -> list[str]:
    """Return what an experiment needs and this machine lacks, one sentence each.

    Neither weights nor pixels are read; records, and headers of images and of weights, are.

    Args:
        experiment: The experiment.
        folder: Where it would run.
    """
    faults: list[str] = []

    def attempt(find: Callable[[], T]) -> T | None:
        try:
            with user_errors():
                return find()
        except UserError as error:
            faults.append(str(error))
            return None

    attempt(lambda: device_of(experiment))
    vlm = attempt(lambda: empty_vlm(experiment.model, experiment.families))
    data = attempt(lambda: check_usable(load_run_data(experiment), experiment.data))
    if (judge := experiment.evaluate.judge) is not None:
        attempt(lambda: Source("evaluate.judge", judge, network=False).files)
    stages = stages_of(experiment)
    tuned = vlm and attempt(lambda: empty_tuned(vlm, merged_stage(stages)))
    if tuned:
        attempt(lambda: check_targets(tuned.vlm, tuned.stage))
    if vlm is not None:
        attempt(lambda: check_pattern(vlm.family, experiment.scenario.pattern))
    plan = data and attempt(
        lambda: plan_and_validation(data, experiment.data, experiment.scenario, experiment.seed)
    )
    needed = 0
    if data and plan and tuned:
        site = attempt(lambda: make_site(experiment, data, plan[0], tuned, stages, Path(), plan[1]))
        needed = disk_bytes(experiment, site) if site else 0
    attempt(lambda: _require_disk(folder, needed))
    return faults


def _require_disk(folder: Path, needed: int) -> None:
    """Raise UserError if a folder cannot be made, or if its disk has too little room."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(
            f"{folder}: {above} cannot be written to; `fedloom run` takes another folder with --out"
        )
    if (free := shutil.disk_usage(above).free) < needed:
        raise UserError(
            f"{folder}: the run needs about {needed / 1e6:,.0f} MB, but its disk has {free / 1e6:,.0f} MB left"
        )
