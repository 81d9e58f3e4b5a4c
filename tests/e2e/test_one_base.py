"""Experiments that differ only in the connector share one base model, and each gives the bytes that it gives alone."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.shares import share
from tests.tiny_model import make_llama
from torch import Tensor

from fedloom.experiment.experiment import Experiment
from fedloom.models.connectors import new_connector
from fedloom.models.load_model import Vlm
from fedloom.runs import run_setup
from fedloom.runs.single_run import run_experiment
from fedloom.system.progress import Progress
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.strategies import Stage
from fedloom.types import LazyImage


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random language model with the vocabulary of the bundled model."""
    return make_llama(tmp_path_factory.mktemp("llama") / "model")


def experiment(strategy: str, seed: int, **model: Any) -> Experiment:
    values = {
        "seed": seed,
        "data": {"name": "emoji", "limit": 18, "test_share": 0.02},
        "scenario": {"clients": 2, "partition": "iid"},
        "model": {"threads": 1, **model},
        "strategy": {"name": strategy, "rank": 2},
        "train": {"rounds": 1, "batch_size": 4},
        "methods": ["fedavg"],
        "engine": {"cache": False},
    }
    return Experiment.from_json(json.dumps(values))


def outcome(value: Experiment, folder: Path, models: dict[str, Any]) -> dict[str, Any]:
    """Run an experiment; return its result without times, and the bytes of its adapter's weights."""
    result = run_experiment(value, folder, Progress(None), models)
    place = folder / "adapter"
    files = {str(one.relative_to(place)): one.read_bytes() for one in place.rglob("*.safetensors")}
    assert files
    return {"result": {key: one for key, one in result.items() if key != "seconds"}, **files}


@pytest.mark.parametrize("kind", share(["assembled", "whole"], every=2))
def test_cells_of_all_seeds_and_connectors_share_one_base_and_keep_their_bytes(
    kind: str, llm: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (
        {"encoder": str(tiny_model), "llm": str(llm)} if kind == "assembled" else {"path": str(tiny_model)}
    )
    cells = [
        experiment("both", 0, **parts),
        experiment("both", 0, connector="mlp2", **parts),
        experiment("both", 1, connector="mlp2", **parts),
        experiment("connector", 0, connector="linear", **parts),
        experiment("share-lora", 1, connector="resampler", queries=3, max_tokens=4096, **parts),
        experiment("lora", 0, **parts),
    ]
    if kind == "assembled":
        file = tmp_path / "connector.safetensors"
        values = new_connector("linear", 16, 16, 5).named_parameters()
        save_file({name: value.detach() for name, value in values}, file)
        cells.append(experiment("both", 1, connector="linear", connector_weights=str(file), **parts))
    alone = [outcome(one, tmp_path / f"alone-{k}", {}) for k, one in enumerate(cells)]
    assert alone[1] != alone[2]  # the seed draws another connector

    models, computed = list[weakref.ref[Any]](), list[str]()
    decoders, towers = set[int](), set[int]()
    prepare, encoded = run_setup.prepare, Vlm.encode_images

    def noted(vlm: Vlm, stage: Stage, seed: int) -> Tuned:
        models.append(weakref.ref(vlm.model))
        decoders.add(vlm.model.get_input_embeddings().weight.data_ptr())
        towers.add(next(vlm.model.model.vision_tower.parameters()).data_ptr())
        return prepare(vlm, stage, seed)

    def counted(vlm: Vlm, pictures: Sequence[LazyImage]) -> dict[str, Tensor]:
        computed.extend(one.key for one in pictures)
        return encoded(vlm, pictures)

    monkeypatch.setattr(run_setup, "prepare", noted)
    monkeypatch.setattr(Vlm, "encode_images", counted)
    kept: dict[str, Any] = {}
    together = [outcome(one, tmp_path / f"shared-{k}", kept) for k, one in enumerate(cells)]
    assert together == alone
    assert len(decoders) == len(towers) == len(kept) == 1
    gc.collect()
    (base,) = kept.values()
    assert {model for model in (one() for one in models) if model is not None} <= {base.model}
    assert len(computed) == len(set(computed)) > 0


def test_a_model_whose_files_changed_between_two_cells_is_loaded_anew(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder, models = tmp_path / "model", dict[str, Any]()
    shutil.copytree(tiny_model, folder)
    cell = experiment("lora", 0, path=str(folder))
    before = outcome(cell, tmp_path / "before", models)
    file = folder / "model.safetensors"
    louder = {name: value * 1.5 for name, value in load_file(file).items()}
    save_file(louder, file, metadata={"format": "pt"})
    after = outcome(cell, tmp_path / "after", models)
    assert after == outcome(cell, tmp_path / "alone", {}) != before
