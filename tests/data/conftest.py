"""Settings as an experiment gives them."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Settings:
    name: str = "folder"
    root: Path | None = None
    test_share: float = 0.25
    validation: float | str = 0.0
    limit: int | None = None
    max_rejected: float = 0.01
    task: str = "classification"
    variant: str | None = None


@pytest.fixture(scope="session")
def settings():
    """Return a function that makes settings from what differs from the defaults."""
    return lambda **changes: replace(Settings(), **changes)
