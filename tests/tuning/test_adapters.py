"""Adapters: views of one buffer, frozen parts untouched, files that stock PEFT loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.adapter_files import import_adapter
from tests.answer_loss import answer_loss
from tests.models.tiny import save

from fedloom.data.drawn_shapes import MAKERS
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.params import Params
from fedloom.seeds import stream
from fedloom.system.errors import UserError
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, check_targets, prepare, release
from fedloom.tuning.export_adapter import export_adapter
from fedloom.tuning.strategies import LINEARS, STRATEGIES, LoRA, stage
from fedloom.types import Conversation, Presence

PRESENT = {"both": Presence(True, True), "image": Presence(True, False), "text": Presence(False, True)}


def tune(folder: Path, strategy: str, lora: LoRA | None = None) -> Tuned:
    return prepare(load_vlm(str(folder)), stage(strategy, lora or LoRA(rank=3, alpha=5.0)), seed=0)


def conversations(present: Presence, count: int = 3) -> list[Conversation]:
    examples = [MAKERS["classification"](stream(1, "t", step=k), str(k)) for k in range(count)]
    return [
        TASKS["choice"].render(replace(example, text="a hint"), present, answer_form="text")
        for example in examples
    ]


def moved(tuned: Tuned) -> Params:
    """Parameters with every value changed, so that B is not zero."""
    noise = torch.randn(tuned.layout.size, generator=torch.Generator().manual_seed(5))
    return Params(tuned.layout, tuned.start.flat + 0.1 * noise)


def stock_logits(model: torch.nn.Module, vlm: Vlm, conversation: Conversation) -> torch.Tensor:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(vlm.name)
    content = [{"type": "image"}, {"type": "text", "text": conversation.user}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert conversation.picture is not None
    inputs = processor(images=[conversation.picture.pixels()], text=[text], return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_write_then_read_is_the_identity(tiny_model: Path, strategy: str) -> None:
    tuned = tune(tiny_model, strategy)
    params = moved(tuned)
    tuned.write(params)
    assert torch.equal(tuned.read().flat, params.flat)
    tuned.write(tuned.read())
    assert torch.equal(tuned.read().flat, params.flat)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_new_adapter_changes_no_answer(tiny_model: Path, strategy: str) -> None:
    plain = load_vlm(str(tiny_model))
    tuned = tune(tiny_model, strategy)
    batch = conversations(PRESENT["both"])
    assert torch.equal(answer_loss(plain, batch), answer_loss(tuned.vlm, batch).detach())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("present", PRESENT)
def test_every_kind_of_batch_trains_what_it_can_reach(tiny_model: Path, strategy: str, present: str) -> None:
    tuned = tune(tiny_model, strategy)
    loss = answer_loss(tuned.vlm, conversations(PRESENT[present]))
    if strategy == "connector" and present == "text":
        assert not loss.requires_grad  # nothing that is trained takes part
        return
    loss.backward()
    reached = {name for name, value in Params(tuned.layout, tuned.grads).items() if bool(value.any())}
    expected = {
        name
        for name in tuned.layout.names
        # While B is zero, A has no gradient; without an image the connector has none.
        if not name.endswith(":lora_a") and not (present == "text" and name.startswith("connector/"))
    }
    assert reached == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_parts_stay_as_they_are(tiny_model: Path, strategy: str) -> None:
    tuned = tune(tiny_model, strategy)
    live = {p.data_ptr() for p in tuned.vlm.model.parameters() if p.requires_grad}
    frozen = {n: p.clone() for n, p in tuned.vlm.model.named_parameters() if p.data_ptr() not in live}
    assert frozen
    before = tuned.read()
    answer_loss(tuned.vlm, conversations(PRESENT["both"])).backward()
    with torch.no_grad():
        tuned.flat.sub_(tuned.grads, alpha=0.1)
    now = dict(tuned.vlm.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert not torch.equal(tuned.read().flat, before.flat)


def test_the_flat_gradient_is_the_gradient(tiny_model: Path) -> None:
    """Finite differences along the flat buffer agree with what backward put into `grads`."""
    tuned = tune(tiny_model, "both")
    tuned.write(moved(tuned))
    batch = conversations(PRESENT["both"])
    answer_loss(tuned.vlm, batch).backward()
    gradient, start, step = tuned.grads.clone(), tuned.flat.clone(), 1e-3
    direction = gradient / gradient.norm()
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            tuned.flat.copy_(start + sign * step * direction)
            losses.append(answer_loss(tuned.vlm, batch).double())
    slope = float((losses[0] - losses[1]) / (2 * step))
    assert slope == pytest.approx(float(gradient.norm()), rel=0.02)


def test_stock_peft_loads_the_adapter_and_gives_the_same_logits(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    for strategy in ("lora", "both"):
        tuned = tune(tiny_model, strategy)
        params = moved(tuned)
        folder = tmp_path / strategy
        export_adapter(tuned, params, folder)
        base = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
        stock = PeftModel.from_pretrained(base, folder).eval()
        result = stock.load_adapter(str(folder), "again")
        assert not result.missing_keys
        assert not result.unexpected_keys
        tuned.write(params)
        conversation = conversations(PRESENT["both"], 1)[0]
        ours, theirs = (stock_logits(model, tuned.vlm, conversation) for model in (tuned.vlm.model, stock))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        untuned = load_vlm(str(tiny_model)).model
        assert not torch.allclose(ours, stock_logits(untuned, tuned.vlm, conversation))


def test_an_adapter_that_peft_wrote_can_be_read(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    tuned = tune(tiny_model, "both")
    params = moved(tuned)
    export_adapter(tuned, params, tmp_path / "ours")
    base = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
    PeftModel.from_pretrained(base, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert torch.equal(import_adapter(tuned, tmp_path / "theirs").flat, params.flat)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_export_then_import_is_the_identity(tiny_model: Path, tmp_path: Path, strategy: str) -> None:
    tuned = tune(tiny_model, strategy)
    params = moved(tuned)
    export_adapter(tuned, params, tmp_path)
    assert torch.equal(import_adapter(tuned, tmp_path).flat, params.flat)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_a_damaged_adapter_is_refused(tiny_model: Path, tmp_path: Path, damage: str) -> None:
    tuned = tune(tiny_model, "both")
    export_adapter(tuned, tuned.start, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    if damage == "missing":
        del tensors[first]
    elif damage == "extra":
        tensors["stranger"] = torch.zeros(1)
    else:
        tensors[first] = torch.zeros(1)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "manifest.json").unlink()  # as adapters have none that others wrote
    with pytest.raises(UserError, match="stranger" if damage == "extra" else first.replace(".", r"\.")):
        import_adapter(tuned, tmp_path)


def test_the_adapter_names_no_layer_of_the_encoder(tiny_model: Path, tmp_path: Path) -> None:
    tuned = tune(tiny_model, "lora")
    export_adapter(tuned, tuned.start, tmp_path)
    assert not any("vision" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] is None


def test_a_target_can_be_one_layer_and_stock_peft_finds_the_same(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    tuned = tune(tiny_model, "lora", LoRA(targets=("layers.3.self_attn.q_proj",)))
    (ours,) = {spot.module for spot in tuned.spots.values()}
    assert ours.endswith(".layers.3.self_attn.q_proj")
    export_adapter(tuned, tuned.start, tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
    names = [name for name, _ in PeftModel.from_pretrained(base, tmp_path).named_modules()]
    (theirs,) = (name.removesuffix(".lora_A") for name in names if name.endswith(".lora_A"))
    assert theirs.endswith(".layers.3.self_attn.q_proj")
    assert "vision" not in theirs


def test_targets_that_match_nothing_are_named(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="qkv_proj"):
        tune(tiny_model, "lora", LoRA(targets=("qkv_proj",)))


@pytest.mark.parametrize(
    ("targets", "missing"),
    [
        (LINEARS, None),
        (("q_proj", "layers.3.self_attn.v_proj"), None),
        (("q_proj", "v_porj"), "v_porj"),
        (("q_proj", "lm_head", "layers.9.self_attn.q_proj"), "lm_head, layers.9.self_attn.q_proj"),
        (("q_proj", "vision_tower"), "vision_tower"),
        ((*LINEARS, "qkv_proj"), "qkv_proj"),
    ],
)
def test_each_target_of_a_run_must_be_a_layer(
    tiny_model: Path, targets: tuple[str, ...], missing: str | None
) -> None:
    """A name that matches no layer would leave layers without an adapter, and nobody would know."""
    vlm = load_vlm(str(tiny_model))
    if missing is None:
        check_targets(vlm, stage("lora", LoRA(targets=targets)))
        return
    with pytest.raises(UserError, match=rf"strategy\.targets: .* any of {missing}; there are .*q_proj"):
        check_targets(vlm, stage("lora", LoRA(targets=targets)))


def test_default_targets_that_a_model_lacks_are_left_out(tmp_path: Path) -> None:
    vlm = load_vlm(str(save("phi", tmp_path / "model")))
    check_targets(vlm, stage("lora", LoRA()))
    assert prepare(vlm, stage("lora", LoRA(rank=2)), seed=0).adapters


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_release_restores_the_loaded_model(tiny_model: Path, strategy: str) -> None:
    vlm = load_vlm(str(tiny_model))
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    modules = [name for name, _ in vlm.model.named_modules()]
    tuned = prepare(vlm, stage(strategy, LoRA(rank=3, alpha=5.0)), seed=0)
    tuned.write(moved(tuned))
    release(tuned)
    after = vlm.model.state_dict()
    assert list(after) == list(before)
    assert [name for name, _ in vlm.model.named_modules()] == modules
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(value.requires_grad for value in vlm.model.parameters())
    tuned.flat.zero_()  # the buffer is the model's no more
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_release_restores_the_connector_on_the_models_device(tiny_model: Path) -> None:
    """A device without values stands in for an accelerator, of which this machine may have none."""
    tuned = tune(tiny_model, "both")
    release(replace(tuned, flat=tuned.flat.to("meta")))
    names = [name.partition("/")[2] for name in tuned.layout.names if name.startswith("connector/")]
    assert names and all(tuned.vlm.model.get_parameter(name).is_meta for name in names)
