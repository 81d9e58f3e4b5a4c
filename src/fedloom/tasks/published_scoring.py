"""Read and score replies as the published code of the two papers does, for comparison with their tables.

References:
    B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv 2411.14717v2,
    and "FedVLMBench", arXiv 2506.09638; as far as their public code computes the printed scores.

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
    correct_answers,
    graded,
    labels,
    mean,
)
from fedloom.tasks.task import Answer, Metric, Rows, Scores, clean_text
from fedloom.types import Example

FAILED = 2
"""The class that FedMLLM's code assigns to a reply that it cannot read, whatever the options are."""

LETTERS = 7
"""Minimum number of letters that FedMLLM's code searches: A to G for the two options of Hateful-Memes, A to H for
the eight of CrisisMMD.
"""

SENTENCE = re.compile(r".*?\bis\b", re.DOTALL)
"""Matches a text with the word "is", such as "The organ is the liver."."""


def first_letter(reply: str, options: int) -> int:
    """Return the label that FedMLLM's code reads from a reply.

    The first capital from A to G (or to the letter of the last option, if that is later) decides, even
    inside a word. It is not an answer if there is no such option, or if a space separates it from a bracket
    next to it. The words "answer" and "Answer" are removed first.

    Args:
        reply: The reply of the model.
        options: Number of options, 1 to 26.

    Returns:
        The label of an option, or `FAILED`.

    Example:
        >>> first_letter("Answer: (B) hateful", 2), first_letter("Clearly (A)", 2), first_letter("( A )", 2)
        (1, 2, 2)
    """
    letters = ascii_uppercase[: max(LETTERS, options)]
    text = reply.replace("answer", "").replace("Answer", "")
    place = next((place for place, letter in enumerate(text) if letter in letters), None)
    if place is None:
        return FAILED
    before, after = text[:place], text[place + 1 :]
    opening = before[len(before.rstrip("( ")) :].lstrip(" ")
    closing = after[: len(after) - len(after.lstrip(") "))].rstrip(" ")
    label = letters.index(text[place])
    return label if label < options and " " not in opening + closing else FAILED


def compared_reply(reply: str, answer: str, frame: re.Pattern[str] = SENTENCE) -> str | None:
    """Return the part of a reply that FedVLMBench's code compares: what follows its first "is", even inside a word.

    There, right answers are sentences: "The answer to the question is liver." The code skips one character
    after "is" and removes the last one of the reply, which is a period. Here, answers usually have no such frame.
    Then the whole reply is compared, unless it has a frame itself.

    Args:
        reply: The reply of the model.
        answer: The right answer.
        frame: Matches a text that has a frame.

    Returns:
        None for a reply without "is" if the right answer has a frame, and for an empty reply.

    Example:
        >>> compared_reply("The organ is liver.", "The organ is lung."), compared_reply("a liver", "The organ is lung.")
        ('liver', None)
        >>> compared_reply("a liver", "lung")
        'a liver'
    """
    reply = reply.strip()
    if not (frame.match(answer) or frame.match(reply)):
        return reply.removesuffix(".") or None
    place = reply.find("is")
    return None if place < 0 else reply[place + 3 :].removesuffix(".")


def compared_answer(answer: str, frame: re.Pattern[str] = SENTENCE) -> str:
    """Return the part of a right answer that FedVLMBench's code compares; see `compared_reply`.

    Example:
        >>> compared_answer("The variant is 707-320."), compared_answer("707-320")
        ('707-320', '707-320')
    """
    answer = clean_text(answer)
    return compared_reply(answer, answer, frame) or answer


def same_text(given: str, right: str) -> bool:
    """Return whether two answers are equal, as in the scripts of FGVC-Aircraft (FedVLMBench)."""
    return given == right


def same_start(given: str, right: str) -> bool:
    """Return whether the first characters of two answers are equal, as in the multi-task scripts.

    Example:
        >>> same_start("lung", "liver"), same_start("Lung", "liver")
        (True, False)
    """
    return given[:1] == right[:1] != " "


SameAnswer = Callable[[str, str], bool]
"""(compared part of the reply, of the right answer) → whether FedVLMBench's code counts the reply as right."""


def published_answers(same: SameAnswer) -> Metric:
    """Return the metric of free answers in FedVLMBench's code: the share of right ones."""

    def right(example: Example, answer: Answer) -> float:
        return float(same(str(answer), compared_answer(example.answer)))

    return graded("accuracy", "_published", accuracy=right)


def published_classification(label: Callable[[Example], int]) -> Metric:
    """Return the metric of multiple choice in FedMLLM's code, in which an unparsed reply is class 2.

    auc_published is the area under the curve of *hard* labels, so that an unparsed reply ranks
    above the positive class 1; it is defined for two options. Without such replies it is the balanced accuracy.

    Args:
        label: Returns the right label of an example.
    """

    def result(state: Rows) -> Scores:
        rows: list[ChoiceAnswer] = list(state)
        names = ("accuracy_published", "macro_f1_published", "auc_published")
        if not rows:
            return dict.fromkeys(names)
        truth, given = labels(rows)
        filled = np.where(given == MISSING, FAILED, given)
        two = all(row.options == 2 for row in rows)
        area = area_under_curve(truth == 1, filled.astype(np.float64)) if two else None
        values = mean(correct_answers(state)), hard_macro_f1(truth, filled), area
        return dict(zip(names, values, strict=True))

    def each(state: Rows) -> dict[str, list[float]]:
        return {"accuracy_published": correct_answers(state)}

    return collect(choice_row(label), result, each, "accuracy_published")


def hard_macro_f1(truth: NDArray[np.int64], given: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that occur in the truth or among the answers, both shape [N]."""
    classes: Sequence[int] = np.union1d(truth, given).tolist()
    scores = [
        2
        * float(((truth == label) & (given == label)).sum())
        / float((truth == label).sum() + (given == label).sum())
        for label in classes
    ]
    return sum(scores) / len(scores)
