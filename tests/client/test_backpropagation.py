"""Gradients of a decoder in float16: small ones survive, large ones do not overflow, and clients do not influence each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedloom.client import backpropagation
from fedloom.client.backpropagation import LARGEST_SCALE, backpropagate
from fedloom.models.batches import collate
from fedloom.models.load_model import load_vlm, move_model
from fedloom.seeds import torch_stream
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, prepare, side_by_side
from fedloom.tuning.strategies import LoRA, stage
from fedloom.types import Conversation

TALKS = [Conversation("Which?", "yes"), Conversation("How many are there?", "three")]


def tuned_in(model: Path, precision: str) -> Tuned:
    vlm = move_model(load_vlm(str(model)), "cpu", precision)
    tuned = prepare(vlm, stage("lora", LoRA(rank=2)), seed=0)
    noise = torch.randn(tuned.layout.size, generator=torch_stream(0, "noise"))
    tuned.write(tuned.start.with_flat(tuned.start.flat + 0.05 * noise))
    return tuned


def gradients(
    tuned: Tuned, weights: list[float], scales: list[float] | None = None
) -> tuple[Tensor, list[float]]:
    """Return the gradients of clients side by side whose losses have weights, one row each, and the scales at the end."""
    flat = tuned.flat.clone()
    with side_by_side(tuned, len(weights)) as stack:
        stack.flat.copy_(flat)
        batch = collate(tuned.vlm, [TALKS] * len(weights))
        factors = torch.tensor(weights).repeat_interleave(torch.tensor(batch.sizes))
        batch = replace(batch, weight=batch.weight * factors)
        _, scales = backpropagate(stack, [batch], [], Clock(), scales)
        return stack.grads.clone(), scales


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def test_small_gradients_survive_float16_where_losses_are_scaled(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (exact,), _ = gradients(tuned_in(tiny_model, "float32"), [1e-4])
    half = tuned_in(tiny_model, "float16")
    (scaled,), _ = gradients(half, [1e-4])
    assert cosine(scaled, exact) >= 0.99 and 0.95 <= float(scaled.norm() / exact.norm()) <= 1.05
    monkeypatch.setattr(backpropagation, "LARGEST_SCALE", 1.0)
    (plain,), _ = gradients(half, [1e-4])
    assert cosine(plain, exact) < 0.99


def test_an_overflow_repeats_the_batch_with_a_smaller_scale_for_that_client_alone(tiny_model: Path) -> None:
    exact, _ = gradients(tuned_in(tiny_model, "float32"), [1.0, 1e4])
    half = tuned_in(tiny_model, "float16")
    grads, scales = gradients(half, [1.0, 1e4])
    alone, own = gradients(half, [1.0])
    assert scales[1] < scales[0] <= LARGEST_SCALE and own == scales[:1]
    assert torch.isfinite(grads).all()
    for mine, other in zip(grads, exact, strict=True):
        assert cosine(mine, other) >= 0.99
    torch.testing.assert_close(grads[0], alone[0], rtol=1e-2, atol=1e-5)
    _, later = gradients(half, [1.0, 1e4], scales)
    assert later == scales  # what a round has learned about the scale serves its later steps


def test_other_precisions_scale_nothing(tiny_model: Path) -> None:
    tuned = tuned_in(tiny_model, "bfloat16")
    one, other = (gradients(tuned, [1.0], [scale])[0] for scale in (1.0, LARGEST_SCALE))
    assert torch.equal(one, other) and one.any()
