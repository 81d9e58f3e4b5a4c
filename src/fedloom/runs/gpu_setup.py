"""Start a process for each further GPU of a run, if the experiment asks for several."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from fedloom.engine.gpu_processes import GpuProcesses
from fedloom.experiment.experiment import Experiment
from fedloom.runs.ray_setup import site_arguments
from fedloom.system.errors import UserError
from fedloom.wire.site_messages import SiteMessage

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The environment variable that names the GPUs of a process."""

COMMAND = (sys.executable, "-P", "-m", "fedloom.runs.gpu_site")
"""Starts the process of a GPU; a module by its name, because importing it here would load the model's code once more."""


def gpus_of(
    experiment: Experiment, folder: Path, device: torch.device, live: ExitStack
) -> GpuProcesses | None:
    """Return the processes of the further GPUs, or None if the experiment asks for one GPU or the model is on none.

    `engine.workers: auto` is one GPU, because nothing has shown yet that several are faster.

    Args:
        experiment: Every choice.
        folder: The folder of the clients' memories.
        device: The model's device.
        live: Ends the processes when it closes.

    Raises:
        UserError: There are fewer GPUs, or the experiment holds Python values, which no other process can get.
    """
    engine = experiment.engine
    if device.type != "cuda" or engine.backend not in ("auto", "workers"):
        return None
    count = torch.cuda.device_count()
    if engine.backend == "workers" and engine.workers == "auto":
        raise UserError(
            "engine.workers is auto, which is one GPU, but engine.backend is workers; set engine.workers to the number "
            f"of GPUs, at most {count} here"
        )
    if engine.workers in ("auto", 1):
        return None
    if engine.workers > count:
        raise UserError(
            f"engine.workers is {engine.workers}, but the GPUs here are {count}; set it to at most {count}"
        )
    there = experiment.model_copy(update={"model": experiment.model.model_copy(update={"device": "cuda"})})
    return site_processes(there, folder, [environment_of(gpu) for gpu in range(1, engine.workers)], live)


def site_processes(
    experiment: Experiment, folder: Path, environments: Sequence[Mapping[str, str]], live: ExitStack
) -> GpuProcesses:
    """Return processes that open the site of a run, one for each of some environments; see `cards_of`.

    They have as many threads as this one, so that what the CPU computes rounds equally.
    """
    arguments = site_arguments(experiment, folder, torch.get_num_threads())
    processes = GpuProcesses(COMMAND, environments, SiteMessage("begin", arguments))
    live.callback(processes.close)
    return processes


def environment_of(gpu: int) -> dict[str, str]:
    """Return the environment variables of a process that has one of this process's GPUs, numbered from 0, for itself."""
    visible = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return {VISIBLE: visible[gpu] if visible else str(gpu)}
