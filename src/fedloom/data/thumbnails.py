"""Encode small versions of images, for pages that hold their images themselves."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, MOST = 176, 7_000
QUALITIES = (85, 70, 50, 30)


def thumbnail(pixels: NDArray[np.uint8], side: int = SIDE, most: int = MOST) -> bytes:
    """Return an image as a JPEG file that fits into a square and has at most so many bytes.

    A smaller image keeps its size. If the file is too large, its quality is reduced, and then its size.

    Args:
        pixels: The image, shape [height, width, 3], values 0–255.
        side: Largest height and width in pixels, ≥ 1.
        most: Largest number of bytes, ≥ 1000.
    """
    image = Image.fromarray(pixels)
    while True:
        image.thumbnail((side, side))  # keeps proportions, and never makes an image larger
        for quality in QUALITIES:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
            if file.tell() <= most or side == 1:
                return file.getvalue()
        side = max(side // 2, 1)
