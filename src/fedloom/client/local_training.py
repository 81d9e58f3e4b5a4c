"""Train clients locally: start from what was sent, take optimizer steps, and return the parameters at the end.

This is the whole local training loop.

Shape legend: K clients side by side, P trainable parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.algorithms.local_rule import Correct
from fedloom.client.backpropagation import LARGEST_SCALE, backpropagate, micro_batches
from fedloom.client.gradient_probe import BatchProbe
from fedloom.client.local_job import Job
from fedloom.client.optimizers import OPTIMIZERS, clip
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.types import Broadcast, Conversation, Tensors


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of a client's local training.

    Attributes:
        end: The parameters at the end, shape [P]; this may be the model's own buffer, which the next training overwrites.
        carry: What the client's rule carries after the last step.
        loss: Mean loss over the steps of the first pass.
        seconds: Time of all passes; clients side by side share theirs evenly.
        own: The parameters at the end of the second pass, shape [P], in a buffer as that of `end`; None without such a pass.
    """

    end: Tensor
    carry: Tensors
    loss: float
    seconds: float
    own: Tensor | None = None


def train(tuned: Tuned, jobs: Sequence[Job], clock: Clock | None = None) -> list[Trained]:
    """Train one client, or several side by side over the shared frozen model.

    Side by side, each client's adapters are one row of a stack: one forward and one backward pass serve all
    of them. Rows never mix: the loss is each client's own mean, summed; norms for clipping, local rules and
    random streams are each client's own; a client that has taken its steps leaves the stack. So the updates are those
    of clients that train one after the other. A second pass over the data follows where jobs have one.

    Args:
        tuned: The model with one row; its live values are overwritten.
        jobs: The work of each client; each must be one that `can_train_together` with the first.
        clock: Measures the time of each kind of work.

    Returns:
        Each client's result, in the order of `jobs`.

    Raises:
        ValueError: Jobs differ in settings or round, so their rows could not step together.
    """
    if not all(can_train_together(job, jobs[0]) for job in jobs[1:]):
        raise ValueError(
            "clients that train side by side need the same settings and round, and no rule with its own gradient"
        )
    clock = clock or Clock()
    results = _one_pass(tuned, jobs, clock)
    second_jobs = [job.second for job in jobs if job.second is not None]
    if not second_jobs:
        return results
    # The second pass overwrites the model's live values, where the end of the first and its rule's tensors may lie.
    kept = [
        replace(result, end=result.end.clone(), carry=copy_overlapping(result.carry, tuned.flat))
        for result in results
    ]
    return [
        replace(one, own=own.end, seconds=one.seconds + own.seconds)
        for one, own in zip(kept, _one_pass(tuned, second_jobs, clock), strict=True)
    ]


def can_train_together(job: Job, other: Job) -> bool:
    """Return whether two clients can train side by side."""
    if job.trains_alone or other.trains_alone or job.settings != other.settings or job.round != other.round:
        return False
    if job.second is None or other.second is None:
        return job.second is other.second
    return can_train_together(job.second, other.second)


def _one_pass(tuned: Tuned, jobs: Sequence[Job], clock: Clock) -> list[Trained]:
    """Train clients through all epochs of one pass, side by side."""
    first, started = jobs[0], time.perf_counter()
    # Clients with the most steps come first, so that those still in training are always the first rows.
    order = sorted(range(len(jobs)), key=lambda k: -jobs[k].steps)
    # Some accelerators have no float64, so losses are added up on the CPU, after the last step.
    losses = torch.zeros(jobs[order[0]].steps, len(jobs), device=tuned.flat.device)
    with side_by_side(tuned, len(jobs), [jobs[k].scale for k in order]) as stack:
        rows = [_start_row(jobs[k], stack, row) for row, k in enumerate(order)]
        slots, tied = stack.zero_slots(OPTIMIZERS[first.settings.optimizer].slots), len(rows)
        clock.lap("load")
        for step in range(rows[0].job.steps):
            active = [row for row in rows if row.job.steps > step]
            if len(active) < tied:
                tied = len(active)
                stack.tie(tied)
            losses[step, :tied] = _step(stack, active, slots, step, clock)
        ends = [stack.flat[k].cpu() for k in range(len(rows))]
        totals = torch.zeros(len(rows), dtype=torch.float64)
        for each in losses.cpu():
            totals += each
    seconds = (time.perf_counter() - started) / len(rows)
    results = [
        Trained(end, row.carry, loss / row.job.steps, seconds)
        for row, end, loss in zip(rows, ends, totals.tolist(), strict=True)
    ]
    clock.lap("load")
    return [results[order.index(k)] for k in range(len(jobs))]


@dataclass
class _Row:
    """A client in training: its job, its batches, and what changes from step to step."""

    job: Job
    batches: Iterator[list[Conversation]]
    start: Tensor
    trained: Tensor | None
    carry: Tensors
    loss_scale: float = LARGEST_SCALE


def _start_row(job: Job, stack: Tuned, row: int) -> _Row:
    """Write a client's start into its row of the stack, and begin its rule."""
    where = stack.flat.device
    params, extras = job.broadcast.params, job.broadcast.extras
    broadcast = Broadcast(params.with_flat(params.flat.to(where)), to_device(extras, where))
    stack.write(job.start, row)
    trained = None if job.trained is None else job.trained.mask.to(where)
    carry = job.rule.begin(broadcast, to_device(job.memory, where))
    return _Row(job, job.batches(), job.start.flat.to(where), trained, carry)


def _step(stack: Tuned, rows: Sequence[_Row], slots: Tensors, step: int, clock: Clock) -> Tensor:
    """Take one step with all clients that are still in training; return their losses, shape [K]."""
    jobs, settings = [row.job for row in rows], rows[0].job.settings
    groups = [next(row.batches) for row in rows]
    flat, grads = stack.flat[: len(rows)], stack.grads[: len(rows)]
    if jobs[0].rule.gradient is None:
        losses = _write_gradients(stack, rows, groups, step, clock)
    else:
        losses = _write_rule_gradient(stack, rows[0], groups[0], step, clock)
    _change(rows, grads, flat, [job.rule.penalize for job in jobs])
    for row, grad in zip(rows, grads, strict=True):
        if row.trained is not None:
            grad.mul_(row.trained)
    clip(grads, settings.clip)
    _change(rows, grads, flat, [job.rule.correct for job in jobs])
    _move(flat, grads, slots, jobs, step)
    for row, values in zip(rows, flat, strict=True):
        if row.trained is not None:  # an optimizer moves a value without gradient, too, by weight decay
            values.copy_(torch.where(row.trained, values, row.start))
    clock.lap("step")
    return losses.detach()


def _write_gradients(
    stack: Tuned, rows: Sequence[_Row], groups: Sequence[list[Conversation]], step: int, clock: Clock
) -> Tensor:
    """Write the gradient of each client's mean loss into the stack; return the losses, shape [K]."""
    batches = micro_batches(stack.vlm, groups, rows[0].job.settings.micro_batch, clock)
    masks, scales = [row.job.dropout_masks(step) for row in rows], [row.loss_scale for row in rows]
    losses, scales = backpropagate(stack, batches, masks, clock, scales)
    for row, scale in zip(rows, scales, strict=True):
        row.loss_scale = scale
    return losses


def _write_rule_gradient(
    stack: Tuned, row: _Row, group: list[Conversation], step: int, clock: Clock
) -> Tensor:
    """Write the gradient that a client's rule makes into the stack; return the loss, shape [1]."""
    make, params = row.job.rule.gradient, stack.flat[0].clone()
    assert make is not None
    trained = torch.ones_like(params) if row.trained is None else row.trained.to(params.dtype)
    loss, grad, row.carry = make(BatchProbe(stack, row.job, group, step, trained, clock), params, row.carry)
    _require_shape(grad, params)
    stack.grads[0].copy_(grad)
    return loss.reshape(1)


def _change(rows: Sequence[_Row], grads: Tensor, flat: Tensor, changes: Sequence[Correct]) -> None:
    """Let each client's rule change its own gradient, a row of [K, P], and what it carries."""
    for row, grad, values, change in zip(rows, grads, flat, changes, strict=True):
        changed, row.carry = change(grad, values, row.carry)
        _require_shape(changed, grad)
        if changed is not grad:
            grad.copy_(changed)


def _require_shape(gradient: Tensor, like: Tensor) -> None:
    """Raise ValueError for a rule's gradient of another shape, which would be broadcast to all values."""
    if gradient.shape != like.shape:
        raise ValueError(
            f"a rule returned a gradient of shape {list(gradient.shape)}; it must be {list(like.shape)}"
        )


def _move(flat: Tensor, grads: Tensor, slots: Tensors, jobs: Sequence[Job], step: int) -> None:
    """Take one step of the optimizer: for all rows, [K, P], at once if they have the same learning rate."""
    settings, rates = jobs[0].settings, [job.rate(step) for job in jobs]
    equal = len(set(rates)) == 1
    for k, rate in enumerate(rates[:1] if equal else rates):
        part = slice(0, len(jobs)) if equal else slice(k, k + 1)
        part_slots = {name: value[part] for name, value in slots.items()}
        OPTIMIZERS[settings.optimizer].step(
            flat[part], grads[part], part_slots, step + 1, rate, settings.weight_decay, settings.beta2
        )


def to_device(tensors: Tensors, where: torch.device | str) -> Tensors:
    """Return named tensors on a device; those that are there already are not copied."""
    return {name: value.to(where) for name, value in tensors.items()}


def copy_overlapping(tensors: Tensors, live: Tensor) -> Tensors:
    """Return named tensors, with copies of those that lie in the buffer of `live`, which the next training overwrites."""
    where = live.untyped_storage().data_ptr()
    return {
        name: value.clone()
        if value.layout == torch.strided and value.untyped_storage().data_ptr() == where
        else value
        for name, value in tensors.items()
    }
