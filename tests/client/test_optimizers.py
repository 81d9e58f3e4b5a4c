"""Local optimizers agree with torch.optim."""

from __future__ import annotations

import pytest
import torch

from fedloom.client.optimizers import OPTIMIZERS, clip


def stock_of(name: str, parameter: torch.nn.Parameter, decay: float, beta2: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD([parameter], lr=0.05, weight_decay=decay)
    return torch.optim.AdamW([parameter], lr=0.05, weight_decay=decay, betas=(0.9, beta2))


@pytest.mark.parametrize("beta2", [0.999, 0.95, 0.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_agrees_with_torch(name: str, decay: float, beta2: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=generator)
    optimizer, ours = OPTIMIZERS[name], start.clone()
    slots = {slot: torch.zeros(50) for slot in optimizer.slots}
    theirs = torch.nn.Parameter(start.clone())
    stock = stock_of(name, theirs, decay, beta2)
    for step in range(1, 8):
        grads = torch.randn(50, generator=generator)
        optimizer.step(ours, grads, slots, step, 0.05, decay, beta2)
        theirs.grad = grads.clone()
        stock.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clip_agrees_with_torch(scale: float) -> None:
    grads = scale * torch.arange(1.0, 9.0)
    parameter = torch.nn.Parameter(torch.zeros(8))
    parameter.grad = grads.clone()
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    rows = torch.stack([grads, torch.zeros(8)])
    clip(rows, 1.0)
    torch.testing.assert_close(rows, torch.stack([parameter.grad, torch.zeros(8)]))


def test_no_limit_clips_nothing() -> None:
    grads = torch.full((1, 3), 1e6)
    clip(grads, None)
    assert torch.equal(grads, torch.full((1, 3), 1e6))
