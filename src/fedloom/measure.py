"""Score a model as the report shows it: by modality slice, over all test examples, and for each client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.scenarios.plan import Plan, Share
from fedloom.tasks.base import Metric
from fedloom.tasks.scoring import HEADLINES, NO_METRICS, Judged, each, score, tasks_of
from fedloom.tasks.verdict import JUDGED_TASKS, Judge, judged_scores
from fedloom.types import Example, Presence, UserError

SLICES = {"both": Presence(True, True), "image": Presence(True, False), "text": Presence(False, True)}
"""What of its evidence a test example shows."""


def slices_of(examples: Sequence[Example]) -> list[str]:
    """List the slices a data set has, the fullest first: without text (or images) there is only one."""
    images = any(example.image is not None for example in examples)
    texts = any(example.text is not None for example in examples)
    return list(SLICES) if images and texts else ["image"] if images else ["text"]


def figures(
    train: Sequence[Example],
    test: Sequence[Example],
    plan: Plan,
    answers: Mapping[str, Judged],
    judge: Judge | None = None,
    metrics: Mapping[str, Metric] = NO_METRICS,
) -> dict[str, Any]:
    """Gather the scores of one model: the fullest slice on top, every slice, and every client.

    Args:
        train: Training examples, which the plan divides.
        test: Test examples.
        plan: Who holds what.
        answers: Judged answers to `test` by slice, the fullest first.
        judge: Also asked about free answers, on the fullest slice; None asks nobody.
        metrics: Name → metric of a plug-in; see `score`.

    Returns:
        What `score` returns, and under "clients" a number for each client: the headline of the only task,
        or the accuracy where there are several. Under "client_tasks" the headline of each of its tasks.
    """
    scores = {name: score(test, judged, metrics) for name, judged in answers.items()}
    if judge is not None:
        full = next(iter(scores))
        scores[full] = with_verdicts(judge, test, answers[full], scores[full])
    headlines = {name: each(test, judged, headline=True) for name, judged in answers.items()}
    tasks = tasks_of(test)
    by_task = [
        {
            task: expected_score(share, train, test, headlines, task)
            for task in tasks_of([train[index] for index in share.indices])
        }
        for share in plan.clients
    ]
    if len(tasks) > 1:
        shared = {name: each(test, judged, headline=False) for name, judged in answers.items()}
        clients = [expected_score(share, train, test, shared) for share in plan.clients]
    else:
        clients = [next(iter(found.values()), None) for found in by_task]
    return {
        **scores[next(iter(scores))],
        "slices": scores,
        "clients": clients,
        "client_tasks": by_task,
    }


def at_sites(told: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """Gather what sites say of one model, each of its own held-out part.

    Args:
        told: Site → "examples", how many, and "scores", what `score` returned there; or "reason" why there are none.
        order: The site of each client.

    Returns:
        What `figures` returns. A score is the mean over sites, weighted by their numbers of examples, of those sites
        that sent it; accuracy is thus that over all examples. "sites" holds what each site said.

    Raises:
        UserError: No site sent scores.
    """
    heard = {site: one for site, one in told.items() if one.get("scores", {}).get("tasks")}
    if not heard:
        reasons = "; ".join(
            f"{site}: {one.get('reason', 'it sends no scores')}" for site, one in told.items()
        )
        raise UserError(f"no site sent scores ({reasons}), and the server has no test part")
    tasks = dict.fromkeys(task for one in heard.values() for task in one["scores"]["tasks"])
    top = _weighted([(one["examples"], one["scores"]) for one in heard.values()])
    found = {
        task: _weighted(
            [
                (one["examples"], one["scores"]["tasks"][task])
                for one in heard.values()
                if task in one["scores"]["tasks"]
            ]
        )
        for task in tasks
    }
    by_task = [
        {
            task: scores.get(HEADLINES[task])
            for task, scores in heard.get(site, {"scores": {"tasks": {}}})["scores"]["tasks"].items()
        }
        for site in order
    ]
    scores = {**top, "tasks": found}
    return {
        **scores,
        "slices": {"both": scores},
        "clients": [next(iter(one.values()), None) for one in by_task],
        "client_tasks": by_task,
        "sites": {site: dict(one) for site, one in told.items()},
    }


def _weighted(told: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, float]:
    """Average scores by numbers of examples; one that no site could compute is left out."""
    names = dict.fromkeys(name for _, scores in told for name in scores if name != "tasks")
    found = dict[str, float]()
    for name in names:
        some = [(count, scores[name]) for count, scores in told if scores.get(name) is not None]
        if total := sum(count for count, _ in some):
            found[name] = sum(count * value for count, value in some) / total
    return found


def with_verdicts(
    judge: Judge, test: Sequence[Example], judged: Judged, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Add what a judge says of free answers to the scores of their tasks, and on top if there is only one."""
    tasks: dict[str, Any] = dict(scores["tasks"])
    more: dict[str, Any] = {}
    for task in (task for task in JUDGED_TASKS if task in tasks and judged.replies):
        places = [place for place, example in enumerate(test) if example.task == task]
        more = judged_scores(judge, [test[k] for k in places], [judged.replies[k] for k in places])
        tasks[task] = {**tasks[task], **more}
    return {**scores, **(more if len(tasks) == 1 else {}), "tasks": tasks}


def headline(found: Mapping[str, Any]) -> float | None:
    """Return the one number for what `score` returned: the only task's headline, else the mean accuracy."""
    tasks = list(found["tasks"])
    return found[HEADLINES[tasks[0]]] if len(tasks) == 1 else found["accuracy"]


def own_figures(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Gather what each client's own model reaches on data like its own.

    Args:
        found: For each client, what `figures` returned for its own model.

    Returns:
        "clients", "client_tasks", and "tasks": each task's scores, averaged over the clients that hold it.
    """
    by_task = [one["client_tasks"][client] for client, one in enumerate(found)]
    tasks: dict[str, Any] = {}
    for task in found[0]["tasks"]:
        holders = [one["tasks"][task] for one, held in zip(found, by_task, strict=True) if task in held]
        if holders:
            tasks[task] = {name: _mean([one[name] for one in holders]) for name in holders[0]}
    clients = [one["clients"][client] for client, one in enumerate(found)]
    return {"clients": clients, "client_tasks": by_task, "tasks": tasks}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def expected_score(
    share: Share,
    train: Sequence[Example],
    test: Sequence[Example],
    scores: Mapping[str, NDArray[np.float64]],
    task: str | None = None,
) -> float | None:
    """Estimate a model's score on data like one client's own.

    Σ_{c, s} p_k(c, s) · score(c, s), with p_k(c, s) the share of client k's training examples of class c
    that show the evidence s, and score(c, s) measured on all test examples of class c. That uses the
    whole test set for every client. Classes without a test example are left out of the sum and the rest is
    scaled up; None if none is left.

    Where the client's examples of a task are all of one group that some test example of the task has, only such test
    examples count for the task.

    Args:
        share: What the client holds of `train`.
        train: Training examples.
        test: Test examples.
        scores: Slice → each test example's score, shape [test examples].
        task: The only task to look at; None for all.
    """
    held = _groups(train[index] for index in share.indices)
    tested = _groups(test)
    places: dict[tuple[str, str], list[int]] = {}
    for place, example in enumerate(test):
        mine = held.get(example.task, set())
        if len(mine) != 1 or not mine & tested[example.task] or example.group in mine:
            places.setdefault(_kind(example), []).append(place)
    wanted: Counter[tuple[tuple[str, str], str]] = Counter()
    for index, image, text in zip(share.indices, share.image, share.text, strict=True):
        if task in (None, train[index].task):
            wanted[_kind(train[index]), _slice(bool(image), bool(text), scores)] += 1
    total, gained = 0, 0.0
    for (kind, name), count in sorted(wanted.items()):
        if kind in places:
            total += count
            gained += count * float(scores[name][places[kind]].mean())
    return gained / total if total else None


def _groups(examples: Iterable[Example]) -> dict[str, set[str | None]]:
    """Return task → the groups of its examples."""
    found: dict[str, set[str | None]] = {}
    for example in examples:
        found.setdefault(example.task, set()).add(example.group)
    return found


def _kind(example: Example) -> tuple[str, str]:
    return example.task, example.answer if example.options else example.group or ""


def evidence_of(example: Example, known: Mapping[str, Any]) -> str:
    """Return the slice of known ones that an example belongs to by what it has."""
    return _slice(example.image is not None, example.text is not None, known)


def _slice(image: bool, text: bool, known: Mapping[str, Any]) -> str:
    name = "both" if image and text else "image" if image else "text"
    return name if name in known else next(iter(known))
