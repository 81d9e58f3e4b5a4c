"""A language model in half precision beside an encoder and a connector in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedloom.models.batches import answer_losses, collate, generate, option_scores
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm, load_vlm, move_model
from fedloom.seeds import torch_stream
from fedloom.tuning.adapters import prepare
from fedloom.tuning.strategies import LoRA, stage

from .conversations import TARGETS, talks

COARSE = {"gemma4": 0.85}
"""Least cosine of gradients where .99 is out of reach: the tiny Gemma 4 has inputs of each layer that are drawn 25 times as
large as those of a new model, which amplify rounding, with and without images."""

MODELS = Path(__file__).parents[2] / "src/fedloom/models"


def gradient(vlm: Vlm) -> torch.Tensor:
    """Return the gradient of the loss of some conversations at random adapters."""
    name = "both" if vlm.family.parts.connector else "lora"
    tuned = prepare(vlm, stage(name, LoRA(rank=2, targets=TARGETS)), seed=0)
    noise = torch.randn(tuned.layout.size, generator=torch_stream(0, "noise"))
    tuned.write(tuned.start.with_flat(tuned.start.flat + 0.02 * noise))
    answer_losses(vlm, collate(vlm, [talks(vlm)])).sum().backward()
    return tuned.grads[0].clone()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_fresh_model_in_bfloat16_keeps_its_features_and_the_direction_of_gradients(
    name: str, saved: Callable[[str], Path]
) -> None:
    exact, coarse = load_vlm(str(saved(name))), load_vlm(str(saved(name)))
    move_model(coarse, "cpu", "bfloat16")
    assert coarse.precision == torch.bfloat16
    images = [image for talk in talks(exact) for image in talk.pictures]
    for mine, theirs in zip(coarse.image_features(images), exact.image_features(images), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.cosine_similarity(gradient(coarse), gradient(exact), dim=0) >= COARSE.get(name, 0.99)
    assert torch.isfinite(option_scores(coarse, talks(coarse))).all()
    assert len(generate(coarse, talks(coarse), max_tokens=2)) == len(talks(coarse))


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_of_models_asks_for_the_data_type_of_a_whole_model(path: Path) -> None:
    """Its parts may have different ones; `dtype_of` answers for a part."""
    assert "model.dtype" not in path.read_text(encoding="utf-8")
