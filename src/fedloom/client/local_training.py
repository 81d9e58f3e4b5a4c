"""Train clients locally: start from what was sent, take optimizer steps, and return where they end.

This is the whole local loop; there is no trainer behind it.

Shape legend: K clients side by side, P trained values.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedloom.algorithms.local_rule import Correct
from fedloom.client.gradient_probe import BatchProbe
from fedloom.client.local_job import Job
from fedloom.client.optimizers import OPTIMIZERS, clip
from fedloom.models.batches import answer_losses, collate
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.tuning.dropout import dropping
from fedloom.types import Broadcast, Conversation, Tensors


@dataclass(frozen=True, eq=False)
class Trained:
    """Where a client's local training ended.

    Attributes:
        end: Its parameters, shape [P]; it may be the model's own buffer, which the next training overwrites.
        carry: What its rule carries after the last step.
        loss: Mean loss over its steps.
        seconds: Time it took, with that of a second pass; clients side by side share theirs evenly.
        own: Where its second pass ended, shape [P], in a buffer as that of `end`; None where there was none.
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
    random streams are each client's own; a client that has taken its steps leaves the stack. So the updates
    are those of training one client after the other. A second pass over the data follows where jobs have one.

    Args:
        tuned: The model with one row; its live values are overwritten.
        jobs: What each client is to do; those of several must be `alike`.
        clock: Counts where the time goes.

    Returns:
        Where each client ended, in the order of `jobs`.

    Raises:
        ValueError: Jobs are not alike, so their rows could not step together.
    """
    if not all(alike(job, jobs[0]) for job in jobs[1:]):
        raise ValueError(
            "clients that train side by side need the same settings and round, and no rule with its own gradient"
        )
    clock = clock or Clock()
    found = _one_pass(tuned, jobs, clock)
    later = [job.second for job in jobs if job.second is not None]
    if not later:
        return found
    # The second pass overwrites the model's live values, in which the end of the first, and what its rule carries, may lie.
    kept = [replace(one, end=one.end.clone(), carry=apart(one.carry, tuned.flat)) for one in found]
    return [
        replace(one, own=own.end, seconds=one.seconds + own.seconds)
        for one, own in zip(kept, _one_pass(tuned, later, clock), strict=True)
    ]


def alike(job: Job, other: Job) -> bool:
    """Return whether two clients can train side by side."""
    if job.alone or other.alone or job.settings != other.settings or job.round != other.round:
        return False
    if job.second is None or other.second is None:
        return job.second is other.second
    return alike(job.second, other.second)


def _one_pass(tuned: Tuned, jobs: Sequence[Job], clock: Clock) -> list[Trained]:
    """Train clients through all epochs of one pass, side by side."""
    first, begun = jobs[0], time.perf_counter()
    # Clients with most steps come first, so that those still in training are always the first rows.
    order = sorted(range(len(jobs)), key=lambda k: -jobs[k].steps)
    losses = torch.zeros(len(jobs), dtype=torch.float64, device=tuned.flat.device)
    with side_by_side(tuned, len(jobs), [jobs[k].scale for k in order]) as stack:
        rows = [_begun(jobs[k], stack, row) for row, k in enumerate(order)]
        slots, tied = stack.zeroed(OPTIMIZERS[first.settings.optimizer].slots), len(rows)
        clock.lap("load")
        for step in range(rows[0].job.steps):
            active = [row for row in rows if row.job.steps > step]
            if len(active) < tied:
                tied = len(active)
                stack.tie(tied)
            losses[:tied] += _step(stack, active, slots, step, clock)
        ends = [stack.flat[k].cpu() for k in range(len(rows))]
    seconds = (time.perf_counter() - begun) / len(rows)
    found = [
        Trained(end, row.carry, loss / row.job.steps, seconds)
        for row, end, loss in zip(rows, ends, losses.tolist(), strict=True)
    ]
    clock.lap("load")
    return [found[order.index(k)] for k in range(len(jobs))]


@dataclass
class _Row:
    """A client in training: its job, its batches, and what changes from step to step."""

    job: Job
    batches: Iterator[list[Conversation]]
    start: Tensor
    trained: Tensor | None
    carry: Tensors


def _begun(job: Job, stack: Tuned, row: int) -> _Row:
    """Put a client's start into its row of the stack."""
    where = stack.flat.device
    start = Broadcast(
        job.start.params.with_flat(job.start.params.flat.to(where)), put(job.start.extras, where)
    )
    stack.write(job.begun, row)
    trained = None if job.trained is None else job.trained.mask.to(where)
    carry = job.rule.begin(start, put(job.memory, where))
    return _Row(job, job.batches(), job.begun.flat.to(where), trained, carry)


def _step(stack: Tuned, rows: Sequence[_Row], slots: Tensors, step: int, clock: Clock) -> Tensor:
    """Take one step with all clients that are still in training; return their losses, shape [K]."""
    jobs, settings = [row.job for row in rows], rows[0].job.settings
    groups = [next(row.batches) for row in rows]
    flat, grads = stack.flat[: len(rows)], stack.grads[: len(rows)]
    if jobs[0].rule.gradient is None:
        losses = _backpropagated(stack, jobs, groups, step, clock)
    else:
        losses = _rule_gradient(stack, rows[0], groups[0], step, clock)
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


def _backpropagated(
    stack: Tuned, jobs: Sequence[Job], groups: Sequence[list[Conversation]], step: int, clock: Clock
) -> Tensor:
    """Write each client's gradient of its batch's mean loss to the stack; return the losses, shape [K]."""
    batch = collate(stack.vlm, groups, clock)
    stack.grads[: len(jobs)].zero_()
    with dropping(stack, batch, [job.masks(step) for job in jobs]):
        losses = answer_losses(stack.vlm, batch, stack.connects(len(jobs)))
        clock.lap("forward")
        if losses.requires_grad:  # not where only the connector is trained and no image is shown
            losses.sum().backward()
    clock.lap("backward")
    return losses


def _rule_gradient(stack: Tuned, row: _Row, group: list[Conversation], step: int, clock: Clock) -> Tensor:
    """Write the gradient that a rule makes for a client by itself to the stack; return the loss, shape [1]."""
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


def _require_shape(found: Tensor, wanted: Tensor) -> None:
    """Raise ValueError for a rule's gradient of another shape, which would be spread over all values."""
    if found.shape != wanted.shape:
        raise ValueError(
            f"a rule made a gradient of shape {list(found.shape)} of one of {list(wanted.shape)}"
        )


def _move(flat: Tensor, grads: Tensor, slots: Tensors, jobs: Sequence[Job], step: int) -> None:
    """Take one step of the optimizer: for all rows, [K, P], at once where they have the same learning rate."""
    settings, rates = jobs[0].settings, [job.rate(step) for job in jobs]
    alike = len(set(rates)) == 1
    for k, rate in enumerate(rates[:1] if alike else rates):
        part = slice(0, len(jobs)) if alike else slice(k, k + 1)
        held = {name: value[part] for name, value in slots.items()}
        OPTIMIZERS[settings.optimizer].step(
            flat[part], grads[part], held, step + 1, rate, settings.weight_decay, settings.beta2
        )


def put(tensors: Tensors, where: torch.device | str) -> Tensors:
    """Move named tensors to a device; those that are there stay as they are."""
    return {name: value.to(where) for name, value in tensors.items()}


def apart(tensors: Tensors, live: Tensor) -> Tensors:
    """Copy those tensors that lie in the buffer of another one, which the next training overwrites."""
    where = live.untyped_storage().data_ptr()
    return {
        name: value.clone()
        if value.layout == torch.strided and value.untyped_storage().data_ptr() == where
        else value
        for name, value in tensors.items()
    }
