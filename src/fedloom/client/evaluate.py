"""Ask a model every question and judge its answers, by likelihood of options or by what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedloom.models.batch import generate, option_scores
from fedloom.models.load import Vlm
from fedloom.models.published import teacher_forced
from fedloom.tasks import TASKS, UNPARSED, Answer, Unparsed
from fedloom.tasks.base import AnswerForm
from fedloom.tasks.scoring import Judged
from fedloom.types import Conversation, Example, Presence

BATCH_SIZE = 32


class EvaluateSettings(Protocol):
    """The `evaluate` section of an experiment, as far as asking and judging read it."""

    @property
    def answer(self) -> AnswerForm:
        """Whether the answer to a multiple-choice question is the option's text or its letter."""
        ...

    @property
    def scoring(self) -> str:
        """How answers are found: "likelihood" compares options, "generate" parses what the model says, and
        "teacher-forced" parses what it says when shown the right answer word by word.
        """
        ...


def render(
    examples: Sequence[Example], presence: Sequence[Presence], answer: AnswerForm, *, agnostic: bool
) -> list[Conversation]:
    """Turn examples into conversations, showing only what is present."""
    return [
        TASKS[example.task].render(example, present, agnostic=agnostic, answer_form=answer)
        for example, present in zip(examples, presence, strict=True)
    ]


def judge(
    vlm: Vlm,
    examples: Sequence[Example],
    presence: Sequence[Presence],
    settings: EvaluateSettings,
    *,
    agnostic: bool = False,
) -> Judged:
    """Answer every example with the live model.

    Examples with options are scored by likelihood unless the settings say "generate"; all others are
    generated, or teacher-forced if the settings say so. Batches go by length, which changes no answer.
    """
    conversations = render(examples, presence, settings.answer, agnostic=agnostic)
    answers: list[Answer | Unparsed] = [UNPARSED] * len(examples)
    probabilities: list[NDArray[np.float64] | None] = [None] * len(examples)
    replies: list[str | None] = [None] * len(examples)
    scored = [bool(one.options) and settings.scoring == "likelihood" for one in conversations]
    order = sorted(
        range(len(examples)),
        key=lambda k: (scored[k], conversations[k].picture is None, len(conversations[k].user), k),
    )
    for start in range(0, len(order), BATCH_SIZE):
        for kind in (False, True):
            places = [k for k in order[start : start + BATCH_SIZE] if scored[k] is kind]
            if not places:
                continue
            batch = [conversations[k] for k in places]
            if kind:
                for k, scores in zip(places, option_scores(vlm, batch), strict=True):
                    chances = torch.softmax(scores[: len(conversations[k].options)].double(), 0).numpy()
                    answers[k], probabilities[k] = int(chances.argmax()), chances
            else:
                for k, reply in zip(places, _replies(vlm, batch, settings), strict=True):
                    replies[k] = reply
                    answers[k] = TASKS[examples[k].task].parse(
                        reply, examples[k], answer_form=settings.answer
                    )
    return Judged(tuple(answers), tuple(probabilities), tuple(replies), settings.answer)


def _replies(vlm: Vlm, batch: Sequence[Conversation], settings: EvaluateSettings) -> list[str]:
    if settings.scoring == "teacher-forced":
        return teacher_forced(vlm, batch)
    return generate(vlm, batch, max_tokens=_room(vlm, batch))


def _room(vlm: Vlm, batch: Sequence[Conversation]) -> int:
    """Allow half as many tokens again as the longest right answer has, and a few more."""
    longest = max(len(vlm.tokenizer(one.answer)["input_ids"]) for one in batch)
    return longest + longest // 2 + 4
