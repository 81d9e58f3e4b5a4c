"""Predict from an experiment what its run needs, without its model's weights; or correct that with three real steps."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from fedloom.client.client_memory import InMemory
from fedloom.client.local_training import train
from fedloom.client.site import Site
from fedloom.data import check_usable
from fedloom.engine.machine_choices import this_machine
from fedloom.experiment.experiment import Experiment
from fedloom.models.empty_model import empty_vlm
from fedloom.models.longest_example import longest
from fedloom.models.precision import device_of as kind_of_device
from fedloom.models.text_only import without_images
from fedloom.runs.resource_plan import (
    ClientClass,
    ResourcePlan,
    described_method,
    machine_speed,
    predict,
)
from fedloom.runs.run_setup import load_run_data, open_site, set_threads, stages_of
from fedloom.runs.site_setup import make_site
from fedloom.scenarios.plan import Plan
from fedloom.scenarios.validation_part import plan_and_validation
from fedloom.system.allocator import release_freed
from fedloom.system.errors import UserError
from fedloom.system.memory import forget_peak, peak_bytes, resident_bytes
from fedloom.system.progress import Progress
from fedloom.tuning.adapters import check_targets, empty_tuned
from fedloom.tuning.strategies import merged_stage
from fedloom.types import DataSet
from fedloom.wire.messages import Assignment

STEPS = 3
"""Steps of a probe that are timed; one more comes before them."""


def device_of(experiment: Experiment) -> torch.device:
    """Return the device on which an experiment would run.

    Raises:
        UserError: It asks for an accelerator that is not here.
    """
    return torch.device(kind_of_device(experiment.model.device))


def plan_run(experiment: Experiment) -> ResourcePlan:
    """Predict what a run needs from its experiment, its examples and the configuration of its model; no weights are read.

    Raises:
        UserError: The data or the model cannot be used.
    """
    set_threads(experiment)
    site, data, plan = _empty_site(experiment)
    device = device_of(experiment)
    return predict(
        experiment, site, data, plan, this_machine(device), machine_speed(device), resident_bytes()
    )


def _empty_site(experiment: Experiment) -> tuple[Site, DataSet, Plan]:
    """Return the run's site with a model without values, its data, and its plan."""
    vlm = empty_vlm(experiment.model, experiment.families)
    data = check_usable(load_run_data(experiment), experiment.data)
    if not vlm.family.images:
        train, test = (tuple(map(without_images, part)) for part in (data.train, data.test))
        data = replace(data, train=train, test=test)
    plan, validation = plan_and_validation(data, experiment.data, experiment.scenario, experiment.seed)
    stages = stages_of(experiment)
    tuned = empty_tuned(vlm, merged_stage(stages))
    check_targets(vlm, tuned.stage)
    site = make_site(experiment, data, plan, tuned, stages, Path(), validation)
    return replace(site, memory=InMemory()), data, plan


def probed(experiment: Experiment, plan: ResourcePlan, progress: Progress | None = None) -> ResourcePlan:
    """Return a plan whose memory and times of steps are corrected by three real steps.

    They are taken on the longest example of the class of clients with the largest activations. The model is loaded, and its
    features of all images are computed, as a run would do; both stay in the cache.

    Args:
        experiment: Every choice.
        plan: The result of `plan_run`.
        progress: Shows the loading and the steps; None shows nothing.

    Raises:
        UserError: Nothing is trained, or the run could not start.
    """
    if not plan.classes:
        raise UserError("--probe: no method of this experiment trains anything")
    progress = progress or Progress(None)
    with tempfile.TemporaryDirectory() as folder, open_site(experiment, Path(folder), progress) as site:
        most = max(plan.classes, key=lambda one: one.memory["activations"])
        measured, seconds = _measure(experiment, site, most.largest, progress)
        slower = seconds / most.step_seconds
        more = measured / max(1, _trained_bytes(most))
    classes = tuple(_corrected(one, more, slower) for one in plan.classes)
    own = max(_trained_bytes(one) for one in classes) * plan.rows * plan.workers
    return replace(
        plan,
        classes=classes,
        peak_bytes=plan.program + sum(plan.weights.values()) + own,
        seconds={kind: value * slower for kind, value in plan.seconds.items()},
        probed=True,
    )


def _trained_bytes(one: ClientClass) -> int:
    return sum(size for kind, size in one.memory.items() if kind != "weights")


def _corrected(one: ClientClass, more: float, slower: float) -> ClientClass:
    """Return a class with measured memory; what is measured beyond known buffers counts as activations."""
    known = _trained_bytes(one) - one.memory["activations"]
    activations = max(0, int(_trained_bytes(one) * more) - known)
    memory = {**one.memory, "activations": activations}
    return replace(one, memory=memory, step_seconds=one.step_seconds * slower, seconds=one.seconds * slower)


def _measure(experiment: Experiment, site: Site, client: int, progress: Progress) -> tuple[int, float]:
    """Take steps on batches of a client's longest example; return the bytes of memory that they need, and the seconds of one."""
    method = described_method(experiment)
    assert method is not None
    local = site.method(method)
    up = local.stages[0].parts.up
    job = site.job(Assignment(method, 0, 0, client, local.start, up=None if up.is_whole else up))
    example = longest(site.tuned.vlm, job.conversations)
    batch = min(job.settings.batch_size, len(job.conversations))
    settings = job.settings.model_copy(update={"epochs": 1, "batch_size": batch})
    first = replace(job, conversations=[example] * batch, settings=settings, second=None)
    progress.stage("probe", 1 + STEPS)
    cuda = site.tuned.flat.device.type == "cuda"
    release_freed()
    before, _ = (torch.cuda.memory_allocated(), torch.cuda.reset_peak_memory_stats()) if cuda else (0, None)
    forget_peak()
    before = before or resident_bytes()
    train(site.tuned, [first])
    progress.advance()
    started = time.perf_counter()
    train(site.tuned, [replace(first, conversations=[example] * batch * STEPS)])
    seconds = (time.perf_counter() - started) / STEPS
    progress.advance(STEPS)
    peak = torch.cuda.max_memory_allocated() if cuda else peak_bytes()
    # The buffers of values and gradients exist before the first step.
    return max(0, peak - before) + 2 * site.tuned.flat.nbytes, seconds
