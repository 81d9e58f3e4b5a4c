"""Two sites in processes of their own, behind Flower's messages, give the bytes of a run in one process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tests.federated import FederatedRun, require_equal, undisturbed

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None,
    reason="Flower is not installed; `pip install 'fedloom[flower]'`",
)


def test_sites_behind_flower_give_the_bytes_of_one_process(tiny_model: Path, tmp_path: Path) -> None:
    """SCAFFOLD keeps something at the server and at every client, and both sides must agree about it over rounds."""
    experiment = undisturbed(tmp_path, tiny_model, rounds=2)
    with FederatedRun(tmp_path, experiment, sites={"north": "1", "south": "0"}) as run:
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
    one, other = (
        json.loads((side / "result.json").read_text()) for side in (tmp_path / "here", tmp_path / "there")
    )
    assert one["scores"] == other["scores"]
    assert one["bytes"] == other["bytes"]
    # The models were loaded once: each site joined once, however many messages there were.
    assert run.told("north").count("the model is loaded") == 1
