"""Kill each side of a real federation at work: the same commands go on, and the bytes stay those of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
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
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked up in /proc"),
]

ROUNDS = 6


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    changes = {
        "methods": ["scaffold"],
        "model": {"path": str(tiny_model), "threads": 1},
        "train": {"rounds": ROUNDS},
        "data": {"name": "shapes", "limit": 16},
        "scenario": {"clients": 2},
        "engine": {"side_by_side": 1, "workers": 1},
    }
    file = folder / "experiment.json"
    file.write_text(json.dumps(changes))
    here = [sys.executable, "-m", "fedloom", "run", str(file), "--out", str(folder / "here"), "--quiet"]
    subprocess.run(here, check=True, capture_output=True)
    return file


def after_round(run: FederatedRun, count: int) -> None:
    """Wait until so many rounds are in the record."""
    record, end = run.folder / "there" / "record.jsonl", time.monotonic() + PATIENCE
    while not record.exists() or record.read_text().count('"kind": "round"') < count:
        assert time.monotonic() < end, run.told()
        assert run.processes["server"].poll() is None, run.told()
        time.sleep(0.2)


def equal(run: FederatedRun, experiment: Path) -> None:
    files = ("adapter/adapter_model.safetensors", "adapter/manifest.json")
    for file in files:
        assert (run.folder / "there" / file).read_bytes() == (experiment.parent / "here" / file).read_bytes()


def superlink_of(run: FederatedRun) -> int:
    """Return the process of the SuperLink whose files are in the server's folder."""
    home = f"FLWR_HOME={(run.folder / 'there' / 'flower').absolute()}".encode()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
            variables = place.with_name("environ").read_bytes().split(b"\0")
        except OSError:
            continue
        at = next((k for k, word in enumerate(words) if word.endswith(b"flower-superlink")), -1)
        if 0 <= at < 5 and home in variables:  # behind own_user_only.py, not behind end_with_parent.py
            return int(place.parent.name)
    raise AssertionError("no SuperLink runs")


def kill(run: FederatedRun, name: str, how: signal.Signals = signal.SIGKILL) -> int:
    run.processes[name].send_signal(how)
    return run.processes[name].wait(60)


def test_a_killed_site_comes_back(tmp_path: Path, experiment: Path) -> None:
    with FederatedRun(tmp_path, experiment, {"north": "0", "south": "1"}) as run:
        after_round(run, 2)
        kill(run, "south")
        run.start_site("south")
        assert run.wait() == [0, 0, 0], run.told()
        equal(run, experiment)


def test_a_killed_superlink_is_started_again(tmp_path: Path, experiment: Path) -> None:
    with FederatedRun(tmp_path, experiment, {"north": "0", "south": "1"}) as run:
        after_round(run, 2)
        os.kill(superlink_of(run), signal.SIGKILL)
        assert run.wait() == [0, 0, 0], run.told()
        equal(run, experiment)
        assert "it is started again" in run.told("server")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_goes_on_by_the_same_command(tmp_path: Path, experiment: Path, how: signal.Signals) -> None:
    with FederatedRun(tmp_path, experiment, {"north": "0", "south": "1"}) as run:
        after_round(run, 2)
        assert kill(run, "server", how) == (-9 if how == signal.SIGKILL else 143)
        assert how == signal.SIGKILL or "the same command goes on" in run.told("server")
        run.start_server()
        assert run.wait() == [0, 0, 0], run.told()
        equal(run, experiment)
        assert run.told("north").count("the model is loaded") == 1, "a site that stayed loads nothing again"


def test_sigterm_ends_a_site_cleanly(tmp_path: Path, experiment: Path) -> None:
    with FederatedRun(tmp_path, experiment, {"north": "0", "south": "1"}) as run:
        after_round(run, 1)
        assert kill(run, "north", signal.SIGTERM) == 143
        assert "the same command takes part again" in run.told("north")
        run.start_site("north")
        assert run.wait() == [0, 0, 0], run.told()
        equal(run, experiment)
