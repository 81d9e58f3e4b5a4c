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

from fedloom.tasks.metrics import (
    MISSING,
    ChoiceAnswer,
    area_under_curve,
    choice_row,
    collect,
    graded,
    hits,
    labels,
    mean,
)
from fedloom.tasks.task import Answer, Metric, Rows, Scores, clean_text
from fedloom.types import Example

FAILED = 2
"""The class that FedMLLM's code puts down for a reply that it cannot read, whatever the options are."""

LETTERS = 7
"""How many letters FedMLLM's code looks for at least: A to G for the two options of Hateful-Memes, A to H for
the eight of CrisisMMD.
"""

SENTENCE = re.compile(r".*?\bis\b", re.DOTALL)
"""Matches a text that has the word "is", such as "The organ is the liver."."""


def first_letter(reply: str, options: int) -> int:
    """Return the label that FedMLLM's code reads from a reply.

    The first capital from A to G (or to the letter of the last option, if that is further) decides, also one
    inside a word. It is no answer where there is no such option, or where a space parts it from a bracket
    beside it. The words "answer" and "Answer" are left out before.

    Args:
        reply: What the model said.
        options: Number of options, 1 to 26.

    Returns:
        The label of an option, or `FAILED`.

    Example:
        >>> first_letter("Answer: (B) hateful", 2), first_letter("Clearly (A)", 2), first_letter("( A )", 2)
        (1, 2, 2)
    """
    letters = ascii_uppercase[: max(LETTERS, options)]
    rest = reply.replace("answer", "").replace("Answer", "")
    place = next((place for place, letter in enumerate(rest) if letter in letters), None)
    if place is None:
        return FAILED
    before, after = rest[:place], rest[place + 1 :]
    opening = before[len(before.rstrip("( ")) :].lstrip(" ")
    closing = after[: len(after) - len(after.lstrip(") "))].rstrip(" ")
    label = letters.index(rest[place])
    return label if label < options and " " not in opening + closing else FAILED


def heard(reply: str, answer: str, frame: re.Pattern[str] = SENTENCE) -> str | None:
    """Return what FedVLMBench's code compares of a reply: what follows its first "is", even inside a word.

    There, right answers are sentences: "The answer to the question is liver." The code skips one character
    after "is" and leaves out the last one of the reply, which is a full stop. Here, answers mostly come
    without such a frame. Then a reply stands for what follows the frame, unless it has one itself.

    Args:
        reply: What the model said.
        answer: The right answer.
        frame: Matches a text that has a frame.

    Returns:
        None for a reply without "is" where the right answer has a frame, and for an empty one.

    Example:
        >>> heard("The organ is liver.", "The organ is lung."), heard("a liver", "The organ is lung.")
        ('liver', None)
        >>> heard("a liver", "lung")
        'a liver'
    """
    reply = reply.strip()
    if not (frame.match(answer) or frame.match(reply)):
        return reply.removesuffix(".") or None
    place = reply.find("is")
    return None if place < 0 else reply[place + 3 :].removesuffix(".")


def stated(answer: str, frame: re.Pattern[str] = SENTENCE) -> str:
    """Return what FedVLMBench's code compares of a right answer; see `heard`.

    Example:
        >>> stated("The variant is 707-320."), stated("707-320")
        ('707-320', '707-320')
    """
    answer = clean_text(answer)
    return heard(answer, answer, frame) or answer


def same_text(given: str, right: str) -> bool:
    """Return whether two answers are the same to the scripts of FGVC-Aircraft (FedVLMBench)."""
    return given == right


def same_start(given: str, right: str) -> bool:
    """Return whether two answers are the same to the multi-task scripts: their first characters agree.

    Example:
        >>> same_start("lung", "liver"), same_start("Lung", "liver")
        (True, False)
    """
    return given[:1] == right[:1] != " "


Same = Callable[[str, str], bool]
"""(what was heard, what is right) → whether FedVLMBench's code counts it as right."""


def published_answers(same: Same) -> Metric:
    """Make the metric of free answers as FedVLMBench's code has it: the share that is the same."""

    def right(example: Example, answer: Answer) -> float:
        return float(same(str(answer), stated(example.answer)))

    return graded("accuracy", "_published", accuracy=right)


def published_classification(label: Callable[[Example], int]) -> Metric:
    """Make the metric of multiple choice as FedMLLM's code has it; an unparsed reply is class 2.

    auc_published is the area under the curve of *hard* labels, so that a reply that cannot be read ranks
    above the positive class 1; it is defined for two options. Without such replies it is balanced accuracy.

    Args:
        label: Finds the right label of an example.
    """

    def result(state: Rows) -> Scores:
        rows: list[ChoiceAnswer] = list(state)
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
