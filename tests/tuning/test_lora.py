"""A layer with a low-rank update: its value and its gradients, alone and side by side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedloom.tuning.lora import LoRALinear


def layer(rows: int | None, *, bias: bool, dropped: bool) -> LoRALinear:
    torch.manual_seed(0)
    base = nn.Linear(5, 4, bias=bias, dtype=torch.float64).requires_grad_(False)
    clients = () if rows is None else (rows,)
    a, b = (nn.Parameter(torch.randn(*clients, *size, dtype=torch.float64)) for size in ((2, 5), (4, 2)))
    made = LoRALinear(base, a, b, scale=1.5)
    if dropped:
        made.drop = lambda x: x * torch.tensor([0.0, 2.0, 2.0, 0.0, 2.0], dtype=x.dtype)
    return made


@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_value_and_gradients_are_those_of_the_formula(rows: int | None, bias: bool, dropped: bool) -> None:
    made = layer(rows, bias=bias, dropped=dropped)
    x = torch.randn(2 * (rows or 1), 3, 5, dtype=torch.float64, requires_grad=True)

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        inside = made.drop(x) if made.drop else x
        own = inside.view(rows or 1, -1, 5) @ a.view(-1, 2, 5).mT @ b.view(-1, 4, 2).mT
        return made.base(x) + 1.5 * own.reshape(*x.shape[:-1], 4)

    y, expected = made(x), plain(x, made.lora_a, made.lora_b)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    wanted = (x, made.lora_a, made.lora_b)
    ours = torch.autograd.grad((y * weights).sum(), wanted)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), wanted))


@pytest.mark.parametrize("held", ["lora_a", "lora_b"])
def test_what_is_held_fixed_gets_no_gradient(held: str) -> None:
    made = layer(None, bias=False, dropped=False)
    getattr(made, held).requires_grad_(False)
    made(torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    assert {name for name, value in made.named_parameters() if value.grad is not None} == {
        "lora_a",
        "lora_b",
    } - {held}
