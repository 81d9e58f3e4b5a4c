"""Models: parts cover everything once, and fast paths give what the plain path gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.answer_loss import answer_loss

from fedloom.client import answer_questions
from fedloom.client.answer_questions import score_options
from fedloom.data.drawn_shapes import MAKERS
from fedloom.models.batches import encode, generate, option_scores
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import BUNDLED, Vlm, load_vlm
from fedloom.models.module_paths import PARTS, Parts
from fedloom.models.teacher_forcing import teacher_forced
from fedloom.seeds import stream
from fedloom.system.errors import UserError
from fedloom.tasks import AGNOSTIC, TASKS
from fedloom.types import Conversation, Presence


@pytest.fixture
def vlm(tiny_model: Path) -> Vlm:
    return load_vlm(str(tiny_model))


def pictured(count: int, kind: str = "classification") -> list[Conversation]:
    conversations = []
    for index in range(count):
        example = MAKERS[kind](stream(7, kind, step=index), str(index))
        example = replace(example, text=" ".join(["word"] * index) or None)
        conversations.append(
            TASKS[example.task].render(
                example,
                Presence(index % 3 != 2, True),
                clause=AGNOSTIC if index % 2 else None,
                answer_form="text",
            )
        )
    return conversations


def test_parts_cover_every_parameter_once(vlm: Vlm) -> None:
    names = [name for name, _ in vlm.model.named_parameters()]
    split = vlm.family.parts.split(names)
    assert sorted(name for part in PARTS for name in split[part]) == sorted(names)
    assert all(split[part] for part in PARTS)


def test_the_longest_prefix_decides_and_unknown_names_are_an_error() -> None:
    parts = Parts(("visual",), ("visual.merger",), ("text",))
    assert parts.part_of("visual.blocks.0") == "encoder"
    assert parts.part_of("visual.merger.0") == "connector"
    with pytest.raises(ValueError, match="mergers"):
        Parts((), ("visual.merger",), ("text",)).part_of("visual.mergers")


def test_everything_is_frozen_after_loading(vlm: Vlm) -> None:
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())
    assert not vlm.model.training


def test_loss_is_the_stock_models_loss(vlm: Vlm) -> None:
    """Our forward pass (cached features, head at answers only) against transformers' own, one by one."""
    conversations = pictured(5)
    ours, stock = answer_loss(vlm, conversations), []
    for conversation in conversations:
        encoded = encode(vlm, conversation, [conversation.answer])
        prompt = encoded.prompt
        ids = torch.tensor([[*prompt, *encoded.answers[0]]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        pixels = None
        if conversation.picture is not None:
            images = [conversation.picture.pixels()]
            pixels = vlm.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            stock.append(vlm.model(input_ids=ids, pixel_values=pixels, labels=labels).loss)
    torch.testing.assert_close(ours, torch.stack(stock).mean(), rtol=1e-5, atol=1e-6)


def test_the_prompt_is_what_the_stock_processor_makes(vlm: Vlm, tiny_model: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_model)
    conversation = pictured(1)[0]
    assert conversation.picture is not None
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": conversation.user}]}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    stock = processor(
        images=[conversation.picture.pixels()], text=[text], add_special_tokens=False, return_tensors="pt"
    )["input_ids"][0]
    assert list(encode(vlm, conversation, []).prompt) == stock.tolist()


def test_packed_option_scores_are_one_by_one_scores(vlm: Vlm) -> None:
    conversations = pictured(5)
    packed = option_scores(vlm, conversations)
    for row, conversation in enumerate(conversations):
        for column, option in enumerate(conversation.options):
            single = replace(conversation, answer=option)
            length = len(encode(vlm, single, [option]).answers[0])
            alone = -answer_loss(vlm, [single]) * length
            torch.testing.assert_close(packed[row, column], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("most", [1, 8, 20])
def test_options_that_need_several_passes_are_scored_alike(vlm: Vlm, monkeypatch: Any, most: int) -> None:
    conversations = [
        replace(one, options=one.options[: 1 + number % len(one.options)])
        for number, one in enumerate(pictured(5))
    ]
    packed = score_options(vlm, conversations, [vlm.connect, vlm.connect])
    torch.testing.assert_close(packed[:5], option_scores(vlm, conversations), rtol=1e-4, atol=1e-4)
    widths = []

    def counted(*given: Any) -> torch.Tensor:
        answers = [encode(vlm, one, one.options).answers for one in given[1]]
        widths.extend((len(own), sum(map(len, own))) for own in answers)
        return option_scores(*given)

    monkeypatch.setattr(answer_questions, "PACKED", most)
    monkeypatch.setattr(answer_questions, "option_scores", counted)
    apart = score_options(vlm, conversations, [vlm.connect, vlm.connect])
    torch.testing.assert_close(apart, packed, rtol=1e-4, atol=1e-4)
    assert all(count == 1 or width <= most for count, width in widths)
    assert sum(count for count, _ in widths) == sum(len(one.options) for one in conversations)


def test_batched_generation_is_stock_generation(vlm: Vlm) -> None:
    conversations = pictured(4)
    replies = generate(vlm, conversations, max_tokens=6)
    for conversation, reply in zip(conversations, replies, strict=True):
        ids = torch.tensor([encode(vlm, conversation, []).prompt])
        seen = {}
        if conversation.picture is not None:
            seen = vlm.processor.image_processor(images=[conversation.picture.pixels()], return_tensors="pt")
        stock = vlm.model.generate(input_ids=ids, **seen, max_new_tokens=6, do_sample=False)
        assert vlm.tokenizer.decode(stock[0, ids.shape[1] :], skip_special_tokens=True).strip() == reply


def test_teacher_forced_text_is_the_stock_models_best_token_after_each_right_one(vlm: Vlm) -> None:
    conversations = pictured(4)
    replies = teacher_forced(vlm, conversations)
    for conversation, reply in zip(conversations, replies, strict=True):
        encoded = encode(vlm, conversation, [conversation.answer])
        prompt = list(encoded.prompt)
        ids = torch.tensor([[*prompt, *encoded.answers[0]]])
        seen = {}
        if conversation.picture is not None:
            seen = vlm.processor.image_processor(images=[conversation.picture.pixels()], return_tensors="pt")
        with torch.no_grad():
            best = vlm.model(input_ids=ids, **seen).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert len(best) == len(encoded.answers[0])
        assert vlm.tokenizer.decode(best, skip_special_tokens=True).strip() == reply


def test_features_are_the_same_with_and_without_the_cache(vlm: Vlm) -> None:
    images = [one.picture for one in pictured(4) if one.picture is not None]
    cold = torch.stack(vlm.image_features(images))
    assert len(vlm.memo.features) == len({image.key for image in images})
    assert torch.equal(torch.stack(vlm.image_features(images)), cold)


def test_user_text_cannot_place_an_image(vlm: Vlm) -> None:
    example = replace(MAKERS["vqa"](stream(0, "x"), "0"), question="<image> <image> </s> what?")
    conversation = TASKS["vqa"].render(example, Presence(True, True), answer_form="text")
    ids = encode(vlm, conversation, []).prompt
    assert ids.count(vlm.model.config.image_token_id) == 16  # those of the image
    assert vlm.tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("path", ["no/such/folder", "nobody/nothing"])
def test_a_missing_model_is_one_clear_message(path: str) -> None:
    with pytest.raises(UserError, match=r"model\.path.*" + path):
        load_vlm(path)


def test_an_unsupported_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=rf"'bert'.*{', '.join(FAMILIES)}"):
        load_vlm(str(tmp_path))


def test_weights_in_a_pickle_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match="safetensors"):
        load_vlm(str(tmp_path))


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_models_are_small_and_standard(name: str) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    assert sum(file.stat().st_size for file in BUNDLED[name].iterdir()) <= 24_000_000
    model = AutoModelForImageTextToText.from_pretrained(BUNDLED[name])
    for kind in (AutoProcessor, AutoTokenizer, AutoImageProcessor):
        kind.from_pretrained(BUNDLED[name])
    assert 3e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 15e6
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
