"""Small versions of images: within their bounds, whatever the image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedloom.data.thumbnails import MOST, SIDE, thumbnail


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    assert image.format == "JPEG"
    return image


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300), st.integers(1000, 20_000))
def test_noise_fits_into_the_square_and_the_bytes(height: int, width: int, side: int, most: int) -> None:
    """Noise is the hardest image to compress."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = thumbnail(pixels, side, most)
    assert max(opened(content).size) <= side and len(content) <= most


def test_proportions_are_kept_and_small_images_keep_their_size() -> None:
    assert opened(thumbnail(np.zeros((600, 1200, 3), np.uint8))).size == (SIDE, SIDE // 2)
    assert opened(thumbnail(np.zeros((20, 30, 3), np.uint8))).size == (30, 20)


def test_it_shows_the_image() -> None:
    pixels = np.zeros((400, 400, 3), np.uint8)
    pixels[:, 200:] = 255
    shown = np.asarray(opened(thumbnail(pixels)), float)
    half = SIDE // 2
    assert shown[:, : half - 8].mean() == pytest.approx(0, abs=8)
    assert shown[:, half + 8 :].mean() == pytest.approx(255, abs=8)
    assert len(thumbnail(pixels)) <= MOST
