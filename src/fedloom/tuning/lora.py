"""A linear layer with a low-rank update beside it, for one client or for several side by side.

Shape legend: T tokens, K clients side by side, I and O a linear layer's inputs and outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank update: y = W x + b + (alpha / rank) · B A x.

    With K clients side by side, A and B have a leading dimension and the batch consists of K equal groups of
    rows, one client's after the other's; W x is one product for all of them.

    Args:
        base: The frozen layer.
        lora_a: A, shape [R, I] or [K, R, I].
        lora_b: B, shape [O, R] or [K, O, R].
        scale: alpha / rank.

    Attributes:
        drop: What x goes through on its way to A, or None; see `fedloom.tuning.dropout`.
    """

    def __init__(self, base: nn.Linear, lora_a: nn.Parameter, lora_b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base, self.lora_a, self.lora_b, self.scale = base, lora_a, lora_b, scale
        self.drop: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:  # [..., I] → [..., O]
        """Apply layer and update."""
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        rows = x.reshape(*a.shape[:-2], -1, x.shape[-1])  # [K, tokens, I]
        inside = rows if self.drop is None else self.drop(x).view_as(rows)
        y = _Update.apply(self.base(rows), inside, a, b, self.scale)
        return y.view(*x.shape[:-1], -1)


class _Update(torch.autograd.Function):
    """y += scale · B A x in place, and its gradients.

    Every product has its long side last: R is small, and processors' libraries multiply [R, T] several times faster
    than its transpose. What is added goes in as the product is made, which saves passes over [T, O].
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        inner = a @ x.mT  # [R, T]
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, a, b, inner)
        ctx.scale = scale
        add = y.addmm_ if y.dim() == 2 else y.baddbmm_
        return add(inner.mT, b.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # [T, O]
        x, a, b, inner = ctx.saved_tensors
        _, of_x, of_a, of_b, _ = ctx.needs_input_grad
        back = (b.mT @ grad.mT).mul_(ctx.scale)  # [R, T]
        return (
            grad,
            back.mT @ a if of_x else None,
            back @ x if of_a else None,
            (inner @ grad).mT * ctx.scale if of_b else None,
            None,
        )
