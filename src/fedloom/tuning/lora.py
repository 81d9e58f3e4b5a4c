"""A linear layer with a low-rank update, for one client or for several side by side.

Shape legend: T tokens, K clients side by side, I and O a linear layer's inputs and outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.models.linear_layers import is_offloaded
from fedloom.params import Layout


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank update: y = W x + b + (alpha / rank) · B A x.

    With K clients side by side, A and B have a leading dimension and the batch consists of K equal groups of rows, one for
    each client; W x is one product for all of them.

    Args:
        base: The frozen layer: torch's Linear, or any other layer that computes W x + b, such as a quantized one.
        lora_a: A, shape [R, I] or [K, R, I].
        lora_b: B, shape [O, R] or [K, O, R].
        scale: alpha / rank, a number or one for each client, shape [K, 1, 1].

    Attributes:
        drop: A function that is applied to x before A, or None; see `fedloom.tuning.dropout`.
        cast: A and B in the data type of x, or None; see `fedloom.tuning.adapters.cast_adapters`.
    """

    def __init__(
        self, base: nn.Module, lora_a: nn.Parameter, lora_b: nn.Parameter, scale: float | Tensor
    ) -> None:
        super().__init__()
        self.base, self.lora_a, self.lora_b = base, lora_a, lora_b
        self.scale: float | Tensor = scale
        self.drop: Callable[[Tensor], Tensor] | None = None
        self.cast: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:  # [..., I] → [..., O]
        """Apply layer and update."""
        a, b = self.cast or (self.lora_a.to(x.dtype), self.lora_b.to(x.dtype))
        a, b = a.to(x.device), b.to(x.device)  # this layer may be on another GPU than all adapters
        scale = self.scale.to(x.device) if isinstance(self.scale, Tensor) else self.scale
        rows = x.reshape(*a.shape[:-2], -1, x.shape[-1])  # [K, tokens, I]
        inside = None if self.drop is None else self.drop(x).view_as(rows)
        # Only the layer itself knows how to multiply by its weight, or has it.
        if type(self.base) is not nn.Linear or is_offloaded(self.base):
            y = self.base(x)
            inner = ((rows if inside is None else inside) @ a.mT) * scale
            return y + (inner.to(a.dtype) @ b.mT).view(*x.shape[:-1], -1).to(y.dtype)
        y = _Adapted.apply(rows, self.base.weight, self.base.bias, inside, a, b, scale)
        return y.view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """y = W x + b + scale · B A x with frozen W and b, and its gradients.

    Every product with A or B has its long side last: R is small, and CPU libraries multiply [R, T] several
    times faster than its transpose. Sums are formed together with products, which saves passes over [T, O] and [T, I].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, inside: Tensor | None, *update: Any
    ) -> Tensor:
        a, b, scale = update
        y = F.linear(x, weight, bias)
        seen = x if inside is None else inside
        inner = (a @ seen.mT).mul_(scale)  # [R, T]
        ctx.save_for_backward(weight, seen, a, b, inner)
        ctx.scale, ctx.dropped = scale, inside is not None
        return _plus(y, inner.mT, b.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # [T, O]
        weight, seen, a, b, inner = ctx.saved_tensors
        of_x, _, _, of_inside, of_a, of_b, _ = ctx.needs_input_grad
        back = (b.mT @ grad.mT).mul_(ctx.scale)  # [R, T]
        below = grad @ weight if of_x else None  # [T, I]
        return (
            below if below is None or ctx.dropped else _plus(below, back.mT, a),
            None,
            None,
            back.mT @ a if of_inside else None,
            back @ seen if of_a else None,
            (inner @ grad).mT if of_b else None,
            None,
        )


def _plus(total: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Add a product to a total in place, for one client or several."""
    return (total.addmm_ if total.dim() == 2 else total.baddbmm_)(one, other)


def scale_of(plain: float, factors: Sequence[float], device: torch.device) -> float | Tensor:
    """Return the scale of layers for clients side by side.

    Args:
        plain: alpha / rank.
        factors: The factor of each client on it, K of them.
        device: The device of the layers.

    Returns:
        A number if it is the same for all clients, and otherwise float32 values of shape [K, 1, 1].
    """
    scales = [plain * factor for factor in factors]
    equal = len(set(scales)) == 1
    return scales[0] if equal else torch.tensor(scales, dtype=torch.float32, device=device).view(-1, 1, 1)


def scale_b(values: Tensor, layout: Layout, factor: float) -> Tensor:
    """Return values of a layout, shape [P], in which every B is multiplied by a factor; for 1 the values themselves.

    An adapter of scale s with f B equals one of scale f s with B, since s · (f B) · A = (f s) · B · A.

    Args:
        values: Parameters, or changes of them.
        layout: Their names; those of B end in `:lora_b`.
        factor: The factor f.
    """
    if factor == 1:
        return values
    folded = values.clone()
    for name in layout.names:
        if name.endswith(":lora_b"):
            folded[layout.slice(name)] *= factor
    return folded
