"""Descriptions of a picture, compared run of words by run of words; also reports on a scan.

Lower case and no punctuation before words are compared; see `fedloom.tasks.text_overlap` for the scores.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedloom.tasks.metrics import collect, mean, token_f1
from fedloom.tasks.published_scoring import heard, stated
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
)
from fedloom.tasks.text_overlap import bleu, cider, rouge_l
from fedloom.types import Example

FRAME = re.compile(r"[^.:]{0,80}?\b(?:caption|report|description)\b[^.:]{0,80}?\bis\b", re.IGNORECASE)
"""The words in front of a caption in FedVLMBench's data, as in "The image caption is"."""


def normalize(text: str) -> str:
    """Lower the case and drop punctuation; an answer of nothing else is kept.

    Example:
        >>> normalize("A big, red circle.")
        'a big red circle'
    """
    lower = clean_text(text).lower()
    return " ".join(re.sub(r"[\W_]+", " ", lower).split()) or lower


def parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> str | Unparsed:
    """Return a reply normalized; an empty one is `UNPARSED`."""
    del example, answer_form
    return normalize(reply) or UNPARSED


def published_parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> str | Unparsed:
    """Return what FedVLMBench's code compares of a reply as it stands, with case and punctuation, or `UNPARSED`.

    Its right answers have a frame, "The image caption is …", to which the first "is" of a reply belongs; there
    a reply without "is" is `UNPARSED`. Captions without a frame are compared whole; see `heard`.

    Example:
        >>> one = Example("e", "Describe.", "A man on a horse", task="caption")
        >>> published_parse("The image caption is A woman is riding a horse", one)
        'A woman is riding a horse'
    """
    del answer_form
    found = heard(reply, clean_text(example.answer), FRAME)
    return UNPARSED if found is None else found.strip()


class Described(NamedTuple):
    """One description, None if unparsed, and the right one; both as they are compared."""

    given: str | None
    right: str


def _row(example: Example, answer: Answer | Unparsed, scores: NDArray[np.floating] | None) -> Described:
    del scores
    return Described(None if answer is UNPARSED else str(answer), normalize(example.answer))


def _published_row(
    example: Example, answer: Answer | Unparsed, scores: NDArray[np.floating] | None
) -> Described:
    given = _row(example, answer, scores).given
    return Described(given, stated(example.answer, FRAME).strip())


def _split(rows: list[Described]) -> tuple[list[list[str] | None], list[list[str]]]:
    return [None if row.given is None else row.given.split() for row in rows], [
        row.right.split() for row in rows
    ]


def _each(state: Rows) -> dict[str, list[float]]:
    rows: list[Described] = list(state)
    answers, references = _split(rows)
    pairs = list(zip(answers, references, strict=True))
    return {
        "cider": cider(answers, references),
        "rouge_l": [0.0 if given is None else rouge_l(given, right) for given, right in pairs],
        "token_f1": [0.0 if row.given is None else token_f1(row.given, row.right) for row in rows],
        "accuracy": [float(row.given == row.right) for row in rows],
    }


def _result(state: Rows) -> Scores:
    rows: list[Described] = list(state)
    return {
        **{name: mean(found) for name, found in _each(state).items()},
        **{f"bleu_{order}": score for order, score in enumerate(bleu(*_split(rows)), start=1)},
        "unparsed": mean([float(row.given is None) for row in rows]),
    }


def _read(state: Rows) -> Rows:
    return Rows(row for row in state if row.given is not None)


def _published_result(state: Rows) -> Scores:
    kept = ("cider", "bleu", "rouge")
    return {f"{name}_published": x for name, x in _result(_read(state)).items() if name.startswith(kept)}


def _published_each(state: Rows) -> dict[str, list[float]]:
    return {"cider_published": _each(_read(state))["cider"]}


METRICS: Metric = collect(_row, _result, _each, "cider")
PUBLISHED: Metric = collect(_published_row, _published_result, _published_each, "cider_published")
"""The same scores of the words as they stand, without the unparsed replies, as FedVLMBench's code has it."""

CAPTION = Task(free_answer, parse, METRICS, Published(published_parse, PUBLISHED))
