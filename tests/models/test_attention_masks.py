"""Attention gets a dense mask only where a batch or a family needs one, since the fastest kernels of cards take none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedloom.models.batches import answer_losses, collate, option_scores
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm, load_vlm

from .conversations import WORDS, talks


def masks(vlm: Vlm, run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Return the data type of each mask that attention gets ("none" without one), and whether the kernel is causal itself."""
    seen: list[tuple[str, bool]] = []
    attend = functional.scaled_dot_product_attention

    def noted(*args: Any, attn_mask: Any = None, is_causal: bool = False, **more: Any) -> Any:
        kind = "none" if attn_mask is None else str(attn_mask.dtype).removeprefix("torch.")
        seen.append((kind, is_causal))
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    images = [image for talk in talks(vlm) for image in talk.pictures]
    vlm.image_features(images)  # before attention is watched, since encoders attend, too
    monkeypatch.setattr(functional, "scaled_dot_product_attention", noted)
    run()
    return seen


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_training_has_no_mask_without_padding_unless_a_family_has_blocks(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load_vlm(str(saved(name)))
    alone, padded = ([WORDS[:1]], [WORDS])
    blocks = FAMILIES[name].blocks is not None
    with torch.no_grad():
        seen = masks(vlm, lambda: answer_losses(vlm, collate(vlm, alone)), monkeypatch)
        assert seen and set(seen) == ({("float32", False)} if blocks else {("none", True)})
        seen = masks(vlm, lambda: answer_losses(vlm, collate(vlm, padded)), monkeypatch)
        assert seen and set(seen) == {("float32" if blocks else "bool", False)}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_options_that_share_a_prompt_have_a_mask_of_numbers(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load_vlm(str(saved(name)))
    seen = masks(vlm, lambda: option_scores(vlm, WORDS[:1]), monkeypatch)
    assert seen and set(seen) == {("float32", False)}


def test_three_families_have_blocks_whose_tokens_see_each_other() -> None:
    """The page on graphics cards names them."""
    assert {name for name, row in FAMILIES.items() if row.blocks is not None} == {
        "paligemma", "gemma3", "gemma4",
    }  # fmt: skip
