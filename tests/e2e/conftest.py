"""Fixtures of whole runs: one whose answers are looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedloom.experiment.experiment import Experiment
from fedloom.runs.single_run import run_experiment
from fedloom.system.progress import Progress

ANSWERING = ("zero-shot", "linear", "local", "fedavg+ditto", "fedavg", "centralized")
"""Methods of that run, of every kind: without training, with a model for each client, and with a shared one."""


@pytest.fixture(scope="session")
def answered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of those methods by three clients; no test may leave it changed."""
    values = {
        "data": {"name": "emoji", "limit": 18, "test_share": 0.03},
        "scenario": {"clients": 3},
        "train": {"rounds": 1, "batch_size": 4},
        "methods": ANSWERING,
        "evaluate": {"every": 0},
        "engine": {"workers": 1},
        "model": {"path": str(tiny_model), "threads": 1},
    }
    folder = tmp_path_factory.mktemp("answered") / "run"
    run_experiment(Experiment.from_json(json.dumps(values)), folder, Progress(None))
    return folder
