"""Convert bounding boxes of data sets, [x, y, width, height], to answers of the task grounding.

An answer is "[x0, y0, x1, y1]": whole pixels with both ends inside the box, or fractions of the image's
width and height, then with decimal points.
"""

from __future__ import annotations

import json
from math import ceil, floor
from typing import Any

from fedloom.data.images import FileImage
from fedloom.data.record_fields import InvalidRecord
from fedloom.system.errors import UserError

SLACK = 0.01
"""How many pixels a box may extend beyond the image; data sets round coordinates this coarsely."""


def in_pixels(box: Any, image: FileImage) -> str:
    """Return the answer for a box in pixels, widened to whole pixels.

    Args:
        box: [x, y, width, height], with x and y of the upper left corner.
        image: The image that contains the box.

    Raises:
        InvalidRecord: The value is not such a box, or the box extends beyond the image.
    """
    x, y, width, height = _numbers(box)
    try:
        right, bottom = image.size
    except UserError as error:
        raise InvalidRecord(str(error)) from None
    inside = min(x, y) >= -SLACK and x + width <= right + SLACK and y + height <= bottom + SLACK
    if not inside:
        raise InvalidRecord(f"box {_shortened(box)} leaves the image of {right} by {bottom} pixels")
    ends = min(ceil(x + width - SLACK), right) - 1, min(ceil(y + height - SLACK), bottom) - 1
    return str([max(floor(x + SLACK), 0), max(floor(y + SLACK), 0), *ends])


def in_fractions(box: Any) -> str:
    """Return the answer for a box in fractions of the image, with four decimals.

    Raises:
        InvalidRecord: The value is not such a box, or the box extends beyond the image.

    Example:
        >>> in_fractions([0.25, 0, 0.5, 1.0])
        '[0.2500, 0.0000, 0.7500, 1.0000]'
    """
    x, y, width, height = _numbers(box)
    ends = [x, y, x + width, y + height]
    if min(ends) < 0 or max(ends) > 1 + 1e-6:
        raise InvalidRecord(f"box {_shortened(box)} leaves the image, which is 1 by 1")
    if min(width, height) < 1e-4:
        raise InvalidRecord(f"box {_shortened(box)} has no area")
    return f"[{', '.join(f'{min(end, 1):.4f}' for end in ends)}]"


def _numbers(box: Any) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        raise InvalidRecord(f"box {_shortened(box)} is not four numbers")
    x, y, width, height = box
    if min(width, height) <= 0:
        raise InvalidRecord(f"box {_shortened(box)} has no area")
    return x, y, width, height


def _shortened(box: Any) -> str:
    text = json.dumps(box)
    return text if len(text) <= 80 else text[:79] + "…"
