"""Local optimizers as functions on flat buffers; slots are plain tensors, zero at the start of a round.

Everything here is elementwise or row by row, so clients side by side do not influence each other.

Shape legend: P trainable parameters, K clients side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw as adamw_of_torch

Slots = Mapping[str, Tensor]
Step = Callable[[Tensor, Tensor, Slots, int, float, float, float], None]
"""(params, grads, slots, step, lr, weight decay, β2) → None; changes params and slots in place; steps count from 1."""
Reach = Callable[[int, int, float, float], float]
"""(step, P, largest norm of a gradient, β2) → the largest length of a step without decay, divided by its lr."""


@dataclass(frozen=True)
class Optimizer:
    """A local optimizer: its step, a bound on a step's length, and the buffers it needs, in the shape of the parameters."""

    step: Step
    reach: Reach
    slots: tuple[str, ...] = ()


def adamw(
    params: Tensor, grads: Tensor, slots: Slots, step: int, lr: float, weight_decay: float, beta2: float
) -> None:
    """Take one step of AdamW with β1 = 0.9 and ε = 1e-8.

    Reference: I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101v3,
    Algorithm 2, as torch.optim.AdamW takes it.
    """
    taken = torch.full(
        (), step - 1.0, device=params.device
    )  # filled on the device, which torch.tensor would wait for
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


def adamw_reach(step: int, values: int, gradient: float, beta2: float) -> float:
    """Bound a step of AdamW by √P · max |m̂ / √v̂|, whatever the gradients are.

    With a_j ∝ β1ʲ and b_j ∝ β2ʲ the weights, each of sum 1, of the last `step` gradients g_j in m̂ = Σ a_j g_j and
    v̂ = Σ b_j g_j², Cauchy and Schwarz give |m̂| ≤ √(Σ a_j² / b_j) · √v̂. The root is 1 at the first step and at most
    7.3 for β2 = 0.999. Where β2 < β1² it grows by a factor with every step, which bounds nothing: then it is inf.

    Example:
        >>> adamw_reach(1, 4, 1.0, 0.999), round(adamw_reach(10**6, 1, 1.0, 0.999), 1)
        (2.0, 7.3)
    """
    if beta2 < 0.81 and step > 1:
        return math.inf
    sums = _geometric(0.81 / beta2, step) * _geometric(beta2, step) if step > 1 else 1.0
    return math.sqrt(values * sums) / _geometric(0.9, step)


def _geometric(ratio: float, terms: int) -> float:
    """Return 1 + r + r² + … of so many terms, for 0 < r ≤ 1."""
    return terms if ratio == 1 else math.expm1(terms * math.log(ratio)) / (ratio - 1)


def sgd_reach(step: int, values: int, gradient: float, beta2: float) -> float:
    """Bound a step of SGD by the gradient's norm."""
    return gradient


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(adamw, adamw_reach, ("m", "v")),
    "sgd": Optimizer(sgd, sgd_reach),
}


def clip(grads: Tensor, largest: float | None) -> None:
    """Scale each client's gradient, shape [K, P], in place so that its norm is at most `largest`; None changes nothing."""
    if largest is not None:
        # One row at a time: a norm over several rows at once may add up in another order.
        for row in grads:
            row.mul_(torch.clamp(largest / (torch.linalg.vector_norm(row) + 1e-6), max=1.0))
