"""Images have at most as many pixels as an experiment allows, and encoders get them in batches of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.shares import each_once, share
from torch import Tensor, nn

from fedloom.config.schema import Model
from fedloom.experiment.experiment import Experiment
from fedloom.models import load_model
from fedloom.models.assemble_model import load_base
from fedloom.models.empty_model import empty_vlm
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm, encoder_identity, load_vlm, with_pixels
from fedloom.models.memory_cache import Memo
from fedloom.system.errors import UserError

from .tiny import Drawn

SEEING = sorted(name for name, row in FAMILIES.items() if row.images)
NATIVE = sorted(name for name, row in FAMILIES.items() if row.bound is not None)
IMAGES = [Drawn("a"), Drawn("b", 16, 40), Drawn("c", 90, 30), Drawn("d", 20, 20)]


def areas(vlm: Vlm, image: Drawn) -> list[int]:
    """Return the pixels of an image as the encoder gets it, after the model's image processor."""
    settings = vlm.family.settings(vlm.model)
    inputs = vlm.processor.image_processor([[image.pixels()]], return_tensors="pt", **settings)
    if "image_grid_thw" in inputs:
        side = vlm.processor.image_processor.patch_size
        return [int(rows * columns) * side**2 for _, rows, columns in inputs["image_grid_thw"]]
    return [int(height) * int(width) for height, width in inputs["image_sizes"]]


@pytest.mark.parametrize(("name", "pixels"), each_once(NATIVE, (300, 800, 10**9)))
def test_no_image_has_more_pixels_than_the_bound(
    name: str, pixels: int, saved: Callable[[str], Path]
) -> None:
    own = load_vlm(str(saved(name)))
    vlm = with_pixels(own, pixels)
    for image in IMAGES:
        (before,), (area,) = areas(own, image), areas(vlm, image)
        assert area <= max(pixels, 16 * 16)  # no image is smaller than a token
        # A bound of the longer edge, as Mistral's, is that of a square.
        if before <= pixels and (name != "mistral3" or image.height == image.width):
            assert area == before
    assert encoder_identity(vlm)["processor"] != encoder_identity(own)["processor"] or pixels == 10**9
    features = vlm.image_features(IMAGES)
    assert all(feature.isfinite().all() for feature in features)


def test_the_bound_is_that_of_the_experiment_in_a_run_and_in_its_prediction(
    saved: Callable[[str], Path],
) -> None:
    settings = Model(path=str(saved("qwen2_5_vl")), pixels=800)
    run, plan = load_base(settings), empty_vlm(settings)
    other = load_base(Model(path=settings.path))
    assert plan.processor.image_processor.to_dict() == run.processor.image_processor.to_dict()
    assert run.grids(IMAGES) != other.grids(IMAGES)


def test_a_bound_changes_the_digest_of_an_experiment_and_none_does_not() -> None:
    plain = Experiment()
    assert Experiment(model={"pixels": None}).digest == plain.digest
    assert Experiment(model={"pixels": 4096}).digest != plain.digest


@pytest.mark.parametrize("name", ["llava", "llava_next", "idefics3"])
def test_a_bound_is_refused_where_the_model_has_sizes_of_its_own(
    name: str, saved: Callable[[str], Path]
) -> None:
    with pytest.raises(UserError, match=r"model\.pixels.*leave the key out"):
        with_pixels(load_vlm(str(saved(name))), 4096)


def test_a_bound_below_one_image_token_is_refused(saved: Callable[[str], Path]) -> None:
    """A token of the tiny Mistral has 2 · 2 patches of 4 · 4 pixels."""
    with pytest.raises(UserError, match=r"model\.pixels: a single image token has 64 pixels"):
        with_pixels(load_vlm(str(saved("mistral3"))), 63)


@pytest.mark.parametrize("name", share(SEEING, 3))
def test_encoders_get_batches_of_a_bounded_size(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load_vlm(str(saved(name)))
    whole = vlm.encode_images(IMAGES)
    sizes: list[int] = []

    def noted(model: Any, inputs: Mapping[str, Any]) -> Sequence[Tensor] | Tensor:
        sizes.append(sum(value.numel() for value in inputs.values() if isinstance(value, Tensor)))
        return vlm.family.encode(model, inputs)

    split = replace(vlm, family=replace(vlm.family, encode=noted), memo=Memo())
    split.encode_images(IMAGES)
    (values,) = sizes
    sizes.clear()
    monkeypatch.setattr(load_model, "ENCODE_VALUES", values - 1)
    parts = split.encode_images(IMAGES)
    assert len(sizes) > 1 or not values
    assert parts.keys() == whole.keys()
    for key, value in parts.items():
        torch.testing.assert_close(value, whole[key], rtol=1e-4, atol=1e-4)
    sizes.clear()
    monkeypatch.setattr(load_model, "ENCODE_VALUES", 1)
    assert split.encode_images(IMAGES).keys() == whole.keys() and len(sizes) in (len(IMAGES), 1)


@pytest.mark.parametrize(
    "name", ["llava", "vipllava", "llava_next", "mistral3", "internvl", "granite4_vision"]
)
def test_an_encoder_keeps_the_states_of_the_layers_that_are_read(
    name: str, saved: Callable[[str], Path]
) -> None:
    vlm = load_vlm(str(saved(name)))
    kept: list[int] = []

    def count(_: nn.Module, __: Any, outputs: Any) -> None:
        kept.append(sum(state is not None for state in outputs.hidden_states or ()))

    tower = vlm.model.get_submodule(vlm.family.parts.encoder[0])
    tower.register_forward_hook(count)
    vlm.encode_images(IMAGES)
    config = vlm.model.config
    layers = getattr(config, "vision_feature_layer", None)
    read = len(layers) if isinstance(layers, list) else 1
    if name == "granite4_vision":
        read = len({layer for layer, _ in config.deepstack_layer_map} | {config.spatial_vision_layer})
    assert kept and max(kept) <= read
