"""Bound the pixels of images, for families that encode images in their own size: `model.pixels`.

Larger images are made smaller by the family's image processor, which keeps their proportions.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

from fedloom.system.errors import UserError


def by_area(model: Any, processor: Any, pixels: int) -> dict[str, Any]:
    """Return the settings of Qwen's image processor, whose "edges" are numbers of pixels."""
    del model
    size = processor.size
    return {"size": {edge: min(size[edge], pixels) for edge in ("shortest_edge", "longest_edge")}}


def by_area_of_frames(model: Any, processor: Any, pixels: int) -> dict[str, Any]:
    """Return the settings of GLM's image processor, which counts an image as often as frames make one patch."""
    return by_area(model, processor, pixels * processor.temporal_patch_size)


def by_bounds(model: Any, processor: Any, pixels: int) -> dict[str, Any]:
    """Return the settings of Emu3's image processor, which has names of its own for both bounds."""
    del model
    return {name: min(getattr(processor, name), pixels) for name in ("min_pixels", "max_pixels")}


def by_edge(model: Any, processor: Any, pixels: int) -> dict[str, Any]:
    """Return the settings of Pixtral's image processor, which bounds the longer edge: that of a square of so many pixels.

    A long image has fewer pixels than the bound allows.

    Raises:
        UserError: No image token fits.
    """
    token = model.config.vision_config.patch_size * model.config.spatial_merge_size
    edge = isqrt(pixels) // token * token  # edges are rounded up to whole tokens
    if not edge:
        raise UserError(f"model.pixels: a single image token has {token**2:,} pixels; set at least as many")
    return {"size": {"longest_edge": min(processor.size["longest_edge"], edge)}}
