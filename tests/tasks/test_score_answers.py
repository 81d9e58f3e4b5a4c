"""Scores of lists of answers: by task, by kind of answer, and beside what published code makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.tasks import TASKS, UNPARSED
from fedloom.tasks.score_answers import Answers, example_scores, score
from fedloom.types import Example


def answered(rows, form="text"):
    """Return examples and answers made of (task, right answer, kind, reply)."""
    examples = [
        Example(str(place), "?", right, task=task, kind=kind)
        for place, (task, right, kind, _) in enumerate(rows)
    ]
    replies = tuple(reply for *_, reply in rows)
    answers = tuple(
        TASKS[example.task].parse(reply, example, answer_form=form)
        for example, reply in zip(examples, replies, strict=True)
    )
    return examples, Answers(answers, (None,) * len(rows), replies, form)


def test_scores_are_also_given_by_kind():
    rows = [
        ("vqa", "lung", "open", "lung"),
        ("vqa", "lung", "open", "liver"),
        ("vqa", "yes", "closed", "Yes."),
        ("vqa", "yes", "closed", ""),
        ("vqa", "two", None, "2"),
    ]
    scores = score(*answered(rows))
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert (scores["accuracy_open"], scores["accuracy_closed"]) == (0.5, 0.5)
    assert scores["unparsed"] == pytest.approx(1 / 5)
    boxes = [("grounding", "[0, 0, 9, 9]", kind, "[0, 0, 9, 4]") for kind in ("testA", "testB", "testB")]
    assert score(*answered(boxes))["iou_testB"] == 0.5


def test_every_task_is_scored_by_itself_and_means_are_on_top():
    rows = [
        ("vqa", "lung", None, "lung"),
        ("caption", "a red circle", None, "a red circle"),
        ("grounding", "[0, 0, 9, 9]", None, "[0, 0, 9, 4]"),
        ("vqa", "lung", None, ""),
        ("grounding", "[0, 0, 9, 9]", None, "[0, 0, 9, 3]"),
    ]
    examples, judged = answered(rows)
    scores = score(examples, judged)
    assert list(scores["tasks"]) == ["vqa", "caption", "grounding"]
    assert scores["tasks"]["vqa"]["accuracy"] == 0.5
    assert scores["tasks"]["grounding"]["iou"] == pytest.approx((0.5 + 0.4) / 2)
    assert scores["accuracy"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert "iou" not in scores
    assert example_scores(examples, judged, headline=False).tolist() == [1, 1, 1, 0, 0]
    assert example_scores(examples, judged, headline=True).tolist() == pytest.approx([1, 0, 0.5, 0, 0.4])


def test_the_scores_of_a_single_task_are_on_top():
    scores = score(*answered([("caption", "a red circle", None, "a red circle")]))
    assert scores["tasks"]["caption"] == {name: value for name, value in scores.items() if name != "tasks"}
    assert score([], Answers((), ())) == {"tasks": {}}


def test_replies_are_parsed_as_by_published_code_and_compared_options_are_not_parsed():
    one = Example("e", "Which?", "no", label=0, options=("no", "yes"))
    two = Example("f", "Which?", "yes", label=1, options=("no", "yes"))
    chances = np.array([0.8, 0.2])
    compared = score([one, two], Answers((0, 0), (chances, chances), (None, None), "letter"))
    assert compared["auc_published"] == compared["auc"] == 0.5
    said = score([one, two], Answers((UNPARSED, 1), (None, None), ("Because", "(B) yes"), "letter"))
    # The published code finds the letter B in "Because".
    assert (said["accuracy"], said["unparsed"], said["accuracy_published"]) == (0.5, 0.5, 0.5)
    assert (said["auc"], said["auc_published"]) == (None, 0.5)
    unread = score([one, two], Answers((0, UNPARSED), (None, None), ("(A) no", "none"), "letter"))
    assert (unread["accuracy"], unread["auc_published"]) == (0.5, 1.0)  # silence ranks above "yes"
