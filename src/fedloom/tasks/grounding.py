"""Where is it? The answer is a box "[x0, y0, x1, y1]" in whole pixels, ends included."""

from __future__ import annotations

import re

from fedloom.tasks.base import UNPARSED, Answer, AnswerForm, Box, Task, Unparsed, free_answer
from fedloom.tasks.metrics import graded
from fedloom.types import Example, UserError

_NUMBER = r"\s*([0-9]{1,6})\s*"
_BOX = re.compile(rf"\[{','.join([_NUMBER] * 4)}\]")
ENOUGH = 0.5
"""The IoU from which a box counts as right."""


def parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> Box | Unparsed:
    """Return the only box in a reply, or `UNPARSED` if there is none or it is not one inside the picture."""
    del answer_form
    found = _BOX.findall(reply)
    if len(found) != 1:
        return UNPARSED
    x0, y0, x1, y1 = (int(number) for number in found[0])
    if x0 > x1 or y0 > y1:
        return UNPARSED
    if example.image is not None:
        height, width = example.image.pixels().shape[:2]
        if x1 >= width or y1 >= height:
            return UNPARSED
    return x0, y0, x1, y1


def iou(first: Box, second: Box) -> float:
    """Return the area that two boxes share, divided by the area that they cover; ends included.

    Example:
        >>> iou((0, 0, 1, 1), (1, 0, 2, 1))
        0.3333333333333333
    """
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    shared = max(width, 0) * max(height, 0)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Box) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def overlap(example: Example, answer: Answer) -> float:
    """Return the IoU of an answer with the right box.

    Raises:
        UserError: The example's own answer is not a box inside its picture.
    """
    right = parse(example.answer, example)
    if right is UNPARSED:
        raise UserError(
            f"example {example.id!r}: the answer {example.answer!r} is not a box inside its picture"
        )
    return iou(answer, right) if isinstance(answer, tuple) else 0.0


def hit(example: Example, answer: Answer) -> float:
    """Return 1 if the IoU is at least one half, else 0."""
    return float(overlap(example, answer) >= ENOUGH)


GROUNDING = Task(free_answer, parse, graded(accuracy=hit, iou=overlap))
