"""Weights are all there, or the message names what is not; and a digest says whether a model is still the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedloom.config.schema import Model
from fedloom.models.assemble_model import base_digest, load_model
from fedloom.models.hub import Source
from fedloom.models.judge_model import load_judge
from fedloom.models.load_model import load_vlm
from fedloom.system.errors import UserError

from ..hostile.models import key_like, tensors
from .tiny import CLIP, tokenizer

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
WORDS = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "eos_token_id": 5,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip


def write_llm(folder: Path, kind: str = "Llama", **more: Any) -> Path:
    import transformers

    words = tokenizer("<other>", [], {}, CHAT)
    config = getattr(transformers, f"{kind}Config")(**WORDS, vocab_size=len(words), **more)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    return write_llm(tmp_path / "llm")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    CLIPModel(CLIPConfig(vision_config=CLIP, text_config=text)).save_pretrained(tmp_path / "encoder")
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    images.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def drop(ending: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda held: held.pop(key_like(held, ending))


def cut(ending: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda held: held.update({(k := key_like(held, ending)): held[k][:-1].clone()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("vision_model.encoder.layers.0.mlp.fc1.weight"), r"layers\.0\.mlp\.fc1\.weight is missing"),
        (
            cut("vision_model.encoder.layers.0.mlp.fc1.weight"),
            r"fc1\.weight \[23, 16\] instead of \[24, 16\]",
        ),
        (
            lambda held: held.update({"vision_model.encoder.layers.7.mlp.fc1.bias": torch.zeros(24)}),
            r"layers\.7\.mlp\.fc1\.bias is unknown",
        ),
    ],
)
def test_an_encoder_without_all_of_its_weights_is_an_error(
    encoder: Path, llm: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    """The text half beside it is no error, as other tests show by loading it."""
    tensors(change)(encoder)
    with pytest.raises(UserError, match=r"model\.encoder: .*" + message):
        load_model(Model(encoder=str(encoder), llm=str(llm)), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.clear, r"and \d+ more are missing"),
        (drop("lm_head.weight"), r"lm_head\.weight is missing"),
        (cut("norm.weight"), r"norm\.weight \[15\] instead of \[16\]"),
        (lambda held: held.update(score=torch.zeros(2)), "tensor score is unknown"),
    ],
)
def test_a_language_model_without_all_of_its_weights_is_an_error(
    encoder: Path, llm: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    tensors(change)(llm)
    with pytest.raises(UserError, match=r"model\.llm: .*" + message):
        load_model(Model(encoder=str(encoder), llm=str(llm)), 0)
    with pytest.raises(UserError, match=r"evaluate\.judge: .*" + message):
        load_judge(str(llm))


def spoil(ending: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda held: held[key_like(held, ending)].view(-1)[3:4].fill_(value)


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), r"not numbers \(NaN\)"), (-float("inf"), "infinite values")]
)
def test_an_error_names_file_and_tensor_of_weights_that_are_not_finite(
    encoder: Path, llm: Path, tiny_model: Path, tmp_path: Path, value: float, message: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors(spoil("q_proj.weight", value))(folder)
    with pytest.raises(UserError, match=r"model\.safetensors: .*q_proj\.weight holds .*" + message):
        load_vlm(str(folder))
    kept = Path(shutil.copytree(llm, tmp_path / "other"))
    tensors(spoil("layers.1.mlp.up_proj.weight", value))(llm)
    with pytest.raises(
        UserError, match=r"evaluate\.judge: .*layers\.1\.mlp\.up_proj\.weight holds .*" + message
    ):
        load_judge(str(llm))
    with pytest.raises(UserError, match=r"model\.llm: .*layers\.1\.mlp\.up_proj\.weight holds .*" + message):
        load_model(Model(encoder=str(encoder), llm=str(llm)), 0)
    tensors(spoil("vision_model.encoder.layers.0.mlp.fc1.bias", value))(encoder)
    with pytest.raises(UserError, match=r"model\.encoder: .*layers\.0\.mlp\.fc1\.bias holds .*" + message):
        load_model(Model(encoder=str(encoder), llm=str(kept)), 0)


def test_embeddings_that_are_tied_to_a_missing_tensor_are_missing(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    assert not any(name.endswith("lm_head.weight") for name in load_file(folder / "model.safetensors"))
    tensors(drop("embed_tokens.weight"))(folder)
    with pytest.raises(UserError, match=r"embed_tokens\.weight.* missing"):
        load_vlm(str(folder))


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("GraniteMoe", {"num_local_experts": 2}, "mixture of experts"),
        ("Gemma2", {"head_dim": 8}, r"not plain \(final_logit_softcapping\)"),
        ("Bloom", {"n_head": 2, "n_layer": 2}, "does not take positions"),
    ],
)
def test_a_decoder_that_cannot_be_used_is_an_error(
    encoder: Path, tmp_path: Path, kind: str, more: dict[str, Any], message: str
) -> None:
    llm = write_llm(tmp_path / "other", kind, **more)
    with pytest.raises(UserError, match=r"model\.llm: .*" + message):
        load_model(Model(encoder=str(encoder), llm=str(llm)), 0)


def test_a_judge_with_a_template_that_cannot_be_used_is_an_error(llm: Path) -> None:
    (llm / "chat_template.jinja").write_text("{% for m in messages %}Q{% endfor %}")
    with pytest.raises(UserError, match=r"evaluate\.judge: .*leaves out what the user says"):
        load_judge(str(llm))


def test_the_digest_is_known_without_loading(
    encoder: Path, llm: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [
        Model(path=str(tiny_model)),
        Model(path=str(tiny_model), connector="linear"),
        Model(path=str(tiny_model), connector="resampler", queries=3),
        Model(encoder=str(encoder), llm=str(llm)),
    ]
    loaded = [load_model(one, 4).digest for one in every]

    def refuse(*given: Any, **more: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(Source, "read", refuse)
    assert [base_digest(one, 4) for one in every] == loaded
    assert len(set(loaded)) == len(loaded)


def test_the_digest_changes_with_what_it_covers_and_with_nothing_else(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    settings = Model(path=str(folder))
    before = base_digest(settings, 0)
    assert before == base_digest(Model(path=str(tiny_model)), 1)
    (folder / "README.md").write_text("anything")
    assert base_digest(settings, 0) == before
    held = load_file(folder / "model.safetensors")
    name = sorted(held)[0]
    save_file({**held, name: held[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    other = base_digest(settings, 0)
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + " ")
    third = base_digest(settings, 0)
    fresh = {
        base_digest(settings.model_copy(update={"connector": one}), seed)
        for one in ("linear", "mlp2")
        for seed in (0, 1)
    }
    assert len({before, other, third, *fresh}) == 7
