"""A client that fails in every round leaves the clients that train beside it alone, and the result names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedloom.client.local_job import Job
from fedloom.client.site import Site
from fedloom.experiment.experiment import Experiment
from fedloom.runs.single_run import run_experiment
from fedloom.system.progress import Progress
from fedloom.wire.messages import Assignment


def test_a_client_that_always_fails_is_named_and_stops_nobody(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "data": {"limit": 12, "test_share": 0.01},
        "scenario": {"clients": 3},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"name": "both", "rank": 2},
        "train": {"rounds": 4, "batch_size": 2},
        "methods": ["local"],
        "engine": {"side_by_side": 1, "workers": 1},
    }
    experiment = Experiment.from_json(json.dumps(values))
    whole = run_experiment(experiment, tmp_path / "whole", Progress(None))
    real = Site.job

    def job(site: Site, assignment: Assignment) -> Job:
        if assignment.client == 1:
            raise ZeroDivisionError("of an algorithm from outside")
        return real(site, assignment)

    monkeypatch.setattr(Site, "job", job)
    result = run_experiment(experiment, tmp_path / "failing", Progress(None))
    assert "untrained" not in whole["scores"]["local"]
    assert result["scores"]["local"]["untrained"] == [1]

    def ends(folder: str, client: int) -> Any:
        return load_file(tmp_path / folder / f"methods/local/client-{client}/round-0004.safetensors")[
            "params"
        ]

    for client in (0, 2):
        assert torch.equal(ends("whole", client), ends("failing", client))
    assert not torch.equal(ends("whole", 1), ends("failing", 1))
    assert "client 1" in (tmp_path / "failing/report.html").read_text()
