"""What federation brings: ranks over tasks, and each client's gain against training alone.

Everything here is arithmetic on what a run wrote down; a figure that is missing makes no rank and no gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedloom.report.paired_tests import ROUNDING, Fares, fares_of
from fedloom.report.run_results import Json, at, number
from fedloom.tasks.score_answers import HEADLINES

ByTask = Mapping[str, float | None]


def tasks_in(result: Json) -> list[str]:
    """Return the tasks of a run, in their order; none where they were not recorded."""
    return list(
        dict.fromkeys(task for scores in result["scores"].values() for task in at(scores, "tasks") or {})
    )


def task_scores(result: Json) -> dict[str, dict[str, float | None]]:
    """Return method → task → headline score, for all tasks of a run and in their order."""
    tasks = tasks_in(result)
    return {
        method: {task: number(scores, "tasks", task, HEADLINES.get(task, "accuracy")) for task in tasks}
        for method, scores in result["scores"].items()
    }


def main_score(result: Json) -> str:
    """Return the name of the score that stands for a run: its only task's headline, or the accuracy."""
    tasks = tasks_in(result)
    return HEADLINES.get(tasks[0], "accuracy") if len(tasks) == 1 else "accuracy"


def mean_ranks(scores: Mapping[str, ByTask]) -> dict[str, float | None]:
    """Rank methods within each task, 1 for the best, and average the ranks over tasks.

    Ranks do not depend on the scale of a score, so tasks with different scores count alike. Equal scores
    share the mean of their ranks. A method that lacks the score of a task gets no mean rank, and takes no
    rank from others.

    Args:
        scores: Method → task → score, larger is better.

    Example:
        >>> mean_ranks({"a": {"vqa": 0.9, "caption": 1.0}, "b": {"vqa": 0.5, "caption": 2.0}, "c": {}})
        {'a': 1.5, 'b': 1.5, 'c': None}
    """
    tasks = dict.fromkeys(task for found in scores.values() for task in found)
    whole = {
        method: [value for task in tasks if (value := found.get(task)) is not None]
        for method, found in scores.items()
    }
    ranked = {method: values for method, values in whole.items() if tasks and len(values) == len(tasks)}
    columns = list(zip(*ranked.values(), strict=True))
    return {
        method: fmean(_rank(value, column) for value, column in zip(ranked[method], columns, strict=True))
        if method in ranked
        else None
        for method in scores
    }


def _rank(value: float, column: Sequence[float]) -> float:
    better, equal = sum(other > value for other in column), sum(other == value for other in column)
    return better + (equal + 1) / 2


def relative_gain(score: float | None, alone: float | None) -> float | None:
    """Return (score − alone) / alone; None where either is missing or training alone reached nothing.

    Scores that differ by no more than floating-point numbers add are equal: their gain is 0.

    Example:
        >>> relative_gain(0.75, 0.5), relative_gain(0.5, 0.0), relative_gain(0.1 + 0.2, 0.3)
        (0.5, None, 0.0)
    """
    if score is None or not alone:
        return None
    return (score - alone) / alone if abs(score - alone) > ROUNDING else 0.0


def client_scores(method: Json) -> list[dict[str, float | None]]:
    """Return each client's scores on data like its own, task → score; the task is "" where it was not recorded."""
    found = at(method, "client_tasks")
    if isinstance(found, list):
        return [{task: number(one, task) for task in one or {}} for one in found]
    plain = at(method, "clients")
    count = len(plain) if isinstance(plain, list) else 0
    return [{"": number(plain, client)} for client in range(count)]


def client_gains(method: Json, local: Json) -> list[float | None]:
    """Return each client's gain over its own model, on data like its own.

    A client with several tasks gets the mean of its relative gains, so that no task's scale outweighs
    another's. A task in which training alone reaches nothing has no relative gain and is left out; None
    where no task is left.

    Args:
        method: The scores of a method, with "client_tasks".
        local: The scores of `local`, likewise.
    """
    return [_gain(shared, own) for shared, own in _beside(method, local)]


ByClient = Mapping[str, float | None]


def _beside(method: Json, local: Json) -> list[tuple[ByClient, ByClient]]:
    return list(zip(client_scores(method), client_scores(local), strict=False))


def _gain(shared: ByClient, own: ByClient) -> float | None:
    found = [relative_gain(shared.get(task), alone) for task, alone in own.items()]
    known = [gain for gain in found if gain is not None]
    gain = fmean(known) if known else None
    return gain if gain is None or abs(gain) > ROUNDING else 0.0


def fares(method: Json, other: Json) -> Fares:
    """Count the clients that a method serves better, as well, and worse than another one.

    The sign of a client's gain decides. Where the other method reaches nothing in any of the client's tasks, there is
    no relative gain, and any score above nothing is better.
    """
    return fares_of(_difference(ours, theirs) for ours, theirs in _beside(method, other))


def _difference(ours: ByClient, theirs: ByClient) -> float | None:
    gain = _gain(ours, theirs)
    if gain is not None:
        return gain
    reached = [value for task in theirs if (value := ours.get(task)) is not None and theirs[task] is not None]
    return max(reached, default=None)


def worst_client(method: Json, local: Json) -> dict[str, Any] | None:
    """Return the client that loses most, or gains least, against training alone; None where no gain is known.

    Returns:
        "client" (its number), "gain" (relative), and "score" and "alone" (on data like its own; None for a client with
        several tasks).
    """
    known = [(gain, client) for client, gain in enumerate(client_gains(method, local)) if gain is not None]
    if not known:
        return None
    gain, client = min(known)
    shared, own = _beside(method, local)[client]
    score, alone = (next(iter(one.values())) if len(own) == 1 else None for one in (shared, own))
    return {"client": client, "gain": gain, "score": score, "alone": alone}


def alone_in(scores: Mapping[str, Any]) -> str | None:
    """Return the name of the method by which each client trains alone: `local`, else `local` with a modifier."""
    names = [method for method in scores if method.split("+")[0] == "local"]
    return "local" if "local" in names else next(iter(names), None)


def comparison(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the methods of a run, for `result.json`.

    Returns:
        "headlines" (task → name of its score), "tasks" (method → task → score), "mean_rank" (method →
        number), and, empty without `local`, "gain" (method → each client's relative gain over `local`) and "clients"
        (method → how many clients it serves "better", "same" and "worse" than their own models on data like their
        own, of how many that is "unknown", and which one it serves "worst").
    """
    by_task = task_scores({"scores": scores})
    tasks = next(iter(by_task.values()), {})
    name = alone_in(scores)
    local = scores[name] if name else None
    others = [method for method in scores if method != name] if local else []
    return {
        "headlines": {task: HEADLINES.get(task, "accuracy") for task in tasks},
        "tasks": by_task,
        "mean_rank": mean_ranks(by_task),
        "gain": {method: client_gains(scores[method], local) for method in others if local},
        "clients": {
            method: {**fares(scores[method], local)._asdict(), "worst": worst_client(scores[method], local)}
            for method in others
            if local
        },
    }
