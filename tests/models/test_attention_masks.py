"""Attention gets a dense mask only where a batch or a family needs one, since the fastest kernels of GPUs take none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedloom.models.batches import answer_losses, collate, option_scores
from fedloom.models.decoder_inputs import Rows, decoder_inputs, has_sliding_window, run_decoder
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.types import Conversation

from .conversations import IMAGES, WORDS, talks


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


def kinds(vlm: Vlm, talks: list[Conversation], monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, bool]]:
    with torch.no_grad(), monkeypatch.context() as patch:
        return set(masks(vlm, lambda: answer_losses(vlm, collate(vlm, [talks])), patch))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "gemma4"])
def test_training_has_no_mask_of_numbers_unless_some_tokens_see_each_other(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without padding there is none at all, but in layers that see a window only. The tiny Gemma 4 has no blocks, as small ones."""
    vlm = load_vlm(str(saved(name)))
    windows = {("bool", False)} if has_sliding_window(vlm) else set[tuple[str, bool]]()
    alone, padded, shown = (kinds(vlm, some, monkeypatch) for some in (WORDS[:1], WORDS, IMAGES))
    assert {("none", True)} <= alone <= {("none", True)} | windows
    assert padded == {("bool", False)}
    assert shown == {("float32" if name == "gemma3" else "bool", False)}


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_a_batch_without_blocks_has_the_numbers_of_one_with_a_dense_mask(
    name: str, saved: Callable[[str], Path]
) -> None:
    vlm = load_vlm(str(saved(name)))
    for some in (WORDS[:1], WORDS):
        batch = collate(vlm, [some])
        rows, width = Rows(batch.ids, batch.mask, batch.lengths, batch.grids), batch.ids.shape[1]
        allowed = torch.ones(width, width, dtype=torch.bool).tril() & batch.mask[:, None].bool()
        with torch.no_grad():
            plain, dense = (
                run_decoder(vlm, decoder_inputs(vlm, rows, [], allowed=one), use_cache=False)
                for one in (None, allowed)
            )
        real = batch.mask.bool()
        torch.testing.assert_close(plain[real], dense[real], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_options_that_share_a_prompt_have_a_mask_of_numbers(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load_vlm(str(saved(name)))
    seen = masks(vlm, lambda: option_scores(vlm, WORDS[:1]), monkeypatch)
    assert seen and set(seen) == {("float32", False)}


def test_three_families_have_blocks_whose_tokens_see_each_other() -> None:
    """The page on GPUs names them."""
    assert {name for name, row in FAMILIES.items() if row.blocks is not None} == {
        "paligemma", "gemma3", "gemma4",
    }  # fmt: skip
