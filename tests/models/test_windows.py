"""Decoders with sliding windows, in every way in which a configuration may ask for them: ours is the stock model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.answer_loss import answer_loss
from tests.shares import share

from fedloom.models.batches import encode, generate, option_scores
from fedloom.models.decoder_inputs import attention_windows, has_sliding_window, max_positions
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.types import Conversation

from .tiny import CLIP, SIGLIP, TINY, Drawn, text
from .tiny import save as save_tiny

WINDOW = 5
SPREAD = 0.3
"""Standard deviation of the weights, so that what a window hides makes a difference that can be seen."""


def llava(vocabulary: dict[str, int], image: int, **decoder: Any) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIP, text_config=text(vocabulary, **decoder), image_token_id=image)
    )


def paligemma(vocabulary: dict[str, int], image: int, **decoder: Any) -> Any:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    vision = {**SIGLIP, "projection_dim": 16}
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=vision,
            image_token_id=image,
            projection_dim=16,
            text_config=text(vocabulary, **decoder),
        )
    )


def gemma3(vocabulary: dict[str, int], image: int, **decoder: Any) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config={**SIGLIP, "image_size": 32},
            text_config=text(vocabulary, **decoder),
            image_token_id=image,
            mm_tokens_per_image=16,
        )
    )


MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": MIXED}
# name → family, how it is built, its decoder, and whether some layers see a window
DECODERS: dict[str, tuple[str, Any, dict[str, Any], bool]] = {
    "mistral": ("llava", llava, {"kind": "mistral", "sliding_window": WINDOW}, True),
    "mistral without": ("llava", llava, {"kind": "mistral", "sliding_window": None}, False),
    "phi3": ("llava", llava, {"kind": "phi3", "sliding_window": WINDOW}, True),
    "starcoder2": ("llava", llava, {"kind": "starcoder2", "sliding_window": WINDOW}, True),
    "gemma2": ("llava", llava, {"kind": "gemma2", **GEMMA}, True),
    "gemma3_text": ("llava", llava, {"kind": "gemma3_text", **GEMMA}, True),
    "qwen2 all": (
        "llava", llava, {"kind": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
        True,
    ),
    "qwen2 some": (
        "llava", llava, {"kind": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
        True,
    ),
    "qwen2 none": ("llava", llava, {"kind": "qwen2", "sliding_window": WINDOW}, False),
    "qwen3": (
        "llava", llava,
        {"kind": "qwen3", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "head_dim": 8},
        True,
    ),
    "smollm3": (
        "llava", llava, {"kind": "smollm3", "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
        True,
    ),
    "llama": ("llava", llava, {}, False),
    "paligemma 2": ("paligemma", paligemma, {"kind": "gemma2", **GEMMA}, True),
    "paligemma": ("paligemma", paligemma, {"kind": "gemma", "head_dim": 8}, False),
    "gemma3": ("gemma3", gemma3, {"kind": "gemma3_text", **GEMMA}, True),
}  # fmt: skip

OPTIONS = ("yes", "not at all, no way", "b")
CONVERSATIONS = [
    Conversation("Which of these is it, then?", "not at all, no way", Drawn("a"), OPTIONS),
    Conversation("Which?", "yes", None, OPTIONS),
    Conversation("Same as the other one?", "b", Drawn("c"), OPTIONS, more=(Drawn("a"),)),
]


@pytest.fixture
def vlm(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vlm:
    family, build, decoder, _ = DECODERS[request.param]

    def wide(vocabulary: dict[str, int], image: int) -> Any:
        model = build(vocabulary, image, **decoder)
        for value in model.parameters():
            if value.dim() > 1:
                torch.nn.init.normal_(value, std=SPREAD)
        return model

    monkeypatch.setitem(TINY, family, replace(TINY[family], build=wide))
    vlm = load_vlm(str(save_tiny(family, tmp_path)))
    assert has_sliding_window(vlm) is DECODERS[request.param][3]
    return vlm


@torch.no_grad()
def stock_logits(vlm: Vlm, conversation: Conversation, answer: tuple[int, ...]) -> torch.Tensor:
    """Logits of one plain pass of the whole stock model, from the prompt's last token on."""
    prompt = encode(vlm, conversation, []).prompt
    ids, images = torch.tensor([[*prompt, *answer]]), {}
    if conversation.pictures:
        pixels = [one.pixels() for one in conversation.pictures]
        images = dict(
            vlm.processor.image_processor(pixels, return_tensors="pt", **vlm.family.settings(vlm.model))
        )
    given = TINY[vlm.model.config.model_type].stock(vlm.model, ids, len(prompt), images)
    return vlm.model(input_ids=ids, attention_mask=torch.ones_like(ids), **given).logits[0, len(prompt) - 1 :]


def stock_losses(vlm: Vlm, conversation: Conversation, answer: str) -> torch.Tensor:
    (tokens,) = encode(vlm, conversation, [answer]).answers
    return F.cross_entropy(
        stock_logits(vlm, conversation, tokens)[:-1], torch.tensor(tokens), reduction="none"
    )


@pytest.mark.parametrize("vlm", share(DECODERS, 3), indirect=True)
def test_the_window_matters_to_the_stock_model(vlm: Vlm) -> None:
    """Otherwise the tests below could not fail."""
    _, window = attention_windows(vlm)
    if window is None:
        return
    before = stock_losses(vlm, CONVERSATIONS[0], OPTIONS[1]).sum()
    vlm.model.config.get_text_config().sliding_window = 10_000
    assert float(abs(stock_losses(vlm, CONVERSATIONS[0], OPTIONS[1]).sum() - before)) > 0.01


@pytest.mark.parametrize("vlm", DECODERS, indirect=True)
def test_options_score_as_one_plain_pass_for_each(vlm: Vlm) -> None:
    stock = [[-stock_losses(vlm, one, option).sum() for option in OPTIONS] for one in CONVERSATIONS]
    torch.testing.assert_close(option_scores(vlm, CONVERSATIONS), torch.tensor(stock), rtol=0, atol=1e-4)


@pytest.mark.parametrize("vlm", share(DECODERS, 3, 1), indirect=True)
def test_the_training_loss_is_the_stock_models(vlm: Vlm) -> None:
    stock = torch.stack([stock_losses(vlm, one, one.answer).mean() for one in CONVERSATIONS])
    torch.testing.assert_close(answer_loss(vlm, CONVERSATIONS), stock.mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("vlm", share(DECODERS, 3, 2), indirect=True)
def test_generation_gives_the_most_likely_tokens_of_the_stock_model(vlm: Vlm) -> None:
    for conversation, reply in zip(CONVERSATIONS, generate(vlm, CONVERSATIONS, max_tokens=7), strict=True):
        said: list[int] = []
        while len(said) < 7:
            best = int(stock_logits(vlm, conversation, tuple(said))[-1].argmax())
            if best == vlm.tokenizer.eos_token_id:
                break
            said.append(best)
        assert vlm.tokenizer.decode(said, skip_special_tokens=True).strip() == reply


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 4096, "sliding_window": 5}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": None}, None),
        ({}, None),
    ],
)
def test_the_limit_is_that_of_the_decoder(config: dict[str, Any], expected: int | None) -> None:
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config)))
    assert max_positions(Vlm("x", model, None, FAMILIES["llava"], "")) == expected
