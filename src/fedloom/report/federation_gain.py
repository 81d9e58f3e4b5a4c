"""Comparison of methods: mean ranks over tasks, and each client's gain over training alone.

A missing score gives neither a rank nor a gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from fedloom.report.run_results import Json, at, number
from fedloom.report.significance import ROUNDING, ClientCounts, count_by_sign
from fedloom.tasks.score_answers import HEADLINES

ByTask = Mapping[str, float | None]

FINETUNE = "finetune"
"""The part by which clients train their own models further at the end."""


def tasks_in(result: Json) -> list[str]:
    """Return the tasks of a run, in order; none if they were not recorded."""
    return list(
        dict.fromkeys(task for scores in result["scores"].values() for task in at(scores, "tasks") or {})
    )


def task_scores(result: Json) -> dict[str, dict[str, float | None]]:
    """Return method → task → headline score, for all tasks of a run in order."""
    tasks = tasks_in(result)
    return {
        method: {task: number(scores, "tasks", task, HEADLINES.get(task, "accuracy")) for task in tasks}
        for method, scores in result["scores"].items()
    }


def main_score(result: Json) -> str:
    """Return the name of a run's main score: the headline score of its only task, else the accuracy."""
    tasks = tasks_in(result)
    return HEADLINES.get(tasks[0], "accuracy") if len(tasks) == 1 else "accuracy"


def mean_ranks(scores: Mapping[str, ByTask]) -> dict[str, float | None]:
    """Rank methods within each task, 1 for the best, and average the ranks over tasks.

    Ranks do not depend on the scale of a score, so all tasks have the same weight. Equal scores share the mean of their
    ranks. A method that lacks the score of a task gets no mean rank, and the others are ranked without it.

    Args:
        scores: Method → task → score, larger is better.

    Example:
        >>> mean_ranks({"a": {"vqa": 0.9, "caption": 1.0}, "b": {"vqa": 0.5, "caption": 2.0}, "c": {}})
        {'a': 1.5, 'b': 1.5, 'c': None}
    """
    tasks = dict.fromkeys(task for by_task in scores.values() for task in by_task)
    complete = {
        method: [value for task in tasks if (value := by_task.get(task)) is not None]
        for method, by_task in scores.items()
    }
    ranked = {method: values for method, values in complete.items() if tasks and len(values) == len(tasks)}
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
    """Return (score − alone) / alone; None if either is missing or the score of training alone is zero.

    The gain is 0 if the scores differ by no more than the rounding of floating-point numbers.

    Example:
        >>> relative_gain(0.75, 0.5), relative_gain(0.5, 0.0), relative_gain(0.1 + 0.2, 0.3)
        (0.5, None, 0.0)
    """
    if score is None or not alone:
        return None
    return (score - alone) / alone if abs(score - alone) > ROUNDING else 0.0


def client_scores(method: Json) -> list[dict[str, float | None]]:
    """Return task → score for each client, on data like its own; the task is "" if it was not recorded."""
    by_task = at(method, "client_tasks")
    if isinstance(by_task, list):
        return [{task: number(entry, task) for task in entry or {}} for entry in by_task]
    clients = at(method, "clients")
    count = len(clients) if isinstance(clients, list) else 0
    return [{"": number(clients, client)} for client in range(count)]


def client_gains(method: Json, local: Json) -> list[float | None]:
    """Return each client's gain over its own model, on data like its own.

    A client with several tasks gets the mean of its relative gains, so that the scales of the scores do not matter. A
    task with a score of zero for training alone has no relative gain and is left out. The gain is None if no task
    remains.

    Args:
        method: The scores of a method, with "client_tasks".
        local: The scores of `local`, with "client_tasks".
    """
    return [_gain(shared, own) for shared, own in _pair_clients(method, local)]


def _pair_clients(method: Json, local: Json) -> list[tuple[ByTask, ByTask]]:
    return list(zip(client_scores(method), client_scores(local), strict=False))


def _gain(shared: ByTask, own: ByTask) -> float | None:
    gains = [relative_gain(shared.get(task), alone) for task, alone in own.items()]
    known = [gain for gain in gains if gain is not None]
    gain = fmean(known) if known else None
    return gain if gain is None or abs(gain) > ROUNDING else 0.0


def count_clients(method: Json, other: Json) -> ClientCounts:
    """Count the clients that are better off, equally well off, and worse off with a method than with another one.

    The difference of a client's scores decides; if it is below `SAME`, the client is equally well off. A client with
    several tasks is judged by its mean relative gain; if the other method scores zero in all of them, any score above zero
    is better.
    """
    return count_by_sign(_difference(ours, theirs) for ours, theirs in _pair_clients(method, other))


def _difference(ours: ByTask, theirs: ByTask) -> float | None:
    if len(theirs) == 1:
        ((task, alone),) = theirs.items()
        score = ours.get(task)
        return None if score is None or alone is None else score - alone
    gain = _gain(ours, theirs)
    if gain is not None:
        return gain
    scores = [value for task in theirs if (value := ours.get(task)) is not None and theirs[task] is not None]
    return max(scores, default=None)


def worst_client(method: Json, local: Json) -> dict[str, Any] | None:
    """Return the client with the smallest gain over training alone; None if no gain is known.

    Returns:
        "client" (its number), "gain" (relative), and "score" and "alone" (on data like its own; None for a client with
        several tasks).
    """
    known = [(gain, client) for client, gain in enumerate(client_gains(method, local)) if gain is not None]
    if not known:
        return None
    gain, client = min(known)
    shared, own = _pair_clients(method, local)[client]
    score, alone = (next(iter(scores.values())) if len(own) == 1 else None for scores in (shared, own))
    return {"client": client, "gain": gain, "score": score, "alone": alone}


def local_method(scores: Mapping[str, Any]) -> str | None:
    """Return the method by which each client trains alone: `local`, else `local` with a part; None if there is none."""
    names = [method for method in scores if method.split("+")[0] == "local"]
    return "local" if "local" in names else next(iter(names), None)


def baseline_of(method: str, scores: Iterable[str]) -> str | None:
    """Return the method with whose models clients compare those of a method: training alone, fine-tuned if the method is.

    A method with fine-tuning trains its clients longer, so it is compared with fine-tuned training alone.

    Args:
        method: The method.
        scores: All methods of the run.

    Returns:
        The baseline; None for training alone itself, and in a run without it.

    Example:
        >>> baseline_of("fedavg+finetune", ["local", "local+finetune"]), baseline_of("fedavg", ["local", "local+finetune"])
        ('local+finetune', 'local')
    """
    names = list(scores)
    alone, parts = local_method(dict.fromkeys(names)), method.split("+")
    if alone == method:
        return None
    tuned = (name for name in names if name.split("+")[0] == "local" and FINETUNE in name.split("+")[1:])
    return next(tuned, alone) if FINETUNE in parts[1:] and parts[0] != "local" else alone


def compare_methods(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the methods of a run, for `result.json`.

    Returns:
        "headlines" (task → name of its score), "tasks" (method → task → score), "mean_rank" (method →
        number), and, empty without `local`, "gain" (method → each client's relative gain over its baseline, see `baseline_of`)
        and "clients" (method → the numbers of clients that are "better" off, the "same" and "worse" off than with their own
        models, on data like their own; the number of clients for which that is "unknown"; and the "worst" client). Methods
        whose baseline is not plain `local` have it under "against".
    """
    by_task = task_scores({"scores": scores})
    tasks = next(iter(by_task.values()), {})
    pairs = {method: name for method in scores if (name := baseline_of(method, scores)) is not None}
    against = {method: name for method, name in pairs.items() if name != local_method(scores)}
    return {
        "headlines": {task: HEADLINES.get(task, "accuracy") for task in tasks},
        "tasks": by_task,
        "mean_rank": mean_ranks(by_task),
        "gain": {method: client_gains(scores[method], scores[name]) for method, name in pairs.items()},
        "clients": {
            method: {
                **count_clients(scores[method], scores[name])._asdict(),
                "worst": worst_client(scores[method], scores[name]),
            }
            for method, name in pairs.items()
        },
        **({"against": against} if against else {}),
    }
