"""Runs in stages: what clients keep goes on from one to the next, whenever the run is interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedloom.client.local_job import Job
from fedloom.client.site import Site
from fedloom.experiment.experiment import Experiment
from fedloom.progress import Progress
from fedloom.runs.single_run import run_experiment
from fedloom.runs.verify_files import verify
from fedloom.wire.messages import Assignment

ROUNDS = [1, 4]


def go(model: Path, folder: Path) -> Sequence[bytes]:
    values = {
        "data": {"limit": 12, "test_share": 0.01},
        "scenario": {"clients": 2},
        "model": {"path": str(model), "threads": 1},
        "strategy": {"name": "two-stage", "rank": 2, "stage_rounds": ROUNDS},
        "train": {"rounds": sum(ROUNDS), "batch_size": 4},
        "methods": ["scaffold"],
        "engine": {"side_by_side": 1, "workers": 1},
    }
    run_experiment(Experiment.from_json(json.dumps(values)), folder, Progress(None))
    places = sorted((folder / "methods").rglob("*.safetensors"))
    return [file.read_bytes() for file in places]


def test_a_later_stage_goes_on_where_it_was_interrupted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage before is done, though what clients kept of it is forgotten by then."""
    whole, asked, job, ends = go(tiny_model, tmp_path / "whole"), list[tuple[int, int]](), Site.job, [True]
    folder = tmp_path / "again"

    def interrupted(self: Site, assignment: Assignment) -> Job:
        asked.append((assignment.stage, assignment.round))
        if asked[-1] == (1, 3) and ends:
            raise KeyboardInterrupt
        return job(self, assignment)

    monkeypatch.setattr(Site, "job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tiny_model, folder)
    assert verify(folder)[1] == []
    ends.clear()
    asked.clear()
    again = go(tiny_model, folder)
    assert set(asked) == {(1, 3)}
    assert again == whole
    assert verify(folder)[1] == []
    assert '"kind": "damaged"' not in (folder / "record.jsonl").read_text()
