"""Assembled models: any encoder, any language model, a fresh connector; wrong parts are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.answer_loss import answer_loss
from tests.shares import each_once
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    EfficientNetConfig,
    EfficientNetModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from fedloom.config.schema import Model
from fedloom.config.validation_errors import build_model
from fedloom.config.yaml_document import read_document
from fedloom.experiment.experiment import Experiment
from fedloom.models.assemble_model import base_digest, load_model
from fedloom.models.batches import encode, generate, option_scores
from fedloom.models.connectors import new_connector
from fedloom.models.empty_model import empty_vlm
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import prepare
from fedloom.tuning.strategies import LoRA, stage
from fedloom.types import Conversation

from .tiny import CLIP, EFFICIENTNET, SIGLIP, Drawn, save, tokenizer

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].strip() }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
WORDS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**WORDS, "vocab_size": 50, "max_position_embeddings": 16}
SMALL = {"height": 16, "width": 16}
LLMS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "experts": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 2}),
    "roomy": (Qwen2ForCausalLM, Qwen2Config, {"vocab_size": 300}),
}


def clip_images(size: int = 16) -> Any:
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


@pytest.fixture
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    vision = {key: value for key, value in CLIP.items() if key != "model_type"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: dict[str, Any] = {
            "clip": lambda: (CLIPModel(CLIPConfig(vision_config=CLIP, text_config=TEXT)), clip_images()),
            "clip alone": lambda: (CLIPVisionModel(CLIPVisionConfig(**vision)), clip_images()),
            "siglip": lambda: (
                SiglipModel(SiglipConfig(vision_config=SIGLIP, text_config={**TEXT, "projection_size": 16})),
                SiglipImageProcessor(size=SMALL),
            ),
            "efficientnet": lambda: (
                EfficientNetModel(EfficientNetConfig(**EFFICIENTNET)),
                CLIPImageProcessor(size=SMALL, do_center_crop=False),
            ),
        }
        model, images = made[getattr(request, "param", "clip")]()
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


@pytest.fixture
def llm(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "llm"
    kind, config, more = LLMS[getattr(request, "param", "llama")]
    words = tokenizer("<other>", [], {}, CHAT)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        size = {"vocab_size": len(words), **more}
        model = kind(config(**WORDS, **size, num_key_value_heads=2, eos_token_id=5, pad_token_id=0))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def load(encoder: Path, llm: Path, connector: str | None = None, seed: int = 0) -> Vlm:
    return load_model(Model(encoder=str(encoder), llm=str(llm), connector=connector), seed)


PICTURED = Conversation("Which?", "yes", Drawn("a"), ("yes", "no"))
WRITTEN = Conversation("Which?", "no", None, ("yes", "no"))


@pytest.mark.parametrize(
    ("encoder", "llm"),
    each_once(("clip", "clip alone", "siglip", "efficientnet"), tuple(LLMS)),
    indirect=True,
)
def test_an_assembled_model_trains(encoder: Path, llm: Path) -> None:
    vlm = load(encoder, llm)
    convolutions = vlm.model.config.model_type == "fast_vlm"
    assert not any(parameter.is_meta for parameter in vlm.model.parameters())
    assert not any(buffer.is_meta for buffer in vlm.model.buffers())
    prompt = encode(vlm, PICTURED, []).prompt
    # 16 px in patches of 8, without the class token; or in two steps of stride 2.
    assert prompt.count(vlm.model.config.image_token_id) == (16 if convolutions else 4)
    tuned = prepare(vlm, stage("both", LoRA(rank=2)), seed=0)
    answer_loss(vlm, [PICTURED, WRITTEN]).backward()
    reached = {name for name, grad in tuned.start.with_flat(tuned.grads).items() if grad.any()}
    assert reached == {name for name in tuned.layout.names if not name.endswith("lora_a")}
    assert option_scores(vlm, [PICTURED, WRITTEN]).shape == (2, 2)
    assert len(generate(vlm, [PICTURED, WRITTEN], max_tokens=2)) == 2


@pytest.mark.parametrize("family", ["fast_vlm", "llava"])
def test_an_encoder_is_taken_out_of_a_model_that_has_one(family: str, llm: Path, tmp_path: Path) -> None:
    folder = save(family, tmp_path / "whole")
    vlm, whole = load(folder, llm), load_vlm(str(folder))
    torch.testing.assert_close(
        vlm.image_features([Drawn("a")])[0][None], whole.image_features([Drawn("a")])[0][None], rtol=0, atol=0
    )
    settings = Model(encoder=str(folder), llm=str(llm))
    assert base_digest(settings, 0) == vlm.digest
    assert answer_loss(vlm, [PICTURED]).isfinite()


def test_values_of_a_connector_come_from_a_file(llm: Path, tmp_path: Path) -> None:
    """What an earlier training has left works as it did, whatever the seed, under the file's own digest."""
    folder, file = save("fast_vlm", tmp_path / "whole"), tmp_path / "connector.safetensors"
    values = {key: value + 0.5 for key, value in new_connector("mlp2", 16, 16, 3).named_parameters()}
    save_file({key: value.detach().to(torch.bfloat16) for key, value in values.items()}, file)
    settings = Model(encoder=str(folder), llm=str(llm), connector_weights=str(file))
    one, other = (load_model(settings, seed) for seed in (0, 1))
    features = one.image_features([Drawn("a")])[0][None]
    weights = {key: value.to(torch.bfloat16).float() for key, value in values.items()}
    middle = torch.nn.functional.gelu(features @ weights["0.weight"].T + weights["0.bias"])
    by_hand = middle @ weights["2.weight"].T + weights["2.bias"]
    torch.testing.assert_close(one.connect(features), by_hand, rtol=1e-4, atol=1e-5)
    assert one.digest == other.digest == base_digest(settings, 5)
    assert one.digest != load(folder, llm).digest
    save_file({key: value.detach() for key, value in values.items()}, file)
    assert base_digest(settings, 5) != one.digest
    assert list(one.model.state_dict()) == list(load(folder, llm).model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("2.bias"), r"does not fit: .* has 2.bias \[16\], the file not at all"),
        (lambda values: values.update({"4.bias": torch.zeros(2)}), r"has 4.bias not at all, the file \[2\]"),
        (
            lambda values: values.update({"0.weight": torch.zeros(16, 8)}),
            r"0.weight \[16, 16\], the file \[16, 8\]",
        ),
        (
            lambda values: values.update({"0.bias": torch.full((16,), torch.nan)}),
            "0.bias that are not finite numbers",
        ),
        (
            lambda values: values.update({"0.bias": torch.ones(16).int()}),
            "0.bias that are not finite numbers",
        ),
    ],
)
def test_another_connector_is_refused(llm: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder, file = save("fast_vlm", tmp_path / "whole"), tmp_path / "connector.safetensors"
    values = {
        key: value.detach().clone() for key, value in new_connector("mlp2", 16, 16, 3).named_parameters()
    }
    change(values)
    save_file(values, file)
    with pytest.raises(UserError, match=f"model.connector_weights: .*{message}"):
        load_model(Model(encoder=str(folder), llm=str(llm), connector_weights=str(file)), 0)


def test_a_connector_file_that_is_none_is_told(llm: Path, tmp_path: Path) -> None:
    folder, file = save("fast_vlm", tmp_path / "whole"), tmp_path / "connector.safetensors"
    settings = Model(encoder=str(folder), llm=str(llm), connector_weights=str(file))
    for load_or_digest in (load_model, base_digest):
        with pytest.raises(
            UserError, match=r"model.connector_weights: there is no file .*, or one of real-laptop"
        ):
            load_or_digest(settings, 0)
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model.connector_weights: .* is damaged"):
        load_model(settings, 0)
    with pytest.raises(
        UserError, match=r"model.connector is missing; model.connector_weights needs the type"
    ):
        build_model(Experiment, read_document("model: {connector_weights: real-laptop}", "mine.yaml"))


def test_its_parts_are_the_given_ones(encoder: Path, llm: Path) -> None:
    vlm = load(encoder, llm, "linear")
    state = vlm.model.state_dict()
    tower = CLIPVisionModel.from_pretrained(encoder).state_dict()
    words = LlamaForCausalLM.from_pretrained(llm)
    assert all(torch.equal(state[f"model.vision_tower.{name}"], value) for name, value in tower.items())
    layers = words.model.layers.state_dict()
    assert all(torch.equal(state[f"model.language_model.layers.{name}"], one) for name, one in layers.items())
    known = words.config.vocab_size
    assert torch.equal(state["lm_head.weight"][:known], words.lm_head.weight)
    assert len(state["lm_head.weight"]) == known + 1


@pytest.mark.parametrize("added", [("<image>", "<more>"), ("<more>", "<image>"), ("<more>",)])
def test_every_token_of_the_language_model_has_an_embedding(
    encoder: Path, llm: Path, added: tuple[str, ...]
) -> None:
    """Tokens that were added without new embeddings start as the mean of the others, wherever the image token is."""
    words = AutoTokenizer.from_pretrained(llm)
    words.add_tokens(list(added))
    words.save_pretrained(llm)
    vlm = load(encoder, llm)
    largest = max(vlm.tokenizer.get_vocab().values())
    known = LlamaForCausalLM.from_pretrained(llm).get_input_embeddings().weight
    rows = vlm.model.get_input_embeddings().weight
    assert len(rows) == len(vlm.model.lm_head.weight) == largest + 1 > len(known)
    torch.testing.assert_close(rows[len(known) :], known.mean(0).expand(largest + 1 - len(known), -1))
    asked = Conversation("Is it <more>?", "<more>", Drawn("a"), ("<more>", "yes"))
    assert answer_loss(vlm, [asked]).isfinite() and option_scores(vlm, [asked]).isfinite().all()
    empty = empty_vlm(Model(encoder=str(encoder), llm=str(llm))).model
    assert len(empty.get_input_embeddings().weight) == len(empty.lm_head.weight) == largest + 1


def test_without_a_picture_it_says_what_the_language_model_says(encoder: Path, llm: Path) -> None:
    vlm, words = load(encoder, llm), LlamaForCausalLM.from_pretrained(llm)
    ids = torch.tensor([encode(vlm, WRITTEN, []).prompt])
    with torch.no_grad():
        ours, theirs = vlm.model(input_ids=ids).logits, words(input_ids=ids).logits
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs)


def test_the_features_are_those_of_the_last_layer_but_one(encoder: Path, llm: Path) -> None:
    vlm, tower = load(encoder, llm), CLIPVisionModel.from_pretrained(encoder).eval()
    pixels = vlm.processor.image_processor([Drawn("a").pixels()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(vlm.image_features([Drawn("a")])[0][None], states[-2][:, 1:])


def test_the_connector_depends_on_the_seed_and_nothing_else_does(encoder: Path, llm: Path) -> None:
    one, again, other = (load(encoder, llm, seed=seed) for seed in (1, 1, 2))
    assert one.digest == again.digest != other.digest
    changed = {
        name
        for name, value in one.model.state_dict().items()
        if not torch.equal(value, other.model.state_dict()[name])
    }
    assert {one.family.parts.part_of(name) for name in changed} == {"connector"}


@pytest.mark.parametrize("encoder", ["clip", "siglip", "efficientnet"], indirect=True)
def test_an_assembled_model_can_be_saved_and_loaded_by_transformers(
    encoder: Path, llm: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    vlm = load(encoder, llm)
    vlm.model.save_pretrained(tmp_path / "whole")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    ids = torch.tensor([encode(vlm, PICTURED, []).prompt])
    pixels = vlm.processor.image_processor([Drawn("a").pixels()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids, pixel_values=pixels).logits for model in (vlm.model, stock))
    torch.testing.assert_close(ours, theirs)


def test_a_language_model_is_no_encoder(encoder: Path, llm: Path) -> None:
    with pytest.raises(UserError, match=r"model\.encoder.*'llama'.*clip_vision_model"):
        load(llm, llm)
    with pytest.raises(UserError, match=r"model\.llm"):
        load(encoder, encoder)


def test_a_decoder_that_carries_a_state_is_told(encoder: Path, llm: Path) -> None:
    kinds = ["conv", "full_attention"]
    Lfm2ForCausalLM(
        Lfm2Config(**{**WORDS, "vocab_size": 300}, num_key_value_heads=2, layer_types=kinds)
    ).save_pretrained(llm)
    with pytest.raises(UserError, match=r"model\.llm.*\(conv\)"):
        load(encoder, llm)


def test_pictures_of_another_size_than_the_encoder_takes_are_told(encoder: Path, llm: Path) -> None:
    clip_images(24).save_pretrained(encoder)
    with pytest.raises(UserError, match=r"model\.encoder.*24 × 24.*16 × 16"):
        load(encoder, llm)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"encoder": "a"}, r"model\.llm is missing"),
        ({"llm": "a"}, r"model\.encoder is missing"),
        ({"encoder": "a", "llm": "b", "path": "c"}, r"model\.path"),
        ({"connector": "mlp3"}, r"model\.connector"),
    ],
)
def test_contradictory_keys_are_an_error(model: dict[str, str], message: str) -> None:
    import json

    with pytest.raises(UserError, match=message):
        Experiment.from_json(json.dumps({"model": model}))
