"""Where a run's clients train: a run through compiled layers learns what it learns in plain ones."""

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
from fedloom.progress import Progress
from fedloom.runs import choose_backend
from fedloom.runs.single_run import run_experiment


def test_a_run_through_compiled_layers_learns_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, not compiled: that is quick and shows as well whether training goes through the layers."""
    wanted: list[bool] = []

    def traced(vlm: Vlm, compiled: bool) -> AbstractContextManager[None]:
        wanted.append(compiled)
        return compiling(vlm, compiled, backend="eager")

    monkeypatch.setattr(choose_backend, "compiling", traced)
    found = []
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
        found.append(load_file(folder / "adapter/adapter_model.safetensors"))
    assert set(wanted) == {False, True}
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)
