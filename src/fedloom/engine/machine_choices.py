"""Choose for a machine how many clients train at once, and whether layers are recomputed to save memory.

A choice depends on the experiment and on the kind of machine: its device, threads and total memory. Clock, load and free
memory do not matter, so the same experiment leads to the same choice on the same kind of machine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.client.local_job import Job
from fedloom.engine.in_process import WINDOW
from fedloom.models.batches import answer_losses, collate
from fedloom.models.last_layer import layers_of
from fedloom.models.linear_layers import weight_count
from fedloom.system.errors import is_of_accelerator, is_out_of_memory
from fedloom.system.processes import can_fork
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.dropout import adapter_dropout
from fedloom.types import Conversation

MOST = 32
"""Most rows of a pass: with that many, its overhead is small, and further rows gain nothing."""

FULL, FULL_ACCELERATOR = 4 * 10**9, 10**12
"""Multiplications of one forward pass that keep a thread of a CPU, or an accelerator, busy: more rows gain nothing."""

COPY = 10**10
"""Multiplications of a client's round below which copying this process, some 20 ms, costs more than it saves."""


@dataclass(frozen=True)
class Machine:
    """The kind of machine that a choice is made for.

    Attributes:
        device: Kind of device that the model is on, such as cpu or cuda.
        processor: The system's name for its processor or accelerator.
        threads: Threads of this process.
        memory: Total bytes of memory, on the model's device, that this process may use; None if the system does not report it.
        copies: Whether this process can be copied.
    """

    device: str
    processor: str
    threads: int
    memory: int | None
    copies: bool


@dataclass(frozen=True)
class Choice:
    """How a run's clients train.

    Attributes:
        rows: Clients side by side in one pass, ≥ 1.
        workers: Processes that train clients at once, ≥ 1, each with its share of the threads.
        recompute: Whether layers are recomputed in the backward pass.
    """

    rows: int = 1
    workers: int = 1
    recompute: bool = False


def this_machine(device: torch.device) -> Machine:
    """Describe the machine that this process runs on."""
    if device.type in ("cuda", "xpu"):
        about = getattr(torch, device.type).get_device_properties(device)
        return Machine(device.type, about.name, torch.get_num_threads(), about.total_memory, copies=False)
    if device.type == "mps":  # it shares the host's memory, of which Metal gives a program only a part
        memory = torch.mps.recommended_max_memory()
        return Machine("mps", _processor(), torch.get_num_threads(), memory, copies=False)
    forks = device.type == "cpu" and can_fork()
    return Machine(device.type, _processor(), torch.get_num_threads(), _memory(), forks)


def choose(tuned: Tuned, jobs: Sequence[Job], cohort: int, machine: Machine) -> Choice:
    """Choose the number of rows and of processes, and whether layers are recomputed, from some jobs of a round.

    Rows are added until a pass has the multiplications that keep a thread (or an accelerator) busy. There is one process
    for each thread if a client's round is long enough to pay for copying this one. Both stay within half of the memory
    that the model leaves free. If the job of a client fails, the next one is used. Where memory runs out over a single
    example, layers are recomputed.

    Args:
        tuned: The model with one row.
        jobs: Some of a round's jobs; without any, nothing runs side by side.
        cohort: Number of clients in a round.
        machine: The kind of machine.

    Raises:
        Exception: An accelerator has no memory for the inputs of a pass.
    """
    for job in sorted(jobs, key=lambda job: (-job.steps, job.client)):
        try:
            return _choose_by(job, tuned, cohort, machine)
        except Exception as error:  # that client will be missing, with the reason
            if is_of_accelerator(error):
                raise
    return Choice()


def _choose_by(first: Job, tuned: Tuned, cohort: int, machine: Machine) -> Choice:
    """Choose by one job, that of the client with the most steps."""
    multiplications = _multiplications(tuned, first) if cohort > 1 else 0
    saved = 0
    if machine.memory is not None:
        try:
            saved = _batch_bytes(tuned, first)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return Choice(recompute=True)  # not even one example fits otherwise
    return choose_from(tuned, first.steps, multiplications, saved, 2 * saved, cohort, machine)


def choose_from(
    tuned: Tuned, steps: int, multiplications: int, saved: int, step: int, cohort: int, machine: Machine
) -> Choice:
    """Choose from figures about the client with the most steps; see `choose`.

    Args:
        tuned: The model with one row, of which only shapes are used.
        steps: The client's steps in a round.
        multiplications: Multiplications of a forward pass through the decoder's layers over one of its batches.
        saved: Bytes that such a pass keeps for the backward pass.
        step: Bytes of a step with its backward pass, if no layer is recomputed.
        cohort: Number of clients in a round.
        machine: The kind of machine.
    """
    room = _free_memory(tuned, machine)
    recompute = room is not None and step > room
    if cohort < 2:
        return Choice(recompute=recompute)
    many = machine.copies and 3 * multiplications * steps >= COPY
    # Twice the tensors that the forward pass saves, since the backward pass needs about as much again; a row's values,
    # gradients and optimizer; and the updates and memories of all jobs of a window.
    needed = 2 * saved + (4 + 2 * WINDOW) * tuned.flat.element_size() * tuned.layout.size
    most = MOST * machine.threads if room is None else max(1, room // needed)
    workers = min(machine.threads, cohort, most) if many else 1
    full = FULL if machine.device == "cpu" else FULL_ACCELERATOR
    useful = full // max(1, multiplications) if tuned.stackable else 1
    rows = max(1, min(MOST, useful, most // workers, -(-cohort // workers)))
    return Choice(rows, workers, recompute)


def _first_examples(job: Job) -> list[Conversation]:
    """Return the examples of a client's first pass."""
    return next(job.batches())[: job.settings.micro_batch]


def _multiplications(tuned: Tuned, job: Job) -> int:
    """Count the multiplications of a forward pass through the decoder's layers over one of a client's batches."""
    batch = collate(tuned.vlm, [_first_examples(job)])
    weights = sum(map(weight_count, layers_of(tuned.vlm)))
    return weights * sum(batch.lengths)


def _free_memory(tuned: Tuned, machine: Machine) -> int | None:
    """Return half of the bytes of memory that the model leaves free, or None if the system does not report them."""
    model = sum(value.numel() * value.element_size() for value in tuned.vlm.model.state_dict().values())
    return None if machine.memory is None else max(0, machine.memory - model) // 2


def _batch_bytes(tuned: Tuned, job: Job) -> int:
    """Estimate from a single example what a pass over one client's batch keeps, so that counting needs little memory."""
    batch = job.settings.batch_size
    rows = min(batch, job.settings.micro_batch or batch, len(job.conversations))
    return rows * saved_bytes(tuned, replace(job, conversations=job.conversations[:1]))


def saved_bytes(tuned: Tuned, job: Job) -> int:
    """Count the bytes that one client's step keeps for its backward pass; shared weights do not count."""
    own = {value.untyped_storage().data_ptr() for value in tuned.vlm.model.state_dict().values()}
    own.add(tuned.flat.untyped_storage().data_ptr())
    seen: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    tuned.write(job.start)
    batch = collate(tuned.vlm, [_first_examples(job)])
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value)
    with hooks, adapter_dropout(tuned, batch, [job.dropout_masks(0)]):
        # The losses are held until everything is counted, so that no address is used twice.
        losses = answer_losses(tuned.vlm, batch)
    del losses
    return sum(seen.values())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Return the total bytes of memory that this process may use."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
    try:  # a container may have less
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return min(whole, int(file.read()))
    except (OSError, ValueError):
        return whole
