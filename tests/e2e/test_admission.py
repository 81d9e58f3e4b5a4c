"""Whole runs on a tiny random model: honest clients are never refused, and all that is written is standard JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.shares import share

from fedloom.experiment.experiment import Experiment
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.progress import make_progress

SETTINGS = {
    "SGD, a rule that adds to the clipped gradient": {"train": {"optimizer": "sgd", "lr": 0.5}},
    "one client with images, connectors decay": {
        "strategy": {"name": "connector"},
        "scenario": {"clients": 4, "pattern": "cross", "image_clients": 1},
        "train": {"weight_decay": 0.01, "lr": 1e-3},
    },
    "one client with most examples": {"scenario": {"clients": 4, "partition": "dirichlet", "alpha": 0.05}},
    "published schedules": {"train": {"schedule": "published", "local_schedule": "published"}},
    "clients keep their connector": {"strategy": {"name": "share-lora", "rank": 2}},
}


def experiment(tiny_model: Path, **changes: dict[str, object]) -> Experiment:
    values: dict[str, dict[str, object]] = {
        "data": {"name": "emoji", "limit": 20, "test_share": 0.01},
        "scenario": {"clients": 4, "pattern": "hybrid"},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"name": "both", "rank": 2},
        "train": {"rounds": 2, "batch_size": 2, "lr": 4e-3},
        "algorithms": {"adaptive": {"skip": 1}},
        "evaluate": {"every": 0},
        "engine": {"side_by_side": 1, "workers": 1},
    }
    merged = {key: {**value, **changes.get(key, {})} for key, value in values.items()}
    # Adapters have layers that the regularizer holds back, a connector has none.
    methods = ["scaffold", "fedavg" if merged["strategy"]["name"] == "connector" else "fedavg+adaptive"]
    return Experiment.from_json(json.dumps({"name": "honest", **merged, "methods": methods}))


def strictly(text: str) -> dict[str, object]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("said", share(SETTINGS, every=2))
def test_honest_clients_are_not_refused(said: str, tiny_model: Path, tmp_path: Path) -> None:
    run_experiment(experiment(tiny_model, **SETTINGS[said]), tmp_path, make_progress(quiet=True))
    lines = [strictly(text) for text in (tmp_path / "record.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round"]
    assert len(rounds) == 4
    assert all(line["refused"] == [] and "not_applied" not in line for line in rounds)


def test_training_that_fails_ends_with_its_reasons_and_writes_standard_json(
    tiny_model: Path, tmp_path: Path
) -> None:
    """With this learning rate every client's values are no numbers after two steps."""
    value = experiment(tiny_model, train={"optimizer": "sgd", "lr": 1e30, "clip": None})
    with pytest.raises(UserError, match=r"round 0: every client's update was refused.*not finite"):
        run_experiment(value, tmp_path, make_progress(quiet=True))
    for file in tmp_path.rglob("*.json*"):
        for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            strictly(text)
    assert not (tmp_path / "adapter").exists()
