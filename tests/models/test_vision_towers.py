"""Encoders: batch norms that look at no batch and forget nothing, libraries that are not used, sizes of images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedloom.models.folder_checks import model_files
from fedloom.models.load_model import Vlm, encoder_identity, load_vlm, why_not_storable, with_feature_store
from fedloom.models.memory_cache import Memo
from fedloom.system.errors import UserError

from .tiny import Drawn, save

MEASURED = "model.vision_tower.embeddings.batchnorm.running_mean"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save("fast_vlm", tmp_path / "model")


@pytest.fixture
def vlm(folder: Path) -> Vlm:
    return load_vlm(str(folder))


def test_an_image_has_the_same_features_in_every_batch(vlm: Vlm) -> None:
    one, other = Drawn("a"), Drawn("b")
    alone = vlm.image_features([one])[0]
    (beside, _) = replace(vlm, memo=Memo()).image_features([one, other])
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-6)
    assert not torch.equal(vlm.image_features([other])[0], alone)


def test_features_of_a_batch_norm_in_training_mode_are_not_stored(vlm: Vlm, tmp_path: Path) -> None:
    assert why_not_storable(vlm) is None
    vlm.model.model.vision_tower.embeddings.batchnorm.train()
    with pytest.raises(UserError, match=r"over the images of a batch .*embeddings\.batchnorm"):
        with_feature_store(vlm, tmp_path / "store", 2**20)


def test_encoders_with_different_batch_norm_statistics_share_no_features(vlm: Vlm, folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[MEASURED] = tensors[MEASURED] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    other = load_vlm(str(folder))
    assert encoder_identity(other)["encoder"] != encoder_identity(vlm)["encoder"]
    assert not torch.allclose(other.image_features([Drawn("a")])[0], vlm.image_features([Drawn("a")])[0])


def test_batch_norm_statistics_must_be_in_the_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file(
        {name: value for name, value in load_file(file).items() if name != MEASURED},
        file,
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=rf"{MEASURED} (is|are) missing".replace(".", r"\.")):
        load_vlm(str(folder))


def test_an_encoder_that_needs_timm_is_refused_with_its_name(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "hidden_size": 16,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="encoder of timm, which is not supported"):
        load_vlm(str(folder))


@pytest.mark.parametrize("kind", ["Qwen2VLImageProcessor", "Glm4vImageProcessor", "Glm46VImageProcessor"])
def test_numbers_of_pixels_are_not_read_as_lengths_of_edges(kind: str, tmp_path: Path) -> None:
    """Published checkpoints of these families allow images of twelve million pixels, and call that an edge."""
    size = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}
    (tmp_path / "config.json").write_text("{}")
    for name in (kind, "CLIPImageProcessor"):
        settings = {"image_processor_type": name, "size": size}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        if name == kind:
            assert len(model_files("model.path", "any", tmp_path).others) == 2
        else:
            with pytest.raises(UserError, match="longest_edge is 11760000"):
                model_files("model.path", "any", tmp_path)
