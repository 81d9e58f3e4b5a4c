"""Boxes as data sets write them, [x, y, width, height], turned into answers of the task grounding.

An answer is "[x0, y0, x1, y1]": whole pixels with both ends inside the box, or fractions of the picture's
width and height, then with decimal points.
"""

from __future__ import annotations

import json
from math import ceil, floor
from typing import Any

from fedloom.data.images import FileImage
from fedloom.data.record_fields import Bad
from fedloom.system.errors import UserError

SLACK = 0.01
"""By so many pixels may a box end outside the picture; data sets round to as many."""


def in_pixels(box: Any, picture: FileImage) -> str:
    """Return a box in pixels, widened to whole ones, as an answer.

    Args:
        box: [x, y, width, height] from the left upper corner.
        picture: The picture it must lie inside.

    Raises:
        Bad: It is no such box, or one that leaves the picture.
    """
    x, y, width, height = _numbers(box)
    try:
        right, bottom = picture.size
    except UserError as error:
        raise Bad(str(error)) from None
    inside = min(x, y) >= -SLACK and x + width <= right + SLACK and y + height <= bottom + SLACK
    if not inside:
        raise Bad(f"box {_told(box)} leaves the picture of {right} by {bottom} pixels")
    ends = min(ceil(x + width - SLACK), right) - 1, min(ceil(y + height - SLACK), bottom) - 1
    return str([max(floor(x + SLACK), 0), max(floor(y + SLACK), 0), *ends])


def in_fractions(box: Any) -> str:
    """Return a box in fractions of the picture as an answer, to four decimals.

    Raises:
        Bad: It is no such box, or one that leaves the picture.

    Example:
        >>> in_fractions([0.25, 0, 0.5, 1.0])
        '[0.2500, 0.0000, 0.7500, 1.0000]'
    """
    x, y, width, height = _numbers(box)
    ends = [x, y, x + width, y + height]
    if min(ends) < 0 or max(ends) > 1 + 1e-6:
        raise Bad(f"box {_told(box)} leaves the picture, which is 1 by 1")
    if min(width, height) < 1e-4:
        raise Bad(f"box {_told(box)} has no area")
    return f"[{', '.join(f'{min(end, 1):.4f}' for end in ends)}]"


def _numbers(box: Any) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4 or not all(type(one) in (int, float) for one in box):
        raise Bad(f"box {_told(box)} is not four numbers")
    x, y, width, height = box
    if min(width, height) <= 0:
        raise Bad(f"box {_told(box)} has no area")
    return x, y, width, height


def _told(box: Any) -> str:
    told = json.dumps(box)
    return told if len(told) <= 80 else told[:79] + "…"
