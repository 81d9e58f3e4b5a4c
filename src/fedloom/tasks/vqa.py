"""The task vqa: questions about images with short free answers, compared after normalization.

Reference: S. Antol et al., "VQA: Visual Question Answering", arXiv 1505.00468v7, and the normalization of
its evaluation code.

Differs from the paper: one right answer instead of ten, so a score is 0 or 1; apostrophes are removed
instead of restored in contractions; an answer that would become empty is kept.
"""

from __future__ import annotations

import re

from fedloom.tasks.metrics import graded, token_f1
from fedloom.tasks.published_scoring import compared_reply, published_answers, same_start, same_text
from fedloom.tasks.task import (
    UNPARSED,
    Answer,
    AnswerForm,
    Published,
    Task,
    Unparsed,
    clean_text,
    free_answer,
    without_punctuation,
)
from fedloom.types import Example

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
_BUT_POINTS = r"(?:(?!(?<![^\W\d])\.(?=\d))[\W_])+"
"""Matches a run of punctuation, but no decimal point."""


def normalize(text: str) -> str:
    """Return a text in lower case without punctuation and articles, with number words as digits.

    Example:
        >>> normalize("The two cats."), normalize("1,000.5 km"), normalize(".5"), normalize("Don't know!"), normalize("A")
        ('2 cats', '1000.5 km', '.5', 'dont know', 'a')
    """
    lower = clean_text(text).lower()
    plain = re.sub(r"['’`]|(?<=\d),(?=\d)", "", lower)
    plain = without_punctuation(plain, _BUT_POINTS)
    words = [NUMBERS.get(word, word) for word in plain.split()]
    return " ".join(word for word in words if word not in ARTICLES) or " ".join(words) or lower


def parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> str | Unparsed:
    """Return the normalized reply, or `UNPARSED` for an empty one."""
    del example, answer_form
    return normalize(reply) or UNPARSED


def published_parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> str | Unparsed:
    """Return the part of a reply that FedVLMBench's code compares, or `UNPARSED`; see `compared_reply`."""
    del answer_form
    answer = compared_reply(reply, clean_text(example.answer))
    return UNPARSED if answer is None else answer


def exact(example: Example, answer: Answer) -> float:
    """Return 1 if the answer is right after normalization, else 0."""
    return float(answer == normalize(example.answer))


def overlap(example: Example, answer: Answer) -> float:
    """Return the F1 of the answer's words and the right words, after normalization."""
    return token_f1(str(answer), normalize(example.answer))


VQA = Task(
    free_answer,
    parse,
    graded("accuracy", accuracy=exact, token_f1=overlap),
    Published(published_parse, published_answers(same_text)),
    Published(published_parse, published_answers(same_start)),
)
