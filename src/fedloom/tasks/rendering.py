"""Render examples as conversations, each by its task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedloom.tasks import TASKS
from fedloom.tasks.task import AnswerForm
from fedloom.types import Conversation, Example, Presence

if TYPE_CHECKING:
    pass


def render(
    examples: Sequence[Example],
    presence: Sequence[Presence],
    answer: AnswerForm,
    *,
    clause: str | None = None,
) -> list[Conversation]:
    """Turn examples into conversations, showing only what is present; see `fedloom.tasks.task.Render`."""
    return [
        TASKS[example.task].render(example, present, clause=clause, answer_form=answer)
        for example, present in zip(examples, presence, strict=True)
    ]
