"""Augment images for training, so that no two views of an image are equal.

Shape legend: B images of 64 px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(pixels: Tensor) -> Tensor:
    """Turn uint8 [B, 64, 64, 3] into float [B, 3, 64, 64] in −1…1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shift, flip, recolor, add noise and cut out; in and out [B, 3, 64, 64] in −1…1."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.35, 0.35), uniform(0.85, 1.35)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [
            torch.stack([cos * flip, -sin, uniform(-0.2, 0.2)], 1),
            torch.stack([sin * flip, cos, uniform(-0.2, 0.2)], 1),
        ],
        1,
    )
    moved = F.grid_sample(
        pixels,
        F.affine_grid(theta, list(pixels.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    gain, bias = uniform(0.75, 1.15, 3, 1, 1), uniform(-0.15, 0.15, 3, 1, 1)
    moved = (moved * gain + bias + 0.04 * torch.randn(moved.shape, generator=generator)).clamp(-1, 1)
    rows, place = torch.arange(64), torch.randint(0, 64, (count, 2), generator=generator)
    size = torch.randint(0, 24, (count, 1), generator=generator)
    inside_y = ((rows - place[:, :1]).abs() * 2 < size)[:, None, :, None]
    inside_x = ((rows - place[:, 1:]).abs() * 2 < size)[:, None, None, :]
    return torch.where(inside_y & inside_x, torch.zeros(()), moved)
