"""How the two papers' published code reads and scores replies, to compare with their tables.

References:
    B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv 2411.14717v2,
    and "FedVLMBench", arXiv 2506.09638; as far as their public code computes the scores they print.

Shape legend: N = number of answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray

from fedloom.tasks.base import UNPARSED, Answer, Metric, Rows, Scores, Unparsed, after_is
from fedloom.tasks.metrics import (
    MISSING,
    Judged,
    area_under_curve,
    choice_row,
    collect,
    graded,
    hits,
    labels,
    mean,
)
from fedloom.types import Example

FAILED = 2
"""The class that FedMLLM's code puts down for a reply that it cannot read, whatever the options are."""


def first_letter(reply: str, options: int) -> int | Unparsed:
    """Read the first capital letter in the range of options, anywhere in the reply (FedMLLM).

    The word "answer" is dropped before; a capital inside another word counts.

    Example:
        >>> first_letter("Answer: because it is (B)", 4), first_letter("Because it is (A)", 4)
        (1, 1)
    """
    letters = ascii_uppercase[:options]
    rest = re.sub("answer", "", reply, flags=re.IGNORECASE)
    return next((letters.index(letter) for letter in rest if letter in letters), UNPARSED)


def first_character(reply: str) -> str | Unparsed:
    """Read the first character after "is", or of the whole reply without one (FedVLMBench).

    Example:
        >>> first_character("The color is red."), first_character("red")
        ('r', 'r')
    """
    rest = after_is(reply) or reply.strip()
    return rest[0] if rest else UNPARSED


def _same_start(example: Example, answer: Answer) -> float:
    return float(answer == first_character(example.answer))


STARTS = graded("accuracy", "_published", accuracy=_same_start)
"""The metric of answers of which only the first character is compared (FedVLMBench)."""


def published_classification(label: Callable[[Example], int]) -> Metric:
    """Make the metric of multiple choice as FedMLLM's code has it; a reply it cannot read is class 2.

    auc_published is the area under the curve of *hard* labels, so that a reply that cannot be read ranks
    above the positive class 1; it is defined for two options. Without such replies it is balanced accuracy.

    Args:
        label: Finds the right label of an example.
    """

    def result(state: Rows) -> Scores:
        rows: list[Judged] = list(state)
        names = ("accuracy_published", "macro_f1_published", "auc_published")
        if not rows:
            return dict.fromkeys(names)
        truth, given = labels(rows)
        filled = np.where(given == MISSING, FAILED, given)
        two = all(one.options == 2 for one in rows)
        area = area_under_curve(truth == 1, filled.astype(np.float64)) if two else None
        found = mean(hits(state)), hard_macro_f1(truth, filled), area
        return dict(zip(names, found, strict=True))

    def each(state: Rows) -> dict[str, list[float]]:
        return {"accuracy_published": hits(state)}

    return collect(choice_row(label), result, each, "accuracy_published")


def hard_macro_f1(truth: NDArray[np.int64], given: NDArray[np.int64]) -> float:
    """Average F1 over the classes that occur in the truth or among the answers, both shape [N]."""
    classes: Sequence[int] = np.union1d(truth, given).tolist()
    scores = [
        2
        * float(((truth == one) & (given == one)).sum())
        / float((truth == one).sum() + (given == one).sum())
        for one in classes
    ]
    return sum(scores) / len(scores)
