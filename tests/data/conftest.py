"""Settings as an experiment gives them, and a writer of small pictures."""

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
