"""The backward pass of one batch; for a decoder in float16 with scaled losses.

float16 has no values between 0 and 6·10⁻⁸, and gradients of a mean loss are often smaller. So each client's loss is multiplied
by a power of two and its gradient, which is float32, divided by it. Where a gradient overflows, the batch is computed again
with a smaller scale: no step is left out, and clients side by side do not influence each other.

Shape legend: K clients side by side, P trained values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.models.batches import Batch, answer_losses
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, cast_adapters
from fedloom.tuning.dropout import Masks, adapter_dropout

LARGEST_SCALE, STEP = 2.0**16, 2.0**4
"""The first scale of a client's losses in a round, and by how much it is divided after an overflow, down to 1."""


def backpropagate(
    stack: Tuned, batch: Batch, masks: Sequence[Masks], clock: Clock, scales: Sequence[float] | None = None
) -> tuple[Tensor, list[float]]:
    """Write the gradient of each client's mean loss into the first K rows of `stack.grads`.

    Args:
        stack: The model, whose first K rows are tied to it.
        batch: The batch of K clients.
        masks: The streams of dropout; see `adapter_dropout`.
        clock: Measures the time of each kind of work.
        scales: The scale of each client's loss for a decoder in float16, K of them; None for the largest. Others ignore it.

    Returns:
        The losses, shape [K], and the scales to go on with.
    """
    rows = len(batch.sizes)
    factors = list(scales or [LARGEST_SCALE] * rows)
    if stack.vlm.precision != torch.float16:
        return _one_pass(stack, batch, masks, clock, None), factors
    while True:
        factor = stack.vlm.send(torch.tensor(factors))
        losses = _one_pass(stack, batch, masks, clock, factor)
        grads = stack.grads[:rows]
        grads.div_(factor[:, None])
        finite = torch.isfinite(grads).all(1).tolist()
        if all(good or factor == 1 for good, factor in zip(finite, factors, strict=True)):
            return losses, factors
        factors = [
            factor if good else max(1.0, factor / STEP) for good, factor in zip(finite, factors, strict=True)
        ]


def _one_pass(
    stack: Tuned, batch: Batch, masks: Sequence[Masks], clock: Clock, factor: Tensor | None
) -> Tensor:
    stack.grads[: len(batch.sizes)].zero_()
    with adapter_dropout(stack, batch, masks), cast_adapters(stack, len(batch.sizes)):
        losses = answer_losses(stack.vlm, batch, stack.connectors(len(batch.sizes)))
        clock.lap("forward")
        if losses.requires_grad:  # not where only the connector is trained and no image is shown
            (losses if factor is None else losses * factor).sum().backward()
    clock.lap("backward")
    return losses.detach()
