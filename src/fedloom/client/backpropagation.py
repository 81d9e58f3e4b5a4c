"""The backward pass of one step, in one or several batches; for a decoder in float16 with scaled losses.

float16 has no values between 0 and 6·10⁻⁸, and gradients of a mean loss are often smaller. So each client's loss is multiplied
by a power of two and its gradient, which is float32, divided by it. Where a gradient overflows, the batch is computed again
with a smaller scale: no step is left out, and clients side by side do not influence each other.

Shape legend: K clients side by side, P trainable parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.models.batches import Batch, answer_losses, collate
from fedloom.models.load_model import Vlm
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, cast_adapters
from fedloom.tuning.dropout import Masks, adapter_dropout, tokens_of
from fedloom.types import Conversation

LARGEST_SCALE, STEP = 2.0**16, 2.0**4
"""The first scale of a client's losses in a round, and by how much it is divided after an overflow, down to 1."""


def micro_batches(
    vlm: Vlm, groups: Sequence[Sequence[Conversation]], most: int | None, clock: Clock | None = None
) -> list[Batch]:
    """Return the batches of one step, of which each holds at most so many conversations of each client.

    Args:
        vlm: The model.
        groups: The conversations of each client, K groups.
        most: `train.micro_batch`; None for one batch.
        clock: Measures the time of each kind of work.
    """
    wholes = [len(group) for group in groups]
    if most is None or max(wholes) <= most:
        return [collate(vlm, groups, clock)]
    return [
        collate(vlm, [group[first : first + most] for group in groups], clock, wholes)
        for first in range(0, max(wholes), most)
    ]


def backpropagate(
    stack: Tuned,
    batches: Sequence[Batch],
    masks: Sequence[Masks],
    clock: Clock,
    scales: Sequence[float] | None = None,
) -> tuple[Tensor, list[float]]:
    """Write the gradient of each client's mean loss into the first K rows of `stack.grads`.

    Of several batches, gradients and losses are added up.

    Args:
        stack: The model, whose first K rows are tied to it.
        batches: The result of `micro_batches` for K clients.
        masks: The streams of dropout; see `adapter_dropout`.
        clock: Measures the time of each kind of work.
        scales: The scale of each client's loss for a decoder in float16, K of them; None for the largest. Others ignore it.

    Returns:
        The losses, shape [K], and the scales to go on with.
    """
    rows = len(batches[0].sizes)
    factors = list(scales or [LARGEST_SCALE] * rows)
    if stack.vlm.precision != torch.float16:
        return _one_pass(stack, batches, masks, clock, None), factors
    while True:
        factor = stack.vlm.send(torch.tensor(factors))
        losses = _one_pass(stack, batches, masks, clock, factor)
        grads = stack.grads[:rows]
        grads.div_(factor[:, None])
        finite = torch.isfinite(grads).all(1).tolist()
        if all(good or factor == 1 for good, factor in zip(finite, factors, strict=True)):
            return losses, factors
        factors = [
            factor if good else max(1.0, factor / STEP) for good, factor in zip(finite, factors, strict=True)
        ]


def _one_pass(
    stack: Tuned, batches: Sequence[Batch], masks: Sequence[Masks], clock: Clock, factor: Tensor | None
) -> Tensor:
    rows, parts = len(batches[0].sizes), list[Tensor]()
    stack.grads[:rows].zero_()
    for number, batch in enumerate(batches):
        if number:
            counts = tokens_of(batches[number - 1], len(masks))
            masks = [one.after(count) for one, count in zip(masks, counts, strict=True)]
        with adapter_dropout(stack, batch, masks), cast_adapters(stack, rows):
            losses = answer_losses(stack.vlm, batch, stack.connectors(rows))
            clock.lap("forward")
            if losses.requires_grad:  # not where only the connector is trained and no image is shown
                (losses if factor is None else losses * factor).sum().backward()
        clock.lap("backward")
        parts.append(losses.detach())
        del losses  # the graph of this batch, before the next one is computed
    return sum(parts[1:], parts[0])
