"""A language model in half precision beside an encoder and a connector in float32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.shares import share

from fedloom.models.batches import answer_losses, collate, generate, option_scores
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm, encoder_identity, load_vlm, move_model
from fedloom.models.precision import device_of, precision_of
from fedloom.seeds import torch_stream
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import prepare
from fedloom.tuning.strategies import LoRA, stage

from .conversations import TARGETS, talks
from .tiny import calm

MODELS = Path(__file__).parents[2] / "src/fedloom/models"


def gradient(vlm: Vlm) -> torch.Tensor:
    """Return the gradient of the loss of some conversations at random adapters."""
    name = "both" if vlm.family.parts.connector else "lora"
    tuned = prepare(vlm, stage(name, LoRA(rank=2, targets=TARGETS)), seed=0)
    noise = torch.randn(tuned.layout.size, generator=torch_stream(0, "noise"))
    tuned.write(tuned.start.with_flat(tuned.start.flat + 0.02 * noise))
    answer_losses(vlm, collate(vlm, [talks(vlm)])).sum().backward()
    return tuned.grads[0].clone()


@pytest.mark.parametrize("name", share(sorted(FAMILIES), 5))
def test_a_fresh_model_in_bfloat16_keeps_its_features_and_the_direction_of_gradients(
    name: str, saved: Callable[[str], Path]
) -> None:
    exact, coarse = (calm(load_vlm(str(saved(name)))) for _ in range(2))
    move_model(coarse, "cpu", "bfloat16")
    assert coarse.precision == torch.bfloat16
    images = [image for talk in talks(exact) for image in talk.pictures]
    for mine, theirs in zip(coarse.image_features(images), exact.image_features(images), strict=True):
        # What the encoder computes in float32 is rounded once, except for the numbers of tokens.
        assert torch.equal(mine, theirs.bfloat16() if coarse.family.parts.connector else theirs)
    assert torch.cosine_similarity(gradient(coarse), gradient(exact), dim=0) >= 0.99
    assert torch.isfinite(option_scores(coarse, talks(coarse))).all()
    assert len(generate(coarse, talks(coarse), max_tokens=2)) == len(talks(coarse))


@pytest.mark.parametrize("name", share(sorted(FAMILIES), 5, 1))
def test_weights_of_16_bits_are_loaded_as_they_are_and_only_encoder_and_connector_widened(
    name: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """The model is that which float32 and a conversion of the language model give, bit for bit."""
    folder = tmp_path / name
    shutil.copytree(saved(name), folder)
    for file in folder.glob("*.safetensors"):
        halves = {
            key: value.bfloat16() if value.is_floating_point() else value
            for key, value in load_file(file).items()
        }
        save_file(halves, file, {"format": "pt"})
    lean = load_vlm(str(folder), lean=True)
    parts = lean.family.parts
    for key, value in lean.model.named_parameters():
        if value.is_floating_point():
            assert value.dtype == (torch.bfloat16 if parts.part_of(key) == "llm" else torch.float32), key
    for precision in ("bfloat16", "float16"):
        whole = move_model(load_vlm(str(folder)), "cpu", precision).model
        moved = move_model(load_vlm(str(folder), lean=True), "cpu", precision).model
        for mine, theirs in (
            (dict(moved.named_parameters()), dict(whole.named_parameters())),
            (dict(moved.named_buffers()), dict(whole.named_buffers())),
        ):
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert value.dtype == theirs[key].dtype and torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("name", share(sorted(FAMILIES), 5, 2))
def test_buffers_that_a_model_computes_stay_as_they_are(name: str, saved: Callable[[str], Path]) -> None:
    """Such as the frequencies of rotary positions, whose multiples bfloat16 would round to whole turns."""
    exact, coarse = (load_vlm(str(saved(name))) for _ in range(2))
    move_model(coarse, "cpu", "bfloat16")
    stored, before = coarse.model.state_dict(), dict(exact.model.named_buffers())
    computed = {key: value for key, value in coarse.model.named_buffers() if key not in stored}
    assert any("inv_freq" in key for key in computed)
    for key, value in computed.items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key]), key


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_of_models_asks_for_the_data_type_of_a_whole_model(path: Path) -> None:
    """Its parts may have different ones; `dtype_of` answers for a part."""
    assert "model.dtype" not in path.read_text(encoding="utf-8")


def test_features_of_16_bits_are_kept_apart_and_take_half_the_room(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    identities, sizes = [], []
    for precision in ("float32", "bfloat16", "float16"):
        vlm = move_model(load_vlm(str(saved("llava"))), "cpu", precision)
        identities.append(encoder_identity(vlm))
        features = vlm.image_features([image for talk in talks(vlm) for image in talk.pictures])
        sizes.append(sum(value.nbytes for value in features))
    assert identities[0] != identities[1] == identities[2]
    assert sizes[0] == 2 * sizes[1] == 2 * sizes[2]


@pytest.mark.parametrize(("kind", "module"), [("mps", torch.backends.mps), ("xpu", torch.xpu)])
def test_devices_that_were_never_tested_are_taken_only_by_name(
    kind: str, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "is_available", lambda: True)
    assert device_of(kind) == kind and device_of("auto") == "cpu"
    assert precision_of("auto", kind) == "float32"
    monkeypatch.setattr(module, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"no {kind} device here"):
        device_of(kind)
