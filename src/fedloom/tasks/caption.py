"""The task caption: descriptions of images, and reports on scans, compared by their n-grams.

Words are compared in lower case and without punctuation; see `fedloom.tasks.text_overlap` for the scores.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedloom.tasks.metrics import collect, mean, token_f1
from fedloom.tasks.published_scoring import compared_answer, compared_reply
from fedloom.tasks.task import (
    UNPARSED,
    Answer,
    AnswerForm,
    Metric,
    Published,
    Rows,
    Scores,
    Task,
    Unparsed,
    clean_text,
    free_answer,
    without_punctuation,
)
from fedloom.tasks.text_overlap import bleu, cider, rouge_l
from fedloom.types import Example

FRAME = re.compile(r"[^.:]{0,80}?\b(?:caption|report|description)\b[^.:]{0,80}?\bis\b", re.IGNORECASE)
"""The words before a caption in FedVLMBench's data, such as "The image caption is"."""


def normalize(text: str) -> str:
    """Return a text in lower case without punctuation; a text of punctuation only is kept.

    Example:
        >>> normalize("A big, red circle.")
        'a big red circle'
    """
    lower = clean_text(text).lower()
    return " ".join(without_punctuation(lower).split()) or lower


def parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> str | Unparsed:
    """Return the normalized reply, or `UNPARSED` for an empty one."""
    del example, answer_form
    return normalize(reply) or UNPARSED


def published_parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> str | Unparsed:
    """Return the part of a reply that FedVLMBench's code compares, with case and punctuation, or `UNPARSED`.

    Its right answers have a frame, "The image caption is …", and the code compares what follows the first "is" of a
    reply; a reply without "is" is `UNPARSED`. Captions without a frame are compared whole; see `compared_reply`.

    Example:
        >>> example = Example("e", "Describe.", "A man on a horse", task="caption")
        >>> published_parse("The image caption is A woman is riding a horse", example)
        'A woman is riding a horse'
    """
    del answer_form
    answer = compared_reply(reply, clean_text(example.answer), FRAME)
    return UNPARSED if answer is None else answer.strip()


class ScoredCaption(NamedTuple):
    """A description, None if unparsed, and the right one, both normalized for comparison."""

    given: str | None
    right: str


def _row(example: Example, answer: Answer | Unparsed, scores: NDArray[np.floating] | None) -> ScoredCaption:
    del scores
    return ScoredCaption(None if answer is UNPARSED else str(answer), normalize(example.answer))


def _published_row(
    example: Example, answer: Answer | Unparsed, scores: NDArray[np.floating] | None
) -> ScoredCaption:
    given = _row(example, answer, scores).given
    return ScoredCaption(given, compared_answer(example.answer, FRAME).strip())


def _split(rows: list[ScoredCaption]) -> tuple[list[list[str] | None], list[list[str]]]:
    return [None if row.given is None else row.given.split() for row in rows], [
        row.right.split() for row in rows
    ]


def _each(state: Rows) -> dict[str, list[float]]:
    rows: list[ScoredCaption] = list(state)
    answers, references = _split(rows)
    pairs = list(zip(answers, references, strict=True))
    return {
        "cider": cider(answers, references),
        "rouge_l": [0.0 if given is None else rouge_l(given, right) for given, right in pairs],
        "token_f1": [0.0 if row.given is None else token_f1(row.given, row.right) for row in rows],
        "accuracy": [float(row.given == row.right) for row in rows],
    }


def _result(state: Rows) -> Scores:
    rows: list[ScoredCaption] = list(state)
    return {
        **{name: mean(values) for name, values in _each(state).items()},
        **{f"bleu_{order}": score for order, score in enumerate(bleu(*_split(rows)), start=1)},
        "unparsed": mean([float(row.given is None) for row in rows]),
    }


def _parsed(state: Rows) -> Rows:
    return Rows(row for row in state if row.given is not None)


def _published_result(state: Rows) -> Scores:
    kept = ("cider", "bleu", "rouge")
    return {f"{name}_published": x for name, x in _result(_parsed(state)).items() if name.startswith(kept)}


def _published_each(state: Rows) -> dict[str, list[float]]:
    return {"cider_published": _each(_parsed(state))["cider"]}


METRICS: Metric = collect(_row, _result, _each, "cider")
PUBLISHED: Metric = collect(_published_row, _published_result, _published_each, "cider_published")
"""The same scores without normalization and without unparsed replies, as in FedVLMBench's code."""

CAPTION = Task(free_answer, parse, METRICS, Published(published_parse, PUBLISHED))
