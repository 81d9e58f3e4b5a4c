"""A run with TLS and keys: the bytes are the same, and who has no key of this federation takes no part."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.federated import PATIENCE, FederatedRun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("flwr") is None,
        reason="Flower is not installed; `pip install 'fedloom[flower]'`",
    ),
]


def told(run: FederatedRun, name: str, text: str) -> None:
    """Wait until one of the processes has written something."""
    end = time.monotonic() + PATIENCE
    while text not in run.told(name):
        assert time.monotonic() < end, run.told()
        time.sleep(0.2)


def test_only_sites_with_a_registered_key_take_part(tiny_model: Path, tmp_path: Path) -> None:
    """A stranger has a key that is registered nowhere, another one trusts another authority, and a third takes the name
    of a site that it is not. None of them joins; the rounds are those of one process."""
    from fedloom.engine.federation_keys import make_keys

    keys = tmp_path / "keys"
    make_keys(keys, [], ["north", "south", "guest"])
    make_keys(tmp_path / "other", [], ["stranger", "fooled"])
    for site in ("stranger", "fooled"):
        shutil.copytree(tmp_path / "other" / f"site-{site}", keys / f"site-{site}")
    shutil.copy(keys / "server" / "ca.crt", keys / "site-stranger" / "ca.crt")
    shutil.copytree(keys / "site-guest", keys / "site-east")  # whose name no key is registered for
    value = {
        "methods": ["fedavg"],
        "model": {"path": str(tiny_model), "threads": 1},
        "train": {"rounds": 2},
        "data": {"name": "shapes", "limit": 16},
        "scenario": {"clients": 2},
        "engine": {"side_by_side": 1, "workers": 1},
    }
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(value))
    one = [sys.executable, "-m", "fedloom", "run", str(file), "--out", str(tmp_path / "here"), "--quiet"]
    subprocess.run(one, check=True, capture_output=True)
    sites = {"east": "0", "stranger": "0", "fooled": "0", "south": "1", "north": "0"}
    with FederatedRun(tmp_path, file, sites, keys=keys, late=("north",)) as run:
        told(run, "server", "its key is that of site guest")
        told(run, "stranger", "SuperNode ended")
        run.start_site("north")
        assert run.processes["server"].wait(PATIENCE) == 0, run.told()
    assert {
        line["site"]
        for line in map(json.loads, (tmp_path / "there" / "record.jsonl").read_text().splitlines())
        if line["kind"] == "site joined"
    } == {"north", "south"}
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "here" / adapter).read_bytes() == (tmp_path / "there" / adapter).read_bytes()
