"""The task grounding: the answer is a box "[x0, y0, x1, y1]", in whole pixels or in fractions of the image.

The right answer decides the unit. Whole numbers are pixels, and both ends belong to the box; numbers with a
decimal point are fractions 0..1 of the image's width and height. A reply has to use the same unit.
"""

from __future__ import annotations

import re
from functools import lru_cache

from fedloom.system.errors import UserError
from fedloom.tasks.metrics import collect, graded_row, mean
from fedloom.tasks.task import (
    UNPARSED,
    Answer,
    AnswerForm,
    Box,
    Metric,
    Published,
    Rows,
    Scores,
    Task,
    Unparsed,
    free_answer,
)
from fedloom.types import Example, LazyImage

PIXELS = r"\s*([0-9]{1,6})\s*"
FRACTIONS = r"\s*([0-9]{1,6}(?:\.[0-9]{0,12})?)\s*"
THRESHOLDS = {"accuracy": 0.5, "accuracy@0.25": 0.25, "accuracy@0.75": 0.75}
"""Score → the smallest IoU of a box that counts as right."""


def parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> Box | Unparsed:
    """Return the box in a reply, or `UNPARSED` unless there is exactly one and it is inside the image."""
    del answer_form
    fractions = in_fractions(example)
    candidates = boxes(reply, fractions=fractions)
    if len(candidates) != 1:
        return UNPARSED
    x0, y0, x1, y1 = box = candidates[0]
    if fractions:
        return box if x0 < x1 <= 1 and y0 < y1 <= 1 else UNPARSED
    if x0 > x1 or y0 > y1:
        return UNPARSED
    if example.image is not None:
        height, width = _size(example.image)
        if x1 >= width or y1 >= height:
            return UNPARSED
    return box


@lru_cache(maxsize=2**16)
def _size(image: LazyImage) -> tuple[int, int]:
    """Return height and width, cached because each answer and each right box needs them."""
    height, width = image.pixels().shape[:2]
    return height, width


def published_parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> Box | Unparsed:
    """Return the box that a reply consists of, inside the image or not, or `UNPARSED`.

    FedVLMBench's code reads the text after the first "are" of "The coordinates are [...].", which must be a single
    box. A reply without such a sentence is read whole.
    """
    del answer_form
    reply = reply.strip().removesuffix(".")
    text = reply.partition("are")[2] or reply
    candidates = boxes(text, fractions=in_fractions(example))
    single = len(candidates) == 1 and re.fullmatch(r"\s*\[[^][]*\]\s*", text)
    return candidates[0] if single else UNPARSED


def boxes(text: str, *, fractions: bool) -> list[Box]:
    """Return all groups of four numbers in brackets; pixels are whole numbers.

    Example:
        >>> boxes("at [1, 2, 3, 4]", fractions=False), boxes("[0.1, 0, .5]", fractions=True)
        ([(1, 2, 3, 4)], [])
    """
    number, kind = (FRACTIONS, float) if fractions else (PIXELS, int)
    return [
        (kind(x0), kind(y0), kind(x1), kind(y1))
        for x0, y0, x1, y1 in re.findall(rf"\[{','.join([number] * 4)}\]", text)
    ]


def in_fractions(example: Example) -> bool:
    """Return whether an example's boxes are fractions of the image rather than pixels."""
    return "." in example.answer


def iou(first: Box, second: Box, *, ends: int = 1) -> float:
    """Return the intersection over union of two boxes.

    Args:
        first: x0, y0, x1, y1.
        second: x0, y0, x1, y1.
        ends: 1 if the last row and column belong to a box (pixels), 0 if not (fractions).

    Returns:
        0..1; 0 for a box without area.

    Example:
        >>> iou((0, 0, 1, 1), (1, 0, 2, 1)), iou((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 1.0), ends=0)
        (0.3333333333333333, 0.5)
    """
    width = min(first[2], second[2]) - max(first[0], second[0]) + ends
    height = min(first[3], second[3]) - max(first[1], second[1]) + ends
    shared = max(width, 0) * max(height, 0)
    return shared / (_area(first, ends) + _area(second, ends) - shared) if shared else 0.0


def _area(box: Box, ends: int) -> float:
    return max(box[2] - box[0] + ends, 0) * max(box[3] - box[1] + ends, 0)


def overlap(example: Example, answer: Answer) -> float:
    """Return the IoU of an answer with the right box.

    Raises:
        UserError: The example's own answer is not a box inside its image.
    """
    right = parse(example.answer, example)
    if right is UNPARSED:
        raise UserError(
            f"example {example.id!r}: the answer {example.answer!r} is not a box inside its image"
        )
    return iou(answer, right, ends=int(not in_fractions(example))) if isinstance(answer, tuple) else 0.0


def _each(state: Rows) -> dict[str, list[float]]:
    ious = [0.0 if row is None else row[0] for row in state]
    right = {name: [float(iou >= smallest) for iou in ious] for name, smallest in THRESHOLDS.items()}
    return {"iou": ious, **right}


def _result(state: Rows) -> Scores:
    unparsed = [float(row is None) for row in state]
    return {**{name: mean(values) for name, values in _each(state).items()}, "unparsed": mean(unparsed)}


def _published_result(state: Rows) -> Scores:
    dropped = [float(row is None) for row in state]
    return {"iou_published": mean(_parsed_ious(state)["iou_published"]), "dropped_published": mean(dropped)}


def _parsed_ious(state: Rows) -> dict[str, list[float]]:
    return {"iou_published": [row[0] for row in state if row is not None]}


PUBLISHED: Metric = collect(graded_row(overlap), _published_result, _parsed_ious, "iou_published")
"""The mean IoU of the replies that are a box, without the others, as in FedVLMBench's code."""

GROUNDING = Task(
    free_answer,
    parse,
    collect(graded_row(overlap), _result, _each, "iou"),
    Published(published_parse, PUBLISHED),
)
