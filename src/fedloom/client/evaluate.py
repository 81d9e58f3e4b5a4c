"""Ask a model every question and judge its answers, by likelihood of options or by what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedloom.models.batch import Connect, generate, option_scores
from fedloom.models.load import Vlm
from fedloom.tasks import TASKS, UNPARSED, Answer, Unparsed
from fedloom.tasks.base import AnswerForm, Scores
from fedloom.types import Conversation, Example, Presence

BATCH_SIZE = 32
"""Conversations in one pass, over all clients that answer side by side."""


class EvaluateSettings(Protocol):
    """The `evaluate` section of an experiment, as far as asking and judging read it."""

    @property
    def answer(self) -> AnswerForm:
        """Whether the answer to a multiple-choice question is the option's text or its letter."""
        ...

    @property
    def scoring(self) -> str:
        """How options are chosen: "likelihood" compares them, "generate" parses what the model says."""
        ...


@dataclass(frozen=True)
class Judged:
    """Answers to a list of examples, in their order.

    Attributes:
        answers: What was answered: a label, a text, a box, or `UNPARSED`.
        probabilities: Of each example's options; None where the answer was generated.
    """

    answers: tuple[Answer | Unparsed, ...]
    probabilities: tuple[NDArray[np.float64] | None, ...]


def render(
    examples: Sequence[Example],
    presence: Sequence[Presence],
    answer: AnswerForm,
    *,
    clause: str | None = None,
) -> list[Conversation]:
    """Turn examples into conversations, showing only what is present; see `fedloom.tasks.base.Render`."""
    return [
        TASKS[example.task].render(example, present, clause=clause, answer_form=answer)
        for example, present in zip(examples, presence, strict=True)
    ]


def judge(
    vlm: Vlm,
    examples: Sequence[Example],
    presence: Sequence[Presence],
    settings: EvaluateSettings,
    *,
    clause: str | None = None,
) -> Judged:
    """Answer every example with the live model; see `judge_rows`."""
    return judge_rows(vlm, [vlm.connect], examples, presence, settings, clause=clause)[0]


def judge_rows(
    vlm: Vlm,
    connects: Sequence[Connect],
    examples: Sequence[Example],
    presence: Sequence[Presence],
    settings: EvaluateSettings,
    *,
    clause: str | None = None,
) -> list[Judged]:
    """Answer every example with each of K clients' adapters that stand side by side in the model.

    Examples with options are scored by likelihood unless the settings say "generate"; all others are
    generated. Batches go by length, which changes no answer.

    Args:
        vlm: The model.
        connects: The K clients' connectors.
        examples: The questions.
        presence: What of its evidence each example shows.
        settings: Form of the answer and way of choosing it.
        clause: What prompts say of the evidence; None names what is present.

    Returns:
        Each client's answers.
    """
    conversations = render(examples, presence, settings.answer, clause=clause)
    rows = range(len(connects))
    answers: list[list[Answer | Unparsed]] = [[UNPARSED] * len(examples) for _ in rows]
    probabilities: list[list[NDArray[np.float64] | None]] = [[None] * len(examples) for _ in rows]
    scored = [bool(one.options) and settings.scoring == "likelihood" for one in conversations]
    order = sorted(
        range(len(examples)),
        key=lambda k: (scored[k], conversations[k].picture is None, len(conversations[k].user), k),
    )
    size = max(1, BATCH_SIZE // len(connects))
    for start in range(0, len(order), size):
        for kind in (False, True):
            places = [k for k in order[start : start + size] if scored[k] is kind]
            if not places:
                continue
            batch = [conversations[k] for k in places]
            asked = [(row, k) for row in rows for k in places]
            if kind:
                for (row, k), scores in zip(asked, option_scores(vlm, batch, connects), strict=True):
                    chances = torch.softmax(scores[: len(conversations[k].options)].double(), 0).numpy()
                    answers[row][k], probabilities[row][k] = int(chances.argmax()), chances
            else:
                replies = generate(vlm, batch, connects, max_tokens=_room(vlm, batch))
                for (row, k), reply in zip(asked, replies, strict=True):
                    answers[row][k] = TASKS[examples[k].task].parse(
                        reply, examples[k], answer_form=settings.answer
                    )
    return [Judged(tuple(answers[row]), tuple(probabilities[row])) for row in rows]


def _room(vlm: Vlm, batch: Sequence[Conversation]) -> int:
    """Allow half as many tokens again as the longest right answer has, and a few more."""
    longest = max(len(vlm.tokenizer(one.answer)["input_ids"]) for one in batch)
    return longest + longest // 2 + 4


def score(examples: Sequence[Example], judged: Judged) -> Scores:
    """Compute the metrics of answers; with several tasks, each task's under `task/metric` and the means on top."""
    by_task: dict[str, Scores] = {}
    for task in dict.fromkeys(example.task for example in examples):
        metric = TASKS[task].metrics
        state = metric.zero
        for example, answer, chances in zip(examples, judged.answers, judged.probabilities, strict=True):
            if example.task == task:
                state = metric.add(state, example, answer, chances)
        by_task[task] = metric.result(state)
    if len(by_task) == 1:
        return next(iter(by_task.values()))
    return {
        **_means(by_task),
        **{f"{task}/{name}": v for task, found in by_task.items() for name, v in found.items()},
    }


def _means(by_task: dict[str, Scores]) -> Scores:
    shared = [
        name for name in next(iter(by_task.values())) if all(name in found for found in by_task.values())
    ]
    means: Scores = {}
    for name in shared:
        values = [found[name] for found in by_task.values()]
        known = [value for value in values if value is not None]
        means[name] = sum(known) / len(known) if len(known) == len(values) else None
    return means


def right(examples: Sequence[Example], judged: Judged) -> NDArray[np.float64]:
    """Return each example's accuracy as its own task counts it, shape [examples]."""
    found = []
    for example, answer in zip(examples, judged.answers, strict=True):
        metric = TASKS[example.task].metrics
        found.append(metric.result(metric.add(metric.zero, example, answer, None))["accuracy"] or 0.0)
    return np.array(found)
