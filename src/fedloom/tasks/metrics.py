"""Metrics as monoids: add answers, merge states in any grouping, compute the scores at the end.

A state holds one row for each answer, so that merging is exactly associative, without rounding.
An unparsed answer is never right and never left out.

Shape legend: N = number of answers, C = number of options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import fsum
from operator import index
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fedloom.tasks.task import UNPARSED, Answer, Metric, Rows, Scores, Unparsed
from fedloom.types import Example

Row = Callable[[Example, Answer | Unparsed, NDArray[np.floating] | None], Any]
MISSING = -1
"""The prediction of an unparsed answer in `macro_f1`."""


def collect(
    row: Row,
    result: Callable[[Rows], Scores],
    each: Callable[[Rows], dict[str, list[float]]],
    headline: str = "accuracy",
) -> Metric:
    """Return a metric that keeps one row for each answer; see `Metric` for the other arguments."""

    def add(
        state: Rows, example: Example, answer: Answer | Unparsed, scores: NDArray[np.floating] | None
    ) -> Rows:
        return state.plus([row(example, answer, scores)])

    return Metric(Rows(), add, Rows.plus, result, each, headline)


def graded_row(*grades: Callable[[Example, Answer], float]) -> Row:
    """Return the function that makes a row of grades of an answer, None if it is unparsed."""

    def row(
        example: Example, answer: Answer | Unparsed, scores: NDArray[np.floating] | None
    ) -> tuple[float, ...] | None:
        del scores
        return None if answer is UNPARSED else tuple(grade(example, answer) for grade in grades)

    return row


def graded(headline: str, suffix: str = "", **grades: Callable[[Example, Answer], float]) -> Metric:
    """Return a metric of mean grades, each a function (example, answer) → 0..1; an unparsed answer gets 0.

    Args:
        headline: The name of the grade that is the headline score.
        suffix: Suffix of every name.
        grades: Name → grade.
    """

    def each(state: Rows) -> dict[str, list[float]]:
        rows = [(0.0,) * len(grades) if row is None else row for row in state]
        return {name + suffix: [row[place] for row in rows] for place, name in enumerate(grades)}

    def result(state: Rows) -> Scores:
        means = {name: mean(values) for name, values in each(state).items()}
        return {**means, f"unparsed{suffix}": mean([float(row is None) for row in state])}

    return collect(graded_row(*grades.values()), result, each, headline + suffix)


class ChoiceAnswer(NamedTuple):
    """A multiple-choice answer: right label, given label or `MISSING`, number of options, probabilities."""

    label: int
    prediction: int
    options: int
    scores: tuple[float, ...] | None


def classification(label: Callable[[Example], int]) -> Metric:
    """Return the metric of multiple choice: accuracy, macro_f1, auc, unparsed.

    Args:
        label: Returns the right label of an example.
    """

    def result(state: Rows) -> Scores:
        rows: list[ChoiceAnswer] = list(state)
        if not rows:
            return dict.fromkeys(("accuracy", "macro_f1", "auc", "unparsed"))
        truth, given = labels(rows)
        return {
            "accuracy": float(np.mean(truth == given)),
            "macro_f1": macro_f1(truth, given, max(row.options for row in rows)),
            "auc": _auc_of(rows, truth),
            "unparsed": float(np.mean(given == MISSING)),
        }

    return collect(choice_row(label), result, lambda state: {"accuracy": correct_answers(state)})


def choice_row(label: Callable[[Example], int]) -> Row:
    """Return the function that makes a row of a multiple-choice answer."""

    def row(example: Example, answer: Answer | Unparsed, scores: NDArray[np.floating] | None) -> ChoiceAnswer:
        prediction = MISSING if answer is UNPARSED else index(cast(int, answer))
        kept = None if scores is None else tuple(float(score) for score in scores)
        return ChoiceAnswer(label(example), prediction, len(example.options), kept)

    return row


def correct_answers(state: Rows) -> list[float]:
    """Return 1 for every right multiple-choice answer and 0 for every other."""
    return [float(row.label == row.prediction) for row in state]


def labels(rows: Sequence[ChoiceAnswer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return right and given labels, shape [N] each."""
    return np.array([row.label for row in rows]), np.array([row.prediction for row in rows])


def _auc_of(rows: Sequence[ChoiceAnswer], truth: NDArray[np.int64]) -> float | None:
    scores = [row.scores for row in rows]
    if any(row is None or len(row) != len(scores[0] or ()) for row in scores):
        return None
    return auc(truth, np.array(scores, dtype=np.float64))


def macro_f1(truth: NDArray[np.int64], given: NDArray[np.int64], options: int) -> float:
    """Return the mean F1 of the classes that occur in the truth or among the answers.

    Without unparsed answers this is scikit-learn's `f1_score(average="macro")`. An unparsed answer (−1) is
    not a class of its own; it counts as if it named every wrong option at once, which is scikit-learn's score
    of the one-hot matrices. Any milder rule would reward silence: if a wrong answer is left out, the precision of
    its class rises, and the average may rise too.

    Args:
        truth: Right labels, shape [N], N > 0.
        given: Answers, shape [N]; −1 where unparsed.
        options: Number of options C.
    """
    silent = given == MISSING
    classes = np.arange(options) if silent.any() else np.union1d(truth, given)
    is_true = truth[:, None] == classes  # [N, C]
    is_given = np.where(silent[:, None], ~is_true, given[:, None] == classes)  # [N, C]
    right = (is_true & is_given).sum(axis=0)  # [C]
    named = is_true.sum(axis=0) + is_given.sum(axis=0)  # [C], none of them 0
    return float(np.mean(2 * right / named))


def auc(truth: NDArray[np.int64], scores: NDArray[np.float64]) -> float | None:
    """Return the mean of the one-vs-rest areas under the ROC curve; ties count half.

    AUC_c = (Σ ranks of class c − n(n + 1)/2) / (n · m), with midranks of the scores of class c, n examples
    of the class and m others (Mann–Whitney). With two options the result is the area of option 1.

    Args:
        truth: Right labels, shape [N].
        scores: Probabilities of the options, shape [N, C].

    Returns:
        The mean over classes that have both examples and others; None if there is no such class or a
        score is not finite.

    Example:
        >>> auc(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]]))
        0.75
    """
    if not np.isfinite(scores).all():
        return None
    classes = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    areas = [area_under_curve(truth == label, scores[:, label]) for label in classes]
    return mean([area for area in areas if area is not None])


def area_under_curve(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve, shapes [N]; None if either class has no examples."""
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return None
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(ties) - (ties - 1) / 2  # the middle of each run of equal scores, counted from 1
    return float((ranks[place][positive].sum() - count * (count + 1) / 2) / (count * others))


def token_f1(given: str, right: str) -> float:
    """Return the F1 of two texts as bags of words; 1 if both are empty.

    Reference: P. Rajpurkar, J. Zhang, K. Lopyrev, P. Liang, "SQuAD: 100,000+ Questions for Machine
    Comprehension of Text", arXiv 1606.05250v3, Section 5.

    Example:
        >>> token_f1("a big red circle", "red circle")
        0.6666666666666666
    """
    ours, theirs = given.split(), right.split()
    if not ours and not theirs:
        return 1.0
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None for no values."""
    return fsum(values) / len(values) if values else None
