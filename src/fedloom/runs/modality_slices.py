"""Score a model for the report: by modality slice, over all test examples, and for each client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.scenarios.plan import Plan, Share
from fedloom.tasks.llm_judge import JUDGED_TASKS, Judge, judged_scores
from fedloom.tasks.score_answers import HEADLINES, NO_METRICS, Answers, example_scores, score, tasks_of
from fedloom.tasks.task import Metric
from fedloom.types import Example, Presence

SLICES = {"both": Presence(True, True), "image": Presence(True, False), "text": Presence(False, True)}
"""Name of a slice → the modalities of test examples that it shows."""


def slices_of(examples: Sequence[Example]) -> list[str]:
    """Return the slices of a data set, the fullest first; without text (or images) there is only one."""
    images = any(example.image is not None for example in examples)
    texts = any(example.text is not None for example in examples)
    return list(SLICES) if images and texts else ["image"] if images else ["text"]


def score_model(
    train: Sequence[Example],
    test: Sequence[Example],
    plan: Plan,
    answers: Mapping[str, Answers],
    judge: Judge | None = None,
    metrics: Mapping[str, Metric] = NO_METRICS,
) -> dict[str, Any]:
    """Return the scores of one model: the fullest slice on top, every slice, and every client.

    Args:
        train: Training examples, which the plan divides.
        test: Test examples.
        plan: Who holds what.
        answers: Answers to `test` by slice, the fullest first.
        judge: Scores free answers on the fullest slice as well; None for no judge.
        metrics: Name → metric of a plug-in; see `score`.

    Returns:
        What `score` returns, and under "clients" a number for each client: the headline of the only task,
        or the accuracy if there are several. Under "client_tasks" the headline of each of its tasks.
    """
    scores = {name: score(test, own, metrics) for name, own in answers.items()}
    if judge is not None:
        full = next(iter(scores))
        scores[full] = add_verdicts(judge, test, answers[full], scores[full])
    return {
        **scores[next(iter(scores))],
        "slices": scores,
        **client_scores(train, test, plan, answers),
    }


def client_scores(
    train: Sequence[Example],
    test: Sequence[Example],
    plan: Plan,
    answers: Mapping[str, Answers],
    chosen: Mapping[int, Mapping[str, Answers]] | None = None,
) -> dict[str, Any]:
    """Return "clients" and "client_tasks" of what `score_model` returns.

    Args:
        train: Training examples, which the plan divides.
        test: Test examples.
        plan: Who holds what.
        answers: Answers to `test` by slice.
        chosen: Client → the answers by slice that it chooses itself; for other clients they are `answers`.
    """
    several, clients, by_task = len(tasks_of(test)) > 1, list[float | None](), list[dict[str, Any]]()
    common = _example_scores(test, answers, several=several)
    for client, share in enumerate(plan.clients):
        own = chosen.get(client) if chosen else None
        headlines, accuracies = common if own is None else _example_scores(test, own, several=several)
        tasks = tasks_of([train[index] for index in share.indices])
        by_task.append({task: expected_score(share, train, test, headlines, task) for task in tasks})
        clients.append(
            expected_score(share, train, test, accuracies)
            if several
            else next(iter(by_task[-1].values()), None)
        )
    return {"clients": clients, "client_tasks": by_task}


def _example_scores(
    test: Sequence[Example], answers: Mapping[str, Answers], *, several: bool
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Return slice → each test example's headline score, and the same of accuracies if there are several tasks."""
    headlines, accuracies = (
        {name: example_scores(test, own, headline=headline) for name, own in answers.items() if wanted}
        for headline, wanted in ((True, True), (False, several))
    )
    return headlines, accuracies


def add_verdicts(
    judge: Judge, test: Sequence[Example], answers: Answers, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Add a judge's scores of free answers to the scores of their tasks, and on top if there is only one task."""
    tasks: dict[str, Any] = dict(scores["tasks"])
    more: dict[str, Any] = {}
    for task in (task for task in JUDGED_TASKS if task in tasks and answers.replies):
        indices = [k for k, example in enumerate(test) if example.task == task]
        more = judged_scores(judge, [test[k] for k in indices], [answers.replies[k] for k in indices])
        tasks[task] = {**tasks[task], **more}
    return {**scores, **(more if len(tasks) == 1 else {}), "tasks": tasks}


def headline(scores: Mapping[str, Any]) -> float | None:
    """Return the main score of what `score` returned: the only task's headline, else the mean accuracy."""
    tasks = list(scores["tasks"])
    return scores[HEADLINES[tasks[0]]] if len(tasks) == 1 else scores["accuracy"]


def score_own_models(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scores of each client's own model on data like the client's.

    Args:
        scores: For each client, what `score_model` returned for its own model.

    Returns:
        "clients", "client_tasks", and "tasks": each task's scores, averaged over the clients that hold it.
    """
    by_task = [own["client_tasks"][client] for client, own in enumerate(scores)]
    tasks: dict[str, Any] = {}
    for task in scores[0]["tasks"]:
        holders = [own["tasks"][task] for own, held in zip(scores, by_task, strict=True) if task in held]
        if holders:
            tasks[task] = {name: _mean([own[name] for own in holders]) for name in holders[0]}
    clients = [own["clients"][client] for client, own in enumerate(scores)]
    return {"clients": clients, "client_tasks": by_task, "tasks": tasks}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def expected_score(
    share: Share,
    train: Sequence[Example],
    test: Sequence[Example],
    scores: Mapping[str, NDArray[np.float64]],
    task: str | None = None,
) -> float | None:
    """Estimate a model's score on data like one client's own.

    Σ_{c, s} p_k(c, s) · score(c, s), with p_k(c, s) the share of client k's training examples of class c
    that show the modalities s, and score(c, s) measured on all test examples of class c. That uses the
    whole test set for every client. Classes without a test example are left out of the sum and the other terms are
    scaled up; None if no class is left.

    If the client's examples of a task are all of one group that some test example of the task has, only such test
    examples count for the task.

    Args:
        share: The part of `train` that the client holds.
        train: Training examples.
        test: Test examples.
        scores: Slice → each test example's score, shape [test examples].
        task: The only task to look at; None for all.
    """
    counts, indices = _held_and_tested(share, train, test, list(scores), task)
    total, gained = 0, 0.0
    for (kind, name), count in sorted(counts.items()):
        if kind in indices:
            total += count
            gained += count * float(scores[name][indices[kind]].mean())
    return gained / total if total else None


Kind = tuple[str, str]
"""A task and a class within it."""


def _held_and_tested(
    share: Share, train: Sequence[Example], test: Sequence[Example], slices: Sequence[str], task: str | None
) -> tuple[Counter[tuple[Kind, str]], dict[Kind, list[int]]]:
    """Count a client's examples by class and slice, and list for each class the test examples that stand for them."""
    held = _groups(train[index] for index in share.indices)
    tested = _groups(test)
    indices: dict[Kind, list[int]] = {}
    for k, example in enumerate(test):
        own = held.get(example.task, set())
        if len(own) != 1 or not own & tested[example.task] or example.group in own:
            indices.setdefault(_class(example), []).append(k)
    counts: Counter[tuple[Kind, str]] = Counter()
    for index, image, text in zip(share.indices, share.image, share.text, strict=True):
        if task in (None, train[index].task):
            counts[_class(train[index]), _slice(bool(image), bool(text), slices)] += 1
    return counts, indices


def independent_questions(train: Sequence[Example], test: Sequence[Example], plan: Plan) -> dict[str, Any]:
    """Count how many independent questions each score is based on, for confidence intervals.

    Questions about the same image, or about variants of the same thing, are not independent, and in a client's own score
    questions have different weights. A score Σ w_i x_i is as certain as the mean of n = (Σ w)² / Σ_g (Σ_{i in g} w_i)²
    equally weighted independent questions, where g are the groups of dependent ones, whose answers are taken to agree
    (Kish's effective sample size).

    Returns:
        Task → n under "test" (the whole test set) and under "own" (the mean over clients of their own scores); under "clients"
        the same for each client's own score, as estimated by `expected_score`.

    Reference: L. Kish, "Survey Sampling" (1965), sections 8.2 and 11.7.
    """
    group_of, slices = dependent_groups(test), slices_of(test)
    value: dict[str, Any] = {"test": {}, "own": {}, "clients": [{} for _ in plan.clients]}
    for task in tasks_of(test):
        ones = np.array([example.task == task for example in test], float)
        value["test"][task] = effective_count(np.bincount(group_of, ones))
        total = np.zeros(group_of.max() + 1)
        for share, own in zip(plan.clients, value["clients"], strict=True):
            weights = own_weights(share, train, test, slices, task)
            if weights is not None:
                by_group = np.bincount(group_of, weights.sum(0), minlength=len(total))
                own[task] = effective_count(by_group)
                total += by_group
        if total.any():
            value["own"][task] = effective_count(total)
    return value


def dependent_groups(test: Sequence[Example]) -> NDArray[np.int64]:
    """Number the groups of test examples whose answers depend on each other; shape [test examples]."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(_dependent(example), len(numbers)) for example in test], np.int64)


def _dependent(example: Example) -> str:
    """Return a name that is equal for examples whose answers depend on each other."""
    images = example.pictures
    return f"base {example.base}" if example.base else f"image {images[0].key}" if images else example.id


def effective_count(weights: NDArray[Any]) -> float:
    """Return Kish's effective sample size of groups with these sums of weights."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def own_weights(
    share: Share, train: Sequence[Example], test: Sequence[Example], slices: Sequence[str], task: str
) -> NDArray[np.float64] | None:
    """Return the weights in a client's own score of a task, shape [slices, test examples]; None if it has no such score."""
    counts, indices = _held_and_tested(share, train, test, slices, task)
    total = sum(count for (kind, _), count in counts.items() if kind in indices)
    weights = np.zeros((len(slices), len(test)))
    for (kind, name), count in sorted(counts.items()):
        if kind in indices:
            weights[slices.index(name), indices[kind]] += count / total / len(indices[kind])
    return weights if total else None


def _groups(examples: Iterable[Example]) -> dict[str, set[str | None]]:
    """Return task → the groups of its examples."""
    groups: dict[str, set[str | None]] = {}
    for example in examples:
        groups.setdefault(example.task, set()).add(example.group)
    return groups


def _class(example: Example) -> tuple[str, str]:
    """Return an example's task and its class within the task."""
    return example.task, example.answer if example.options else example.group or ""


def modality_of(example: Example, slices: Collection[str]) -> str:
    """Return the slice, one of `slices`, that shows the modalities of an example."""
    return _slice(example.image is not None, example.text is not None, slices)


def _slice(image: bool, text: bool, slices: Collection[str]) -> str:
    name = "both" if image and text else "image" if image else "text"
    return name if name in slices else next(iter(slices))
