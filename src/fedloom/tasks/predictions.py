"""Answers of models to single examples, as lines of JSON: `predictions.jsonl` of a run, from which any metric can be computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedloom.system.errors import UserError
from fedloom.system.json_files import parse_object, to_json, write_atomic
from fedloom.tasks.score_answers import Answers, example_scores
from fedloom.tasks.task import UNPARSED, Answer, Unparsed
from fedloom.types import Example

PREDICTIONS = "predictions.jsonl"
"""The name of the file in a run folder."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model to one example.

    Attributes:
        method: The method that trained the model.
        client: The client whose own model it is, or None for a model of all.
        slice: The modalities of the example that the model saw: "both", "image" or "text".
        example: The example's id.
        task: Its task, such as "choice".
        answer: The answer: an option, a normalized text, or a box; None if the reply has no readable answer.
        expected: The right answer.
        correct: Whether the answer is right.
        score: The headline score of the task for this answer; for "choice" and "vqa" 1 if it is right, else 0.
        label: The index of the chosen option, or None.
        options: The options, whose `scores` are in the same order; empty where there are none.
        scores: The probability of each option, with six digits; None if the answer was generated.
        reply: What the model wrote; None if options were compared.
    """

    method: str
    client: int | None
    slice: str
    example: str
    task: str
    answer: str | tuple[float, ...] | None
    expected: str
    correct: bool
    score: float
    label: int | None = None
    options: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    reply: str | None = None


def predictions(
    method: str, client: int | None, part: str, examples: Sequence[Example], judged: Answers
) -> Iterator[Prediction]:
    """Yield the prediction of each example.

    Args:
        method: The method that trained the model.
        client: The client whose own model it is, or None.
        part: The slice of the test set that the model saw.
        examples: The questions.
        judged: The answers.
    """
    scores = example_scores(examples, judged, headline=True).tolist()
    right = example_scores(examples, judged, headline=False).tolist()
    for place, (example, answer, chances) in enumerate(
        zip(examples, judged.answers, judged.probabilities, strict=True)
    ):
        yield Prediction(
            method,
            client,
            part,
            example.id,
            example.task,
            _shown(example, answer),
            example.answer,
            right[place] == 1,
            _rounded(scores[place]),
            answer if isinstance(answer, int) else None,
            example.options,
            None if chances is None else tuple(map(_rounded, chances.tolist())),
            judged.replies[place] if judged.replies else None,
        )


def _shown(example: Example, answer: Answer | Unparsed) -> str | tuple[float, ...] | None:
    if isinstance(answer, Unparsed):
        return None
    return example.options[answer] if isinstance(answer, int) else answer


def _rounded(value: float) -> float:
    """Round to six digits, so that lines stay short."""
    return float(f"{value:.6g}")


def prediction_line(one: Prediction) -> bytes:
    """Return a prediction as a line of JSON, without what it lacks."""
    value = {key: getattr(one, key) for key in KEYS}
    given = {key: inner for key, inner in value.items() if key in REQUIRED or inner not in (None, ())}
    return f"{to_json(given)}\n".encode()


def write_predictions(
    file: Path,
    method: str,
    examples: Sequence[Example],
    answers: Mapping[int | None, Mapping[str, Answers]],
    root: Path | None = None,
) -> None:
    """Write the predictions of some models of a method, whole or not at all.

    Args:
        file: The file.
        method: The method's name.
        examples: The questions.
        answers: Client, or None for the model of all → slice → answers.
        root: See `fedloom.system.json_files.write_atomic`.
    """
    lines = (
        prediction_line(one)
        for client, by_slice in answers.items()
        for part, judged in by_slice.items()
        for one in predictions(method, client, part, examples, judged)
    )
    write_atomic(file, lines, root)


KEYS = tuple(key.name for key in fields(Prediction))
REQUIRED = KEYS[: KEYS.index("label")]
"""Keys of a line: all, and those that every line has."""


def read_predictions(file: Path) -> Iterator[Prediction]:
    """Yield the predictions of a file, of which one line at a time is held.

    Raises:
        UserError: The file is missing or damaged; the line is named.
    """
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield _prediction(parse_object(file, line.decode().rstrip("\n"), number))
                except (UnicodeDecodeError, TypeError, KeyError):
                    raise UserError(f"{file}, line {number}: not a prediction of a run") from None
    except FileNotFoundError:
        raise UserError(f"{file} is missing; runs of earlier versions have no predictions") from None


def _prediction(value: Mapping[str, Any]) -> Prediction:
    given: dict[str, Any] = {key: value[key] for key in REQUIRED}
    given |= {key: value[key] for key in KEYS if key in value}
    given |= {key: tuple(inner) for key, inner in given.items() if isinstance(inner, list)}
    if None in (given.get("scores") or ()):
        given["scores"] = None  # NaN, which earlier versions wrote where a model's output was not finite
    return Prediction(**given)


def answers_of(rows: Iterable[Prediction]) -> Answers:
    """Return predictions as the answers from which metrics are computed; probabilities have six digits."""
    kept = list(rows)
    chances = tuple(None if row.scores is None else np.array(row.scores) for row in kept)
    return Answers(tuple(map(_parsed, kept)), chances, tuple(row.reply for row in kept))


def _parsed(row: Prediction) -> Answer | Unparsed:
    if row.answer is None:
        return UNPARSED
    return row.label if row.label is not None else row.answer  # type: ignore[return-value]
