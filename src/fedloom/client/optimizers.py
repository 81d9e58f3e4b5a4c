"""Local optimisers as functions on flat buffers; slots are plain tensors, zero at the start of a round.

Everything here is elementwise or goes row by row, so clients side by side do not touch each other.

Shape legend: P trained values, K clients side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw as adamw_of_torch

Slots = Mapping[str, Tensor]
Step = Callable[[Tensor, Tensor, Slots, int, float, float, float], None]
"""(params, grads, slots, step, lr, weight decay, β2) → None; changes params and slots in place; steps count from 1."""


@dataclass(frozen=True)
class Optimizer:
    """A local optimiser: its step, and the buffers it needs, each like the parameters."""

    step: Step
    slots: tuple[str, ...] = ()


def adamw(
    params: Tensor, grads: Tensor, slots: Slots, step: int, lr: float, weight_decay: float, beta2: float
) -> None:
    """Take one step of AdamW with β1 = 0.9 and ε = 1e-8.

    Reference: I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101v3,
    Algorithm 2, as torch.optim.AdamW takes it.
    """
    taken = torch.tensor(step - 1.0, device=params.device)
    adamw_of_torch(
        [params],
        [grads],
        [slots["m"]],
        [slots["v"]],
        [],
        [taken],
        fused=True,  # one pass over all buffers
        amsgrad=False,
        beta1=0.9,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=1e-8,
        maximize=False,
    )


def sgd(
    params: Tensor, grads: Tensor, slots: Slots, step: int, lr: float, weight_decay: float, beta2: float
) -> None:
    """Take one step of plain SGD, with decay added to the gradient as torch.optim.SGD does."""
    params.add_(grads + weight_decay * params if weight_decay else grads, alpha=-lr)


OPTIMIZERS: dict[str, Optimizer] = {"adamw": Optimizer(adamw, ("m", "v")), "sgd": Optimizer(sgd)}


def clip(grads: Tensor, largest: float | None) -> None:
    """Scale each client's gradient, shape [K, P], in place so that its norm is at most `largest`; None leaves it alone."""
    if largest is not None:
        # One row at a time: a norm over several rows at once may add up in another order.
        for row in grads:
            row.mul_(torch.clamp(largest / (torch.linalg.vector_norm(row) + 1e-6), max=1.0))
