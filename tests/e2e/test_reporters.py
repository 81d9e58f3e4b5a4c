"""`aggregate.over` decides whether clients without images count in the mean of a connector that they cannot train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.shares import share

from fedloom.experiment.experiment import Experiment
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.progress import Progress

CLIENTS, CONNECTOR = 4, "multi_modal_projector"


def run(
    tiny_model: Path, folder: Path, over: str, methods: list[str], strategy: str = "both"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    values = {
        "data": {"limit": 24, "test_share": 0.01},
        "scenario": {"clients": CLIENTS, "pattern": "cross", "image_clients": 1},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"name": strategy, "rank": 2},
        "train": {"rounds": 2 if strategy == "two-stage" else 1, "batch_size": 2},
        "methods": methods,
        "aggregate": {"over": over},
        "engine": {"side_by_side": 1, "workers": 1},
    }
    result = run_experiment(Experiment.from_json(json.dumps(values)), folder, Progress(None))
    return result, load_file(folder / "methods" / methods[0] / "round-0001.safetensors")


def test_over_reporters_the_connector_moves_as_far_as_its_trainers_move_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    """With one client that holds images, the connector ends where that client's own training ends."""
    whole, cohort = run(tiny_model, tmp_path / "cohort", "cohort", ["fedavg"])
    fewer, reporters = run(tiny_model, tmp_path / "reporters", "reporters", ["fedavg", "local"])
    checkpoint = json.loads((tmp_path / "cohort/methods/fedavg/round-0001.json").read_text())
    at, stretches = 0, {}
    for name, shape in checkpoint["layout"]:
        size = torch.Size(shape).numel()
        stretches[name], at = slice(at, at + size), at + size
    connector = [part for name, part in stretches.items() if name.startswith("connector/")]
    other = [part for name, part in stretches.items() if not name.startswith("connector/")]
    (images,) = [
        client
        for client in range(CLIENTS)
        if json.loads((tmp_path / "reporters/plan.json").read_text())["clients"][client]["image_only"]
    ]
    alone = load_file(tmp_path / f"reporters/methods/local/client-{images}/round-0001.safetensors")["params"]
    for part in connector:
        torch.testing.assert_close(reporters["params"][part], alone[part], rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(cohort["params"][part], alone[part]) for part in connector)
    for part in other:
        assert torch.equal(cohort["params"][part], reporters["params"][part])
    values = sum(part.stop - part.start for part in connector)
    saved = whole["bytes"]["fedavg"]["up"] - fewer["bytes"]["fedavg"]["up"]
    assert 4 * values * (CLIENTS - 1) - 1024 < saved <= 4 * values * (CLIENTS - 1)
    assert "clients that hold images" in (tmp_path / "reporters/report.html").read_text()
    assert "clients that hold images" not in (tmp_path / "cohort/report.html").read_text()


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_algorithms_that_need_means_over_the_whole_cohort_refuse_reporters(name: str) -> None:
    with pytest.raises(UserError, match=r"aggregate\.over is reporters"):
        Experiment.from_json(json.dumps({"methods": [name], "aggregate": {"over": "reporters"}}))


@pytest.mark.parametrize("strategy", share(["two-stage", "connector", "share-connector"], every=2))
def test_who_cannot_train_all_that_is_exchanged_reports_nothing(
    strategy: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Where the connector is all that a stage exchanges, it moves as far as the one client with images moves it."""
    run(tiny_model, tmp_path, "reporters", ["fedavg", "fedadam"], strategy)
    record = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    rounds = [one for one in record if "bytes_up" in one]
    plan = json.loads((tmp_path / "plan.json").read_text())
    images = [client for client in range(CLIENTS) if plan["clients"][client]["image_only"]]
    assert rounds
    for one in rounds:
        assert one["refused"] == one["missing"] == []
    first = rounds[0]
    norms = {one["client"]: one["norm"] for one in first["clients"]}
    assert [client for client, norm in norms.items() if norm] == images
    assert first["diagnostics"]["delta_norm"] == pytest.approx(norms[images[0]], rel=1e-5)
