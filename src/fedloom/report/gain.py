"""What federation brings: ranks over tasks, and each client's gain against training alone.

Everything here is arithmetic on what a run wrote down; a figure that is missing makes no rank and no gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedloom.report.records import Json, at, number
from fedloom.tasks.scoring import HEADLINES

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

    Example:
        >>> relative_gain(0.75, 0.5), relative_gain(0.5, 0.0)
        (0.5, None)
    """
    return None if score is None or not alone else (score - alone) / alone


def client_gains(method: Json, local: Json) -> list[float | None]:
    """Return each client's gain over its own model, on data like its own.

    A client with several tasks gets the mean of its relative gains, so that no task's scale outweighs
    another's. A task in which training alone reaches nothing has no relative gain and is left out; None
    where no task is left.

    Args:
        method: The scores of a method, with "client_tasks".
        local: The scores of `local`, likewise.
    """
    ours, alone = at(method, "client_tasks") or [], at(local, "client_tasks") or []
    gains: list[float | None] = []
    for shared, own in zip(ours, alone, strict=False):
        found = [relative_gain(number(shared, task), number(own, task)) for task in own]
        known = [gain for gain in found if gain is not None]
        gains.append(fmean(known) if known else None)
    return gains


def comparison(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the methods of a run, for `result.json`.

    Returns:
        "headlines" (task → name of its score), "tasks" (method → task → score), "mean_rank" (method →
        number), and "gain" (method → each client's relative gain over `local`; empty without `local`).
    """
    by_task = task_scores({"scores": scores})
    tasks = next(iter(by_task.values()), {})
    local = scores.get("local")
    others = [method for method in scores if method != "local"] if local else []
    return {
        "headlines": {task: HEADLINES.get(task, "accuracy") for task in tasks},
        "tasks": by_task,
        "mean_rank": mean_ranks(by_task),
        "gain": {method: client_gains(scores[method], local) for method in others if local},
    }
