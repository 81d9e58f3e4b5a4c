"""Backends of a run: with compiled layers a run learns the same as without."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedloom.experiment.experiment import Experiment
from fedloom.models.compiled_layers import compiling
from fedloom.models.load_model import Vlm
from fedloom.runs import train_in_backend
from fedloom.runs.single_run import run_experiment
from fedloom.system.progress import Progress


def test_a_run_through_compiled_layers_learns_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are traced, not compiled, which is fast and also shows whether training uses them."""
    calls: list[bool] = []

    def traced(vlm: Vlm, compiled: bool) -> AbstractContextManager[None]:
        calls.append(compiled)
        return compiling(vlm, compiled, backend="eager")

    monkeypatch.setattr(train_in_backend, "compiling", traced)
    adapters = []
    for compiled in (False, True):
        values = {
            "data": {"limit": 12, "test_share": 0.03},
            "scenario": {"clients": 2},
            "model": {"path": str(tiny_model), "threads": 1},
            "train": {"rounds": 2, "batch_size": 4, "optimizer": "sgd", "lr": 0.05},
            "methods": ["fedavg", "centralized"],
            "engine": {"side_by_side": 1, "compile": compiled},
        }
        folder = tmp_path / str(compiled)
        run_experiment(Experiment.from_json(json.dumps(values)), folder, Progress(None))
        adapters.append(load_file(folder / "adapter/adapter_model.safetensors"))
    assert set(calls) == {False, True}
    for name, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], value, rtol=1e-4, atol=1e-5)
