"""Pieces of work end whatever happens to their processes; cells of a sweep come out as without Ray."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.engine.ray_site import piece

from fedloom.engine.ray_cluster import ActorRequest, in_actor
from fedloom.engine.ray_tasks import TRIES, run_tasks
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.grid import load_grid
from fedloom.plugins.plugins import Plugins
from fedloom.runs.sweep import run_sweep
from fedloom.runs.sweep_tasks import run_on_cluster
from fedloom.system.errors import UserError
from fedloom.system.json_files import read_json
from fedloom.system.progress import Progress

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@needs_ray
@pytest.mark.slow
def test_work_of_a_process_that_dies_is_done_by_another(tmp_path: Path) -> None:
    arguments = {number: (str(tmp_path), number) for number in range(6)}
    found = list(run_tasks(piece, arguments, ActorRequest(2)))
    begun = [number for number, ended, _ in found if not ended]
    assert sorted(begun) == list(range(6))  # each once, however often it is tried
    ends = {number: failed for number, ended, failed in found if ended}
    assert [number for number in range(6) if ends[number] is None] == [0, 1, 4, 5]
    assert ends[3] == "it is broken"
    assert f"{TRIES} processes died" in str(ends[2])
    tries = [len([*tmp_path.glob(f"{number}-*")]) for number in range(6)]
    assert tries == [1, 2, TRIES, 1, 1, 1]


def grid(tiny_model: Path, tmp_path: Path, backend: str) -> Any:
    values = {
        "data": {"limit": 8, "test_share": 0.01},
        "scenario": {"clients": 2},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"rank": 2},
        "train": {"rounds": 1, "batch_size": 2},
        "methods": ["fedavg"],
        "engine": {"backend": backend, "side_by_side": 1},
        "grid": {"seed": [0, 1]},
    }
    file = tmp_path / f"{backend}.json"
    file.write_text(json.dumps(values))
    return load_grid(str(file), (), ())


@needs_ray
@pytest.mark.slow
def test_cells_on_a_cluster_come_out_as_in_this_process(tiny_model: Path, tmp_path: Path) -> None:
    results = []
    for backend, jobs in (("in-process", 1), ("ray", 2)):
        folder = tmp_path / f"sweep-{backend}"
        run_sweep(grid(tiny_model, tmp_path, backend), folder, lambda _: None, lambda: Progress(None), jobs)
        swept = read_json(folder / "sweep.json", {"cells": list})
        assert [cell["state"] for cell in swept["cells"]] == ["done", "done"]
        cells = [folder / cell["folder"] for cell in swept["cells"]]
        adapters = [(cell / "adapter" / "adapter_model.safetensors").read_bytes() for cell in cells]
        results.append((adapters, [read_json(cell / "result.json", {})["scores"] for cell in cells]))
    assert results[0] == results[1]
    assert results[0][0][0] != results[0][0][1]


def test_python_values_are_refused_before_anything_starts(tmp_path: Path) -> None:
    value = Experiment(plugins=[Plugins.of(metrics={"mine": lambda *_: 0.0})], engine={"backend": "ray"})
    with pytest.raises(UserError, match="Python value"):
        run_on_cluster({0: (value, tmp_path)}, 2)


def test_this_process_is_no_actor() -> None:
    assert not in_actor()
