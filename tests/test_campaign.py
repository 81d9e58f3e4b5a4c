"""The campaign of faults: killed runs and disturbed federations. A few of each kind here, the whole of it in `make test-slow`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.shares import share

from campaign.federations import FAULTS, federations
from campaign.kills import kills
from campaign.world import METHODS, make_world
from fedloom.system.processes import can_fork


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
@pytest.mark.parametrize("name", share(METHODS, every=2, first=1))
@pytest.mark.parametrize("count", share([6, 60], every=2))
def test_killed_and_starved_runs_end_with_the_same_bytes(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    results = kills(make_world(tmp_path / "world", name), tmp_path / "kills", count, seed=count)
    assert sum(map(len, results.values())) == count
    assert {kind: set(ends) for kind, ends in results.items()} == {kind: {"same"} for kind in results}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_disturbed_federations_end_with_the_bytes_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    world = make_world(tmp_path / "world", "scaffold")
    results = federations(world, tmp_path / "runs", len(FAULTS), seed=1)
    assert results == {kind: ["same"] for kind in FAULTS}
