"""Settings as an experiment gives them, and a writer of small pictures."""

import importlib.util
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Settings:
    name: str = "folder"
    root: Path | None = None
    test_share: float = 0.25
    limit: int | None = None
    max_rejected: float = 0.01
    task: str = "classification"
    variant: str | None = None


@pytest.fixture(scope="session")
def settings():
    """Return a function that makes settings from what differs from the defaults."""
    return lambda **changes: replace(Settings(), **changes)


@pytest.fixture(scope="session")
def encoded():
    """Return a function from a number to the bytes of a small picture, different for each number."""

    def encode(number: int, format: str = "PNG", side: int = 12) -> bytes:
        values = np.random.default_rng(number).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, format)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def trees():
    """Return the module that writes folders in the layouts in which data sets are shipped."""
    spec = importlib.util.spec_from_file_location("trees", Path(__file__).parent / "trees.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
