"""Compute the scores of a list of answers: of each task, and of all tasks together.

Shape legend: N = number of examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.tasks import TASKS
from fedloom.tasks.metrics import mean
from fedloom.tasks.task import UNPARSED, Answer, AnswerForm, Metric, Published, Rows, Scores, Unparsed
from fedloom.types import Example

HEADLINES = {name: task.metrics.headline for name, task in TASKS.items()}
"""Task → the name of its headline score."""


@dataclass(frozen=True)
class Answers:
    """Answers to a list of examples, in their order.

    Attributes:
        answers: The answers: a label, a text, a box, or `UNPARSED`.
        probabilities: The probabilities of each example's options; None if the answer was generated.
        replies: The replies of the model, each None if options were compared; empty if no reply was generated.
        answer_form: The form of answers to multiple-choice questions.
    """

    answers: tuple[Answer | Unparsed, ...]
    probabilities: tuple[NDArray[np.float64] | None, ...]
    replies: tuple[str | None, ...] = ()
    answer_form: AnswerForm = "text"


def concatenate(parts: Sequence[Answers]) -> Answers:
    """Concatenate answers to several lists of examples; the answer form is that of the first."""
    return Answers(
        tuple(answer for part in parts for answer in part.answers),
        tuple(chances for part in parts for chances in part.probabilities),
        tuple(reply for part in parts for reply in part.replies),
        parts[0].answer_form,
    )


def merge(parts: Sequence[Answers]) -> Answers:
    """Combine answers to the same examples, each of which was answered in one of the parts, by a reply or probabilities."""
    count = range(len(parts[0].answers))
    given = [
        next(
            (one for one in parts if one.replies[k] is not None or one.probabilities[k] is not None), parts[0]
        )
        for k in count
    ]
    return Answers(
        tuple(given[k].answers[k] for k in count),
        tuple(given[k].probabilities[k] for k in count),
        tuple(given[k].replies[k] for k in count),
        parts[0].answer_form,
    )


def take(answers: Answers, places: slice) -> Answers:
    """Return the answers to some of the examples."""
    return Answers(
        answers.answers[places], answers.probabilities[places], answers.replies[places], answers.answer_form
    )


def tasks_of(examples: Sequence[Example]) -> list[str]:
    """Return the distinct tasks of examples, in order of appearance."""
    return list(dict.fromkeys(example.task for example in examples))


NO_METRICS: Mapping[str, Metric] = {}
"""No metrics but fedloom's own."""


def score(
    examples: Sequence[Example], judged: Answers, metrics: Mapping[str, Metric] = NO_METRICS
) -> dict[str, Any]:
    """Compute all metrics of answers.

    Args:
        examples: The questions.
        judged: The answers.
        metrics: Name → metric of a plug-in, whose result has the score under that name; it is computed for every task.

    Returns:
        Score names to numbers, None if undefined, and under "tasks" the same for each task. If
        examples have a kind, there is also a headline score for each kind, such as "accuracy_open". On top are
        the scores of the only task; with several, the means of those scores that all tasks have. Scores of
        published code are those of its scripts for one task, or with several tasks of its multi-task scripts.
    """
    tasks = {task: _task_scores(task, examples, judged, metrics) for task in tasks_of(examples)}
    return {**means_of_tasks(list(tasks.values())), "tasks": tasks}


def _task_scores(
    task: str, examples: Sequence[Example], judged: Answers, others: Mapping[str, Metric]
) -> Scores:
    alone, several = TASKS[task].published, TASKS[task].multitask
    published = alone if several is None or len(tasks_of(examples)) == 1 else several
    metrics, state = published.metrics, published.metrics.zero
    for place, example in enumerate(examples):
        if example.task == task:
            answer = _published_answer(published, example, place, judged)
            state = metrics.add(state, example, answer, judged.probabilities[place])
    ours = _state(task, TASKS[task].metrics, examples, judged)
    theirs = {
        name: metric.result(_state(task, metric, examples, judged))[name] for name, metric in others.items()
    }
    by_kind = _by_kind(task, [example for example in examples if example.task == task], ours)
    return {**TASKS[task].metrics.result(ours), **by_kind, **metrics.result(state), **theirs}


def _by_kind(task: str, examples: Sequence[Example], state: Rows) -> Scores:
    kinds = sorted({example.kind for example in examples if example.kind is not None})
    name = HEADLINES[task]
    values = TASKS[task].metrics.each(state)[name] if kinds else []
    return {
        f"{name}_{kind}": mean(
            [value for value, example in zip(values, examples, strict=True) if example.kind == kind]
        )
        for kind in kinds
    }


def _published_answer(
    published: Published, example: Example, place: int, judged: Answers
) -> Answer | Unparsed:
    """Return the answer that published code reads from a reply, or the compared option if there is no reply."""
    reply = judged.replies[place] if judged.replies else None
    if reply is None:
        return judged.answers[place] if example.options else UNPARSED
    return published.parse(reply, example, answer_form=judged.answer_form)


def _state(task: str, metrics: Metric, examples: Sequence[Example], judged: Answers) -> Rows:
    state = metrics.zero
    for example, answer, chances in zip(examples, judged.answers, judged.probabilities, strict=True):
        if example.task == task:
            state = metrics.add(state, example, answer, chances)
    return state


def means_of_tasks(tasks: Sequence[Mapping[str, float | None]]) -> Scores:
    """Return the scores of the only task, or with several, the means of those scores that all tasks have."""
    if len(tasks) < 2:
        return dict(tasks[0]) if tasks else {}
    means: Scores = {}
    for name in (name for name in tasks[0] if all(name in scores for scores in tasks)):
        values = [value for scores in tasks if (value := scores[name]) is not None]
        means[name] = sum(values) / len(values) if len(values) == len(tasks) else None
    return means


def example_scores(examples: Sequence[Example], judged: Answers, *, headline: bool) -> NDArray[np.float64]:
    """Return the score of every example, [N]: the headline score of its task, or accuracy, which all tasks have."""
    values = np.zeros(len(examples))
    for task in tasks_of(examples):
        places = [place for place, example in enumerate(examples) if example.task == task]
        scores = TASKS[task].metrics.each(_state(task, TASKS[task].metrics, examples, judged))
        values[places] = scores[HEADLINES[task] if headline else "accuracy"]
    return values
