"""Every family: our way through the model is the stock model's, parts are parts, and adapters come and go."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.adapter_files import import_adapter
from tests.answer_loss import answer_loss
from tests.shares import fast_if, share

from fedloom.models import batches as batches
from fedloom.models.batches import answer_losses, collate, encode, generate, option_scores
from fedloom.models.family_interface import PLAIN, image_token
from fedloom.models.family_table import FAMILIES
from fedloom.models.last_layer import FEED_FORWARD, layers_of
from fedloom.models.load_model import Vlm, load_vlm, with_feature_store
from fedloom.models.memory_cache import Memo
from fedloom.models.module_paths import PARTS
from fedloom.params import Params
from fedloom.seeds import torch_stream
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import Tuned, prepare, side_by_side
from fedloom.tuning.dropout import Masks, adapter_dropout
from fedloom.tuning.export_adapter import export_adapter
from fedloom.tuning.strategies import LINEARS, LoRA, stage
from fedloom.types import Conversation, Turn

from .tiny import TINY, Drawn

FUSED = ("query_key_value", "dense", "qkv_proj")  # Persimmon, the decoder of Fuyu; Phi; Phi-3
EVERY = sorted(FAMILIES)
SEEING = sorted(name for name, row in FAMILIES.items() if row.images)
BLIND = sorted(name for name, row in FAMILIES.items() if not row.images)
OPTIONS = ("yes", "no way")
CONVERSATIONS = {
    "image and text": Conversation("Which of these is it?", "yes", Drawn("a"), OPTIONS),
    "text only": Conversation("Which?", "no way", None, OPTIONS),
    "image only": Conversation("", "no way", Drawn("b", 16, 40), OPTIONS),
    "several images": Conversation("Same?", "yes", Drawn("c"), OPTIONS, more=(Drawn("a"),)),
    "images where they stand": Conversation(
        "Is it or is it not?", "yes", Drawn("c"), OPTIONS, more=(Drawn("a"),), places=(6, 19)
    ),
    "several turns": Conversation(
        "And now?",
        "no way",
        Drawn("c"),
        OPTIONS,
        places=(4,),
        history=(Turn("Which?", "yes", (Drawn("a"),), (0,)), Turn("Sure?", "no way")),
        system="Be short.",
    ),
    "several turns without images": Conversation(
        "And now?",
        "yes",
        None,
        OPTIONS,
        history=(Turn("Which?", "yes"), Turn("Sure?", "no way")),
        system="Be short.",
    ),
}
WORDS = {name: one for name, one in CONVERSATIONS.items() if not one.pictures}


KINDS = [(name, kind) for name in EVERY for kind in (CONVERSATIONS if name in SEEING else WORDS)]


def conversations(vlm: Vlm) -> dict[str, Conversation]:
    """Return the conversations that a model can have."""
    return CONVERSATIONS if vlm.family.images else WORDS


@pytest.fixture
def folder(request: pytest.FixtureRequest, saved: Callable[[str], Path]) -> Path:
    return saved(request.param)


@pytest.fixture
def vlm(request: pytest.FixtureRequest, saved: Callable[[str], Path]) -> Vlm:
    return load_vlm(str(saved(request.param)))


def each_family(
    of: str, every: int = 1, first: int = 0, names: Sequence[str] = EVERY
) -> pytest.MarkDecorator:
    """Give a test the families one after the other as a fixture, of which the fast suite has each `every`-th."""
    return pytest.mark.parametrize(of, share(names, every, first), indirect=True)


def stock_inputs(vlm: Vlm, conversation: Conversation, answer: tuple[int, ...]) -> dict[str, Any]:
    """Make the stock model's inputs for one conversation and an answer."""
    prompt = encode(vlm, conversation, []).prompt
    ids = torch.tensor([[*prompt, *answer]])
    images: dict[str, Any] = {}
    if conversation.pictures:
        pixels = [one.pixels() for one in conversation.pictures]
        images = dict(
            vlm.processor.image_processor(pixels, return_tensors="pt", **vlm.family.settings(vlm.model))
        )
    given = TINY[vlm.model.config.model_type].stock(vlm.model, ids, len(prompt), images)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}


@torch.no_grad()
def stock_losses(vlm: Vlm, conversation: Conversation, answer: str) -> torch.Tensor:
    """Negative log-likelihood of each token of an answer, from the stock model."""
    (tokens,) = encode(vlm, conversation, [answer]).answers
    logits = vlm.model(**stock_inputs(vlm, conversation, tokens)).logits[0, -len(tokens) - 1 : -1]
    return F.cross_entropy(logits, torch.tensor(tokens), reduction="none")


def tune(vlm: Vlm, dropout: float = 0.0) -> Tuned:
    """Train all that the family has: its connector in full, and adapters on its decoder."""
    name = "both" if vlm.family.parts.connector else "lora"
    lora = LoRA(rank=2, targets=("q_proj", "o_proj", "up_proj", *FUSED), dropout=dropout)
    return prepare(vlm, stage(name, lora), seed=0)


def masks(client: int) -> Masks:
    return Masks(lambda layer: torch_stream(0, layer, client=client))


def moved(tuned: Tuned, seed: int = 5) -> Params:
    noise = torch.randn(tuned.layout.size, generator=torch.Generator().manual_seed(seed))
    return tuned.start.with_flat(tuned.start.flat + 0.1 * noise)


def test_every_family_has_a_row_and_a_tiny_variant() -> None:
    assert set(TINY) == set(FAMILIES)
    assert len(FAMILIES) >= 15


@each_family("vlm", 4, 1)
def test_parts_are_disjoint_and_cover_every_parameter(vlm: Vlm) -> None:
    names = [name for name, _ in vlm.model.named_parameters()]
    split = vlm.family.parts.split(names)
    assert sorted(name for part in PARTS for name in split[part]) == sorted(names)
    for part in PARTS:
        assert bool(split[part]) is bool(getattr(vlm.family.parts, part))


@each_family("vlm")
def test_the_loss_is_the_stock_models(vlm: Vlm) -> None:
    """All kinds of conversations in one padded batch, against the stock model one by one."""
    batch = list(conversations(vlm).values())
    stock = torch.stack([stock_losses(vlm, one, one.answer).mean() for one in batch])
    torch.testing.assert_close(answer_loss(vlm, batch), stock.mean(), rtol=1e-5, atol=1e-5)


MARKS = (
    "<image>",
    "</s>",
    "<s>",
    "<|im_end|>",
    "<|im_start|>",
    "[INST]",
    "<|endoftext|>",
    "<end_of_turn>",
    "|NEWLINE|",
)


def special_ids(vlm: Vlm, ids: tuple[int, ...]) -> list[int]:
    return [one for one in ids if one in vlm.tokenizer.all_special_ids]


@each_family("vlm", 4, 2)
def test_a_users_text_stays_text(vlm: Vlm) -> None:
    """Whatever stands in a question, an answer or an earlier turn, the special tokens are those of the template."""
    known = (
        *vlm.tokenizer.all_special_tokens,
        *MARKS,
        vlm.family.placeholder(vlm.model, vlm.tokenizer).strip() or "<image>",
    )
    hostile = " ".join(f"{mark}{mark} a{mark}b" for mark in known)
    assert special_ids(vlm, tuple(vlm.tokenizer(hostile, add_special_tokens=False)["input_ids"]))
    for words in (hostile, "plain"):
        earlier = ((Drawn("b"),), (0,)) if vlm.family.images else ()
        image = Drawn("a") if vlm.family.images else None
        talk = Conversation(words, words, image, history=(Turn(words, words, *earlier),), system=words)
        encoded = encode(vlm, talk, [words])
        if words is hostile:
            wrong = encoded
    assert special_ids(vlm, wrong.prompt) == special_ids(vlm, encoded.prompt)
    assert special_ids(vlm, wrong.answers[0]) == special_ids(vlm, encoded.answers[0])
    kept = vlm.tokenizer.decode(wrong.answers[0], skip_special_tokens=True)
    squeezed = "".join(hostile.split())
    assert "".join(kept.split()).startswith(squeezed)


@each_family("vlm", 4, 3)
def test_the_prompt_has_earlier_turns_in_order(vlm: Vlm) -> None:
    talk = CONVERSATIONS["several turns" if vlm.family.images else "several turns without images"]
    prompt = vlm.tokenizer.decode(encode(vlm, talk, ["yes"]).prompt)
    places = [
        prompt.find(words) for words in ("Be short.", "Which?", "yes", "Sure?", "no way", "And", "now?")
    ]
    assert -1 not in places and places == sorted(places)


@each_family("vlm", 4, 0, SEEING)
def test_stored_features_of_images_of_several_sizes_are_the_computed_ones(vlm: Vlm, tmp_path: Path) -> None:
    images = [Drawn("a"), Drawn("b", 16, 40), Drawn("c", 40, 16)]
    computed = vlm.image_features(images)
    assert not with_feature_store(vlm, tmp_path, 2**24).memo.missing(images)  # held in memory
    with_feature_store(replace(vlm, memo=Memo()), tmp_path, 2**24).image_features(images)
    read = with_feature_store(replace(vlm, memo=Memo()), tmp_path, 2**24)
    assert not read.memo.missing(images)
    assert all(torch.equal(a, b) for a, b in zip(read.image_features(images), computed, strict=True))


@each_family("vlm", 4, 1, SEEING)
def test_image_tokens_that_disagree_with_the_encoder_are_an_error(vlm: Vlm) -> None:
    if vlm.model.config.model_type == "mllama":
        return  # its images are no tokens
    spell = vlm.family.spell
    longer = replace(vlm.family, spell=lambda *given: spell(*given) + image_token(vlm.model, vlm.tokenizer))
    with pytest.raises(UserError, match="image tokens, but encoder and connector give"):
        answer_loss(replace(vlm, family=longer), [CONVERSATIONS["image and text"]])


@each_family("vlm", 4, 2, SEEING)
def test_a_chat_template_that_leaves_out_the_image_is_an_error(vlm: Vlm) -> None:
    vlm.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(UserError, match=r"chat template.*0 times for 1 images"):
        answer_loss(vlm, [CONVERSATIONS["image and text"]])


@each_family("folder", 9, 2)
def test_a_chat_template_in_a_file_of_its_own_is_found(folder: Path, tmp_path: Path) -> None:
    """Older checkpoints keep it beside the processor, where the tokenizer does not look."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    shown = load_vlm(str(folder)).processor.image
    text = PLAIN.replace("{{ image if", "{{ '" + shown + "' if")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    assert load_vlm(str(tmp_path)).tokenizer.chat_template == text


@each_family("vlm", 4, 3, SEEING)
def test_images_change_the_loss(vlm: Vlm) -> None:
    one, other = (Conversation("Which?", "yes", Drawn(key)) for key in "ab")
    assert answer_loss(vlm, [one]) != answer_loss(vlm, [other])


@each_family("vlm", 4, 0)
def test_packed_options_score_as_the_stock_model_scores_each(vlm: Vlm) -> None:
    batch = list(conversations(vlm).values())
    scores = option_scores(vlm, batch)
    for row, conversation in zip(scores, batch, strict=True):
        stock = torch.stack([-stock_losses(vlm, conversation, option).sum() for option in OPTIONS])
        torch.testing.assert_close(row, stock, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@each_family("vlm", 4, 1)
def test_generation_gives_the_most_likely_tokens_of_the_stock_model(vlm: Vlm) -> None:
    batch = list(conversations(vlm).values())
    for conversation, reply in zip(batch, generate(vlm, batch, max_tokens=4), strict=True):
        tokens: list[int] = []
        while len(tokens) < 4:
            logits = vlm.model(**stock_inputs(vlm, conversation, tuple(tokens))).logits[0, -1]
            if int(logits.argmax()) == vlm.tokenizer.eos_token_id:
                break
            tokens.append(int(logits.argmax()))
        assert vlm.tokenizer.decode(tokens, skip_special_tokens=True).strip() == reply


@pytest.mark.parametrize(
    ("name", "kind"),
    fast_if(KINDS, lambda place, _: place % len(CONVERSATIONS) == 0),
)
def test_every_kind_of_batch_trains_and_leaves_frozen_parts_alone(
    saved: Callable[[str], Path], name: str, kind: str
) -> None:
    vlm = load_vlm(str(saved(name)))
    tuned = tune(vlm)
    tuned.write(moved(tuned))
    live = {p.data_ptr() for p in vlm.model.parameters() if p.requires_grad}
    held = (*vlm.model.named_parameters(), *vlm.model.named_buffers())
    frozen = {n: p.clone() for n, p in held if p.data_ptr() not in live}
    before = tuned.read()
    answer_loss(vlm, [CONVERSATIONS[kind]]).backward()
    reached = {
        name.partition("/")[0] for name, grad in tuned.start.with_flat(tuned.grads).items() if grad.any()
    }
    expected = {"llm"} if kind in WORDS else set(tuned.stage.train)
    assert reached == expected
    with torch.no_grad():
        tuned.flat.sub_(tuned.grads, alpha=0.1)
    now = {**dict(vlm.model.named_parameters()), **dict(vlm.model.named_buffers())}
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert not torch.equal(tuned.read().flat, before.flat)


@pytest.mark.parametrize(("vlm", "dropout"), share(product(EVERY, (0.0, 0.3)), 7, 0), indirect=["vlm"])
def test_clients_side_by_side_have_the_losses_they_have_alone(vlm: Vlm, dropout: float) -> None:
    """Three clients, with other parameters, other numbers of conversations, other images and other masks."""
    tuned, every = tune(vlm, dropout), list(conversations(vlm).values())
    groups = [every, [CONVERSATIONS["text only"]], every[:2]]
    results = []
    with side_by_side(tuned, len(groups)) as stack:
        for row in range(len(groups)):
            stack.write(moved(tuned, seed=row), row)
        batch = collate(vlm, groups)
        with adapter_dropout(stack, batch, [masks(row) for row in range(len(groups))]):
            losses = answer_losses(vlm, batch, stack.connectors(len(groups)))
            losses.sum().backward()
        results = [(loss.detach(), grad.clone()) for loss, grad in zip(losses, stack.grads, strict=True)]
    for row, (group, (loss, grad)) in enumerate(zip(groups, results, strict=True)):
        tuned.write(moved(tuned, seed=row))
        tuned.grads.zero_()
        batch = collate(vlm, [group])
        with adapter_dropout(tuned, batch, [masks(row)]):
            alone = answer_losses(vlm, batch)[0]
            alone.backward()
        torch.testing.assert_close(loss, alone.detach(), rtol=1e-5, atol=1e-5)
        assert float((grad - tuned.grads[0]).norm()) <= 1e-4 * float(grad.norm())


@pytest.mark.parametrize(("vlm", "dropout"), share(product(EVERY, (0.0, 0.3)), 7, 3), indirect=["vlm"])
def test_the_last_layer_at_answers_only_has_the_gradients_of_the_whole_layer(
    vlm: Vlm, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients of unequal sizes: same losses, same gradients, from fewer positions; with dropout from all."""
    tuned, every = tune(vlm, dropout), list(conversations(vlm).values())
    groups = [every, [CONVERSATIONS["text only"]]]
    batch, seen = collate(vlm, groups), list[int]()
    (feed_forward,) = (part for name, part in layers_of(vlm)[-1].named_children() if name in FEED_FORWARD)
    first = next(part for part in feed_forward.modules() if [*part.parameters(recurse=False)])
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
    results = []
    with side_by_side(tuned, 2) as stack:
        for row in range(2):
            stack.write(moved(tuned, seed=row), row)
        for way in (batches.last_layer_at, lambda vlm, reads: nullcontext()):
            monkeypatch.setattr(batches, "last_layer_at", way)
            stack.grads.zero_()
            with adapter_dropout(stack, batch, [masks(row) for row in range(2)]):
                losses = answer_losses(vlm, batch, stack.connectors(2))
                losses.sum().backward()
            results.append((losses.detach(), stack.grads.clone()))
    (losses, grads), (expected, whole) = results
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert float((grads - whole).norm()) <= 1e-5 * float(whole.norm())
    assert seen == [batch.ids.numel() if dropout else batch.answer_positions.numel(), batch.ids.numel()]
    assert batch.answer_positions.numel() < batch.ids.numel()


def test_dropout_is_refused_where_a_layer_sees_only_image_tokens(
    saved: Callable[[str], Path],
) -> None:
    vlm = load_vlm(str(saved("mllama")))
    tuned = prepare(vlm, stage("lora", LoRA(targets=("cross_attn.k_proj",), dropout=0.3)), seed=0)
    batch = collate(vlm, [[CONVERSATIONS["image and text"]]])
    with pytest.raises(
        UserError, match=r"strategy\.dropout is 0\.3, but the layer .*k_proj processes rows other than"
    ):
        with adapter_dropout(tuned, batch, [masks(0)]):
            answer_losses(vlm, batch)


@each_family("folder", 4, 2)
def test_adapters_come_back_and_load_with_stock_peft(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    tuned = tune(load_vlm(str(folder)))
    seen = "image and text" if tuned.vlm.family.images else "text only"
    params = moved(tuned)
    export_adapter(tuned, params, tmp_path)
    assert torch.equal(import_adapter(tuned, tmp_path).flat, params.flat)
    kind = AutoModelForImageTextToText if tuned.vlm.family.images else AutoModelForCausalLM
    base = kind.from_pretrained(folder, dtype=torch.float32)
    stock = PeftModel.from_pretrained(base, tmp_path).eval()
    result = stock.load_adapter(str(tmp_path), "again")
    assert not result.missing_keys
    assert not result.unexpected_keys
    tuned.write(params)
    inputs = stock_inputs(tuned.vlm, CONVERSATIONS[seen], (7, 8))
    with torch.no_grad():
        ours, theirs = tuned.vlm.model(**inputs).logits, stock(**inputs).logits
        plain = load_vlm(str(folder)).model(**inputs).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, plain)


@pytest.mark.parametrize(
    ("name", "asked"), [("phi", "<s>Which?\n"), ("llama", "<s><user>Which?<end><assistant>")]
)
def test_a_language_model_gets_its_own_template_or_the_plain_one(
    saved: Callable[[str], Path], name: str, asked: str
) -> None:
    vlm = load_vlm(str(saved(name)))
    encoded = encode(vlm, CONVERSATIONS["text only"], ["yes"])
    assert vlm.tokenizer.decode(encoded.prompt) == asked
    assert vlm.tokenizer.decode(encoded.answers[0]) == "yes<end>"


@each_family("vlm", 4, 0, BLIND)
def test_an_image_for_a_language_model_is_an_error(vlm: Vlm) -> None:
    with pytest.raises(UserError, match=r"an image cannot be used.* sees text only"):
        answer_loss(vlm, [CONVERSATIONS["image and text"]])
    with pytest.raises(UserError, match=r"an image cannot be used.* sees text only"):
        option_scores(vlm, [CONVERSATIONS["image only"]])


@pytest.mark.parametrize(
    "name", share(sorted(name for name in EVERY if not FAMILIES[name].parts.connector), 5)
)
def test_replacing_the_connector_of_a_family_without_one_is_an_error(
    saved: Callable[[str], Path], name: str
) -> None:
    with pytest.raises(UserError, match=r"no connector.*set strategy\.name to lora"):
        prepare(load_vlm(str(saved(name))), stage("connector", LoRA()), seed=0)


def on_meta(text: dict[str, Any]) -> Vlm:
    """A LLaVA around a decoder of a real model's size, without values."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(text_config=text))
    return Vlm("meta", model, None, FAMILIES["llava"], "")


QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151666,
}  # fmt: skip
LLAMA_3B = {
    "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 128,
}  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize(
    ("text", "targets", "count"),
    [
        pytest.param(QWEN2_7B, ATTENTION, 5_046_272, id="FedMLLM, MiniCPM-V-2.6"),
        pytest.param(LLAMA_3B, LINEARS, 12_156_928, id="FedVLMBench, LLaMA-3.2-3B"),
    ],
)
def test_adapters_are_as_large_as_published(
    text: dict[str, Any], targets: tuple[str, ...], count: int
) -> None:
    assert prepare(on_meta(text), stage("lora", LoRA(rank=8, targets=targets)), seed=0).layout.size == count
