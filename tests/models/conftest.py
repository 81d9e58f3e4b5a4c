"""Fixtures of tests of models: the tiny variant of each family as a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .tiny import save


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write each family's tiny variant once."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = save(name, tmp_path_factory.mktemp(name) / "model")
        return folders[name]

    return get
