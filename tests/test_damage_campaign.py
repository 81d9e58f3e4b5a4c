"""The campaign of faults: damaged files. A few of each kind here, the whole of it in `make test-slow`.

It has a file of its own because the tests of a file run in one process, and each campaign takes a quarter of an hour.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.shares import share

from campaign.damage import damages
from campaign.world import make_world


@pytest.mark.parametrize("name", ["scaffold", "share-connector"])
@pytest.mark.parametrize("count", share([12, 1200], every=2))
def test_a_damaged_file_is_named_or_changes_nothing(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    results, wrong = damages(make_world(tmp_path / "world", name), tmp_path / "trials", count, seed=count)
    assert sum(fates.total() for fates in results.values()) == count
    assert not wrong
