"""Predictions: what a line holds, and that answers can be read back from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedloom.system.errors import UserError
from fedloom.tasks.predictions import answers_of, read_predictions, write_predictions
from fedloom.tasks.score_answers import Answers, score
from fedloom.tasks.task import UNPARSED
from fedloom.types import Example

CHOICE = Example("c/1", "Which?", "cat", label=0, options=("cat", "dog"))
VQA = Example("v/1", "What color?", "Dark blue", task="vqa")
BOX = Example("g/1", "Where?", "[10, 10, 20, 20]", task="grounding")
CAPTION = Example("p/1", "Describe.", "A big red circle.", task="caption")


def test_a_line_says_what_was_answered_and_whether_it_is_right(tmp_path: Path) -> None:
    judged = Answers(
        (1, 0, "dark blue", UNPARSED),
        (np.array([0.25, 0.75]), np.array([0.75, 0.25]), None, None),
        (None, None, "Dark blue!", ""),
    )
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, "fedavg", [CHOICE, CHOICE, VQA, VQA], {3: {"both": judged}})
    wrong, right, free, empty = read_predictions(file)
    assert (wrong.method, wrong.client, wrong.slice, wrong.example) == ("fedavg", 3, "both", "c/1")
    assert (wrong.answer, wrong.expected, wrong.correct, wrong.score) == ("dog", "cat", False, 0)
    assert (wrong.label, wrong.options, wrong.scores) == (1, ("cat", "dog"), (0.25, 0.75))
    assert (right.answer, right.correct, right.score, right.reply) == ("cat", True, 1, None)
    assert (free.answer, free.correct, free.reply, free.scores) == ("dark blue", True, "Dark blue!", None)
    assert (empty.answer, empty.correct, empty.score, empty.reply) == (None, False, 0, "")


def test_probabilities_that_were_no_numbers_are_none(tmp_path: Path) -> None:
    """Earlier versions wrote NaN, as null, where a model's output was not finite."""
    judged = Answers((0, 1), (np.array([np.nan, np.nan]), np.array([0.25, 0.75])), (None, None))
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, "fedavg", [CHOICE] * 2, {None: {"both": judged}})
    assert [one.scores for one in read_predictions(file)] == [None, (0.25, 0.75)]
    scores = score([CHOICE] * 2, answers_of(read_predictions(file)))
    assert scores["accuracy"] == 0.5 and scores["auc"] is None


@pytest.mark.parametrize(
    ("example", "answers"),
    [
        (CHOICE, (0, 1, UNPARSED)),
        (VQA, ("dark blue", "red", UNPARSED)),
        (BOX, ((10.0, 10.0, 20.0, 20.0), (0.0, 0.0, 5.5, 5.5), UNPARSED)),
        (CAPTION, ("a big red circle", "a circle", UNPARSED)),
    ],
    ids=lambda value: getattr(value, "task", ""),
)
def test_answers_read_back_have_the_same_scores(
    example: Example, answers: tuple[object, ...], tmp_path: Path
) -> None:
    """For every task: so any metric can be computed later."""
    chances = (np.array([0.5, 0.5]), np.array([0.125, 0.875]), None) if example.options else (None,) * 3
    judged = Answers(answers, chances, tuple(str(one) for one in answers))  # type: ignore[arg-type]
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, "fedavg", [example] * 3, {None: {"both": judged}})
    read = answers_of(read_predictions(file))
    assert read.answers == judged.answers
    assert score([example] * 3, read) == score([example] * 3, judged)


@pytest.mark.parametrize("line", ["[]", "{", '{"method": "fedavg"}', '{"method": "fedavg", "client": [}'])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, "fedavg", [CHOICE], {None: {"both": Answers((0,), (np.array([1.0, 0.0]),))}})
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        list(read_predictions(file))


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        list(read_predictions(tmp_path / "predictions.jsonl"))
