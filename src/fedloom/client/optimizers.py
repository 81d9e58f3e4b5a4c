"""Local optimisers as functions on flat buffers; slots are plain tensors, zero at the start of a round.

Shape legend: P trained values.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

Slots = dict[str, Tensor]
Step = Callable[[Tensor, Tensor, Slots, int, float, float], None]
"""(params, grads, slots, step, lr, weight decay) → None; changes params and slots in place. Steps count from 1."""


def adamw(params: Tensor, grads: Tensor, slots: Slots, step: int, lr: float, weight_decay: float) -> None:
    """Take one step of AdamW with β1 = 0.9, β2 = 0.999, ε = 1e-8.

    Reference: I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101v3,
    Algorithm 2. Agrees with torch.optim.AdamW.
    """
    m = slots.setdefault("m", torch.zeros_like(params))
    v = slots.setdefault("v", torch.zeros_like(params))
    params.mul_(1 - lr * weight_decay)
    m.lerp_(grads, 1 - 0.9)
    v.mul_(0.999).addcmul_(grads, grads, value=1 - 0.999)
    root = v.sqrt().div_(sqrt(1 - 0.999**step)).add_(1e-8)
    params.addcdiv_(m, root, value=-lr / (1 - 0.9**step))


def sgd(params: Tensor, grads: Tensor, slots: Slots, step: int, lr: float, weight_decay: float) -> None:
    """Take one step of plain SGD, with decay added to the gradient as torch.optim.SGD does."""
    params.add_(grads + weight_decay * params if weight_decay else grads, alpha=-lr)


OPTIMIZERS: dict[str, Step] = {"adamw": adamw, "sgd": sgd}


def clip(grads: Tensor, largest: float | None) -> None:
    """Scale a gradient in place so that its norm is at most `largest`; None leaves it alone."""
    if largest is not None:
        norm = torch.linalg.vector_norm(grads)
        grads.mul_(torch.clamp(largest / (norm + 1e-6), max=1.0))
