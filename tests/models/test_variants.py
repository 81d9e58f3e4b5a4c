"""Published models that are other than the first of their family: with another decoder, or features of several layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.answer_loss import answer_loss
from transformers import (
    Idefics2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from fedloom.models.batches import encode, option_scores
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.system.errors import UserError
from fedloom.types import Conversation

from .tiny import EXPERTS, IDEFICS, PINPOINTS, SIGLIP, TINY, Drawn, gemma3, gemma4, ovis2, save, text

ASKED = Conversation("Which of these is it?", "yes", Drawn("a", 16, 40), ("yes", "no way"))


def internvl(kind: str, **more: Any) -> Callable[[dict[str, int], int], Any]:
    def build(vocabulary: dict[str, int], image: int) -> Any:
        vision = {**IDEFICS, "image_size": [16, 16], "patch_size": [4, 4]}
        decoder = text(vocabulary, kind, head_dim=8, **more)
        config = InternVLConfig(vision_config=vision, text_config=decoder, image_token_id=image)
        return InternVLForConditionalGeneration(config)

    return build


def granite_vision(vocabulary: dict[str, int], image: int) -> Any:
    config = LlavaNextConfig(
        vision_config=SIGLIP, image_token_id=image, image_grid_pinpoints=PINPOINTS, vision_feature_layer=[-2, -1],
        text_config=text(vocabulary, "granite", embedding_multiplier=2.0, logits_scaling=3.0),
        vision_feature_select_strategy="full", use_image_newline_parameter=True,
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config)


def smolvlm2(vocabulary: dict[str, int], image: int) -> Any:
    config = SmolVLMConfig(
        vision_config=IDEFICS, image_token_id=image, scale_factor=4, pad_token_id=0, tie_word_embeddings=True,
        text_config=text(vocabulary, num_key_value_heads=1),
    )  # fmt: skip
    return SmolVLMForConditionalGeneration(config)


LARGE = {
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True, "num_global_key_value_heads": 2,
}  # fmt: skip
GEMMA_EXPERTS = {
    **LARGE,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 8,
}
WHOLE = {"images": lambda: Idefics2ImageProcessor(size={"shortest_edge": 8, "longest_edge": 33})}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "InternVL 3.5, dense": ("internvl", {"build": internvl("qwen3")}),
    "InternVL 3.5, with experts": ("internvl", {"build": internvl("qwen3_moe", **EXPERTS)}),
    "Granite Vision 3": ("llava_next", {"build": granite_vision}),
    "SmolVLM2": ("smolvlm", {"build": smolvlm2}),
    "Gemma 4 31B": ("gemma4", {"build": partial(gemma4, **LARGE)}),
    "Gemma 4 26B, with experts": ("gemma4", {"build": partial(gemma4, **GEMMA_EXPERTS)}),
    "Ovis2 with the likeliest word": ("ovis2", {"build": partial(ovis2, tokenize_function="st_argmax")}),
    "Idefics2 without splitting": ("idefics2", WHOLE),
}


def save_as(monkeypatch: pytest.MonkeyPatch, family: str, changed: dict[str, Any], folder: Path) -> Path:
    """Write a family's tiny variant with something changed."""
    monkeypatch.setitem(TINY, family, replace(TINY[family], **changed))
    return save(family, folder / "model")


@pytest.fixture(params=VARIANTS)
def vlm(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vlm:
    return load_vlm(str(save_as(monkeypatch, *VARIANTS[request.param], tmp_path)))


@torch.no_grad()
def test_a_variant_scores_answers_as_the_stock_model_does(vlm: Vlm) -> None:
    pixels, settings = [ASKED.pictures[0].pixels()], vlm.family.settings(vlm.model)
    given = dict(vlm.processor.image_processor(pixels, return_tensors="pt", **settings))
    sums = []
    for option in ASKED.options:
        encoded = encode(vlm, ASKED, [option])
        (tokens,) = encoded.answers
        ids = torch.tensor([[*encoded.prompt, *tokens]])
        images = TINY[vlm.model.config.model_type].stock(vlm.model, ids, len(encoded.prompt), given)
        logits = vlm.model(input_ids=ids, **images).logits[0, -len(tokens) - 1 : -1]
        losses = F.cross_entropy(logits, torch.tensor(tokens), reduction="none")
        sums.append(-losses.sum())
        if option == ASKED.answer:
            torch.testing.assert_close(answer_loss(vlm, [ASKED]), losses.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(option_scores(vlm, [ASKED])[0], torch.stack(sums), rtol=1e-4, atol=1e-4)


def gemma3_both(vocabulary: dict[str, int], image: int) -> Any:
    model = gemma3(vocabulary, image)
    model.config.text_config.use_bidirectional_attention = True
    return model


def ovis2_mixed(vocabulary: dict[str, int], image: int) -> Any:
    model = ovis2(vocabulary, image)
    model.config.visual_indicator_token_ids = model.config.visual_indicator_token_ids[::-1]
    return model


REFUSED: dict[str, tuple[str, Callable[[dict[str, int], int], Any], str]] = {
    "visual words at random": ("ovis2", partial(ovis2, tokenize_function="gumbel_argmax"), "at random"),
    "marks of other numbers": ("ovis2", ovis2_mixed, r"<IMG_START>.* do not have the ids"),
    "Gemma 3 in both directions": ("gemma3", gemma3_both, "sees later tokens"),
    "Gemma 4 in both directions": (
        "gemma4", partial(gemma4, use_bidirectional_attention="all"), "sees later tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_contradictory_configurations_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, build, message = REFUSED[name]
    folder = save_as(monkeypatch, family, {"build": build}, tmp_path)
    with pytest.raises(UserError, match=message):
        load_vlm(str(folder))
