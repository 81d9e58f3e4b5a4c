"""Two sites in processes of their own, behind Flower's messages, give the bytes of a run in one process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.federated import FederatedRun

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None,
    reason="Flower is not installed; `pip install 'fedloom[flower]'`",
)


def test_sites_behind_flower_give_the_bytes_of_one_process(tiny_model: Path, tmp_path: Path) -> None:
    """SCAFFOLD keeps something at the server and at every client, and both sides must agree about it over rounds."""
    changes = {
        "methods": ["scaffold"],
        "model": {"path": str(tiny_model), "threads": 1},
        "train": {"rounds": 2},
        "data": {"name": "shapes", "limit": 16},
        "scenario": {"clients": 2},
        "engine": {"side_by_side": 1, "workers": 1},
    }
    experiment = tmp_path / "experiment.json"
    experiment.write_text(json.dumps(changes))
    here = [
        sys.executable,
        "-m",
        "fedloom",
        "run",
        str(experiment),
        "--out",
        str(tmp_path / "here"),
        "--quiet",
    ]
    subprocess.run(here, check=True, capture_output=True)
    with FederatedRun(tmp_path, experiment, sites={"north": "1", "south": "0"}) as run:
        assert run.wait() == [0, 0, 0], run.told()
    here, there = (tmp_path / side for side in ("here", "there"))
    for file in ("adapter/adapter_model.safetensors", "adapter/manifest.json"):
        assert (here / file).read_bytes() == (there / file).read_bytes()
    one, other = (json.loads((side / "result.json").read_text()) for side in (here, there))
    assert one["scores"] == other["scores"]
    assert one["bytes"] == other["bytes"]
    # The models were loaded once: each site joined once, however many messages there were.
    assert run.told("north").count("the model is loaded") == 1
