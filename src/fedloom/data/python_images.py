"""Images given from Python: a path, the bytes of a file (also as Hugging Face keeps them), a PIL image, or an array of pixels."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedloom.data.images import LIMITS, fully_checked_image, pixels_of_bytes, upright_rgb
from fedloom.system.errors import UserError
from fedloom.types import LazyImage

NO_RANGE = ("F", "I")
"""Modes of PIL whose values may mean anything: 0–1, 0–255, 0–65535, or a measurement."""


@dataclass(frozen=True, eq=False)
class PixelImage:
    """An image in memory.

    Attributes:
        values: Its pixels, shape [height, width, 3], uint8.
    """

    values: NDArray[np.uint8]

    @property
    def key(self) -> str:
        """A key that is equal for equal pixels; computed once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        height, width = self.values.shape[:2]
        return hashlib.sha256(b"%d %d " % (width, height) + self.values.tobytes()).hexdigest()

    @property
    def pixel_digest(self) -> str:
        """As that of an image in a file: the `key`."""
        return self.key

    def pixels(self) -> NDArray[np.uint8]:
        """Return a copy of the pixels."""
        return self.values.copy()


def python_image(value: Any, what: str = "image") -> LazyImage:
    """Return an image from a path, the bytes of a file, a PIL image of any mode, or an array of shape [height, width, 3].

    Args:
        value: One of these: arrays have values 0–255, and PIL images a mode whose values have a fixed range (not F or I). Or
            {"bytes": …, "path": …} with either of them, as Hugging Face keeps images; or an image of fedloom's own kind, which is
            returned unchanged.
        what: Its name in messages.

    Raises:
        UserError: It is something else, or the file cannot be used.
    """
    value = _stored(value)
    if isinstance(value, str | Path):
        image = fully_checked_image(Path(os.path.expanduser(value)))
        if isinstance(image, str):
            raise UserError(f"{what}: {value} is {image}")
        return image
    if isinstance(value, bytes):
        pixels = pixels_of_bytes(value)
        if isinstance(pixels, str):
            raise UserError(f"{what}: it is {pixels}")
        return PixelImage(pixels)
    if isinstance(value, Image.Image):
        _require_usable(value, what)
        try:
            return PixelImage(np.array(upright_rgb(value)))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{what}: the PIL image cannot be decoded ({error})") from None
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise UserError(
                f"{what}: an array of pixels must have the shape (height, width, 3) and the type uint8, not "
                f"{value.shape} and {value.dtype}"
            )
        _require_size(value.shape[1], value.shape[0], what)
        return PixelImage(np.ascontiguousarray(value).copy())
    if callable(getattr(value, "pixels", None)) and hasattr(value, "key"):
        return value
    raise UserError(
        f"{what}: expected a path, a PIL image or an array of pixels, not a {type(value).__name__}"
    )


def _require_usable(image: Image.Image, what: str) -> None:
    """Refuse a PIL image whose pixels would become others: of a mode without a known range, without pixels, or too large."""
    if not image.width or not image.height:
        raise UserError(f"{what}: the PIL image has no pixels ({image.width} × {image.height})")
    _require_size(image.width, image.height, what)
    if image.mode in NO_RANGE:
        raise UserError(
            f"{what}: the values of a PIL image of mode {image.mode} have no fixed range, so that their brightness is unknown; "
            "scale them to 0–255 and give an image of mode L or RGB (or to 0–65535, and mode I;16)"
        )


def _require_size(width: int, height: int, what: str) -> None:
    if width * height > LIMITS.pixels:
        raise UserError(
            f"{what}: it has {width:,} × {height:,} pixels, more than {LIMITS.pixels:,}; make it smaller"
        )


def _stored(value: Any) -> Any:
    """Return the bytes or else the path of an image as Hugging Face keeps it, and any other value unchanged."""
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
        return value.get("path") if value.get("bytes") is None else value["bytes"]
    return value


def image_as_png(image: LazyImage, side: int) -> bytes:
    """Return an image as the bytes of a PNG file, made smaller where its longest side has more than `side` pixels."""
    shown, buffer = Image.fromarray(image.pixels()), io.BytesIO()
    shown.thumbnail((side, side))
    shown.save(buffer, "PNG")
    return buffer.getvalue()
