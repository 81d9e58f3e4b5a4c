"""Runs in stages: what clients keep goes on from one to the next, whenever the run is interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fedloom.algorithms.algorithm import ServerState
from fedloom.client.client_memory import Files
from fedloom.client.local_job import Job
from fedloom.client.site import Site
from fedloom.engine.checkpoints import write_checkpoint
from fedloom.engine.rounds import TrainingState
from fedloom.experiment.experiment import Experiment
from fedloom.params import Params
from fedloom.runs.run_folder import stage_folder
from fedloom.runs.single_run import run_experiment
from fedloom.runs.verify_files import verify
from fedloom.system.manifest import Manifest, write_manifest
from fedloom.system.progress import Progress
from fedloom.version import __version__
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


def checkpoints_of(training: Path, stages: Sequence[int], count: int) -> None:
    """Write a checkpoint of a client that keeps memory, into each of some stages of a training."""
    for number in stages:
        folder = stage_folder(training, number, count)
        folder.mkdir(parents=True, exist_ok=True)
        state = ServerState(Params.of({"x": torch.zeros(1)}), 1)
        write_checkpoint(folder, TrainingState(state, {0: (number,)}))


@pytest.mark.parametrize(("last", "damaged"), [(2, False), (9, False), (10, False), (11, False), (10, True)])
def test_what_clients_kept_is_needed_in_the_last_stage_that_can_go_on(
    last: int, damaged: bool, tmp_path: Path
) -> None:
    """Of twelve stages, which have two digits from the tenth on, all before the last one begun are over."""
    training, count = tmp_path / "methods/scaffold", 12
    checkpoints_of(training, range(last + 1), count)
    write_manifest(tmp_path, Manifest(__version__))
    memory = Files(tmp_path / "methods")
    needed = last - 1 if damaged else last
    memory.write(("scaffold", 0, needed), {"control": torch.ones(1)}, ())
    if damaged:
        (stage_folder(training, last, count) / "round-0001.safetensors").write_bytes(b"")
        (fault,) = verify(tmp_path)[1]
        assert "round-0001.safetensors" in fault
    else:
        assert verify(tmp_path)[1] == []
    memory.file(("scaffold", 0, needed)).unlink()
    faults = verify(tmp_path)[1]
    assert [f"round-{needed:04}" in fault for fault in faults if "memory" in fault] == [True]
