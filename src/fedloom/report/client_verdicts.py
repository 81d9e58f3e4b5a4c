"""Verdicts on a method for each client: whether it is better off than with the model that it trained alone, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import NamedTuple

from fedloom.report.confidence_intervals import difference_interval, difference_p, holm
from fedloom.report.federation_gain import baseline_of, client_scores, local_method, tasks_in
from fedloom.report.run_results import Json, at, number
from fedloom.report.significance import SAME, ClientCounts, count_by_sign
from fedloom.tasks.score_answers import HEADLINES

LEVEL = 0.05
UNBOUNDED = frozenset({"cider"})
"""Scores that may exceed 1, to which intervals of shares do not apply."""


class Gain(NamedTuple):
    """A client's score with a method and alone, on data like its own.

    Attributes:
        client: The number of the client.
        score: With the method, a fraction.
        alone: With the model that it trained alone.
        questions: Number of independent test questions behind either score; None if unknown.
        interval: 95 % confidence interval of the gain; None if unknown.
        p: The p-value of the gain; None if unknown.
    """

    client: int
    score: float
    alone: float
    questions: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def points(self) -> float:
        """The gain, a fraction; 100 times it is in points."""
        return self.score - self.alone


@dataclass(frozen=True)
class Verdict:
    """Verdicts on one method in one task.

    Attributes:
        method: The method.
        alone: The method by which clients train alone, with which it is compared; see `baseline_of`.
        task: The task, "" if it was not recorded.
        gains: The clients that can be compared, in their order; at least one.
        counts: Clients that are better off, the same and worse off; the same is a difference below `SAME`.
        interval: 95 % confidence interval of the mean gain; None if unknown.
        gained: Clients whose gain is significant after Holm's correction over the clients of this method; None if unknown.
        lost: Clients whose loss is significant in the same way; None if unknown.
    """

    method: str
    alone: str
    task: str
    gains: tuple[Gain, ...]
    counts: ClientCounts
    interval: tuple[float, float] | None
    gained: tuple[int, ...] | None
    lost: tuple[int, ...] | None

    @property
    def mean(self) -> float:
        """The mean gain."""
        return fmean(gain.points for gain in self.gains)

    @property
    def bottom_fifth(self) -> float:
        """The mean gain of the fifth of clients that gain least; see `bottom_fifth`."""
        return bottom_fifth([gain.points for gain in self.gains])

    @property
    def worst(self) -> Gain:
        """The client that gains least or loses most; of equal ones the first."""
        return min(self.gains, key=lambda gain: (gain.points, gain.client))


def bottom_fifth(gains: Sequence[float]) -> float:
    """Return the mean of the lowest fifth of at least one gain; a fraction of a client counts as a whole one.

    Example:
        >>> bottom_fifth([0.5, -0.25, 0.5, 0.5, 0.5]), bottom_fifth([3.0, 1.0, 2.0, 9.0, 9.0, 9.0])
        (-0.25, 1.5)
    """
    return fmean(sorted(gains)[: ceil(len(gains) / 5)])


def own_scores(scores: Json, task: str) -> dict[int, float]:
    """Return client → score with a method on data like its own, for the clients that have the task."""
    by_client = enumerate(client_scores(scores))
    return {client: value for client, by_task in by_client if (value := by_task.get(task)) is not None}


def own_mean(scores: Json, task: str | None = None) -> float | None:
    """Return the mean over clients of their scores on data like their own; None without any.

    Args:
        scores: The scores of a method.
        task: A task; None for the main score of each client.
    """
    if task is not None:
        values = list(own_scores(scores, task).values())
    elif isinstance(clients := scores.get("clients"), list):
        values = [value for k in range(len(clients)) if (value := number(clients, k)) is not None]
    else:
        single = (by_task for by_task in client_scores(scores) if len(by_task) == 1)
        values = [value for by_task in single for value in by_task.values() if value is not None]
    return fmean(values) if values else None


def client_tasks(result: Json) -> list[str]:
    """Return the tasks for which clients have scores on data like their own; "" if tasks were not recorded."""
    present = {task for scores in result["scores"].values() for one in client_scores(scores) for task in one}
    return [task for task in [*tasks_in(result), ""] if task in present]


def verdicts(result: Json, task: str) -> list[Verdict]:
    """Return the verdicts on each method other than local training, in a task; none without local training."""
    scores = result["scores"]
    pairs = [(method, alone) for method in scores if (alone := baseline_of(method, scores)) is not None]
    found = [_verdict(result, method, alone, task) for method, alone in pairs]
    return [verdict for verdict in found if verdict is not None]


def verdict_on(result: Json, method: str) -> Verdict | None:
    """Return the verdict on a method in a run of one task; None without local training, or with several tasks."""
    tasks = client_tasks(result)
    if len(tasks) != 1:
        return None
    return next((verdict for verdict in verdicts(result, tasks[0]) if verdict.method == method), None)


def _verdict(result: Json, method: str, alone: str, task: str) -> Verdict | None:
    ours, theirs = (own_scores(result["scores"][name], task) for name in (method, alone))
    agreed = _agreement(result, method, alone)
    gains = tuple(_gain(result, agreed, task, k, ours[k], theirs[k]) for k in ours if k in theirs)
    if not gains:
        return None
    unknown = len({*ours, *theirs}) - len(gains)
    counts = count_by_sign([*(gain.points for gain in gains), *[None] * unknown], SAME)
    questions = number(result, "independent_questions", "own", task)
    shares = fmean(gain.score for gain in gains), fmean(gain.alone for gain in gains)
    interval = None
    if questions and _are_shares(task, *shares):
        correlation = number(agreed, "own", task) or 0.0
        interval = difference_interval(*shares, questions, correlation=correlation)
    known = [(gain, gain.p) for gain in gains if gain.p is not None]
    if not known:
        return Verdict(method, alone, task, gains, counts, interval, None, None)
    adjusted = zip(known, holm([p for _, p in known]), strict=True)
    clear = [gain for (gain, _), p in adjusted if p <= LEVEL]
    gained, lost = (
        tuple(gain.client for gain in clear if (gain.points > 0) == better) for better in (True, False)
    )
    return Verdict(method, alone, task, gains, counts, interval, gained, lost)


def _agreement(result: Json, method: str, alone: str) -> Json | None:
    """Return how a method's answers agree with those of its baseline; None if that is unknown.

    Results of earlier versions have the agreement with plain training alone only.
    """
    agreed = at(result, "agreement", method)
    other = at(agreed, "alone") or local_method(result["scores"])
    return agreed if other == alone else None


def _gain(result: Json, agreed: Json | None, task: str, client: int, score: float, alone: float) -> Gain:
    questions = number(result, "independent_questions", "clients", client, task)
    if not questions or not _are_shares(task, score, alone):
        return Gain(client, score, alone)
    correlation = number(agreed, "clients", client, task) or 0.0
    interval = difference_interval(score, alone, questions, correlation=correlation)
    p = difference_p(score, alone, questions, correlation)
    return Gain(client, score, alone, questions, interval, p)


def _are_shares(task: str, *scores: float) -> bool:
    return HEADLINES.get(task, "accuracy") not in UNBOUNDED and all(0 <= score <= 1 for score in scores)
