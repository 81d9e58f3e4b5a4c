"""What the papers' published code reads and scores, worked by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from fedloom.tasks import TASKS, UNPARSED
from fedloom.tasks.published import first_character, first_letter
from fedloom.types import Example

LAW = settings(max_examples=60, deadline=None)
CHOICE = TASKS["choice"].published


def asked(label: int, options: int) -> Example:
    return Example("e", "Which?", str(label), label=label, options=tuple(map(str, range(options))))


def scores_of(rows, options):
    state = CHOICE.metrics.zero
    for label, answer in rows:
        state = CHOICE.metrics.add(state, asked(label, options), UNPARSED if answer < 0 else answer, None)
    return CHOICE.metrics.result(state)


def rows_of(options):
    return st.lists(
        st.tuples(st.integers(0, options - 1), st.integers(-1, options - 1)), min_size=1, max_size=40
    )


@LAW
@given(rows_of(2))
def test_the_published_auc_is_scikit_learns_on_hard_labels_with_failures_as_two(rows):
    truth, given_ = (np.array(column) for column in zip(*rows, strict=True))
    hard = np.where(given_ < 0, 2, given_)
    wanted = pytest.approx(roc_auc_score(truth, hard)) if len(set(truth.tolist())) == 2 else None
    assert scores_of(rows, 2)["auc_published"] == wanted
    if wanted is not None and (given_ >= 0).all():
        assert balanced_accuracy_score(truth, given_) == wanted


@LAW
@given(rows_of(5))
def test_the_published_f1_is_scikit_learns_with_failures_as_class_two(rows):
    truth, given_ = (np.array(column) for column in zip(*rows, strict=True))
    wanted = f1_score(truth, np.where(given_ < 0, 2, given_), average="macro", zero_division=0.0)
    found = scores_of(rows, 5)
    assert found["macro_f1_published"] == pytest.approx(wanted)
    assert found["auc_published"] is None


def test_silence_pays_where_failures_rank_highest():
    # By hand: of four pairs (negative, positive) the first ranking has 2 ties and 2 wins, the second 4 wins.
    assert scores_of([(0, 0), (0, 0), (1, 0), (1, 1)], 2)["auc_published"] == 0.75
    assert scores_of([(0, 0), (0, 0), (1, -1), (1, 1)], 2)["auc_published"] == 1.0
    assert scores_of([(0, 0), (0, -1), (1, 1), (1, 1)], 2)["auc_published"] == 0.5
    ours = TASKS["choice"].metrics
    state = ours.add(ours.add(ours.zero, asked(1, 2), UNPARSED, None), asked(0, 2), 0, None)
    assert ours.result(state)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("(B) hateful", 1),
        ("Answer: B", 1),
        ("ANSWER B", 1),
        ("The answer: D", 3),  # T is out of range
        ("Both of A", 1),  # a capital inside a word comes first
        ("E", None),
        ("b", None),
        ("", None),
    ],
)
def test_the_published_letter_is_the_first_capital_in_range(reply, label):
    found = first_letter(reply, 4)
    assert found == label if label is not None else found is UNPARSED
    assert CHOICE.parse(reply, asked(0, 4), answer_form="letter") is found or found == label


@pytest.mark.parametrize(
    ("reply", "character"),
    [
        ("The organ is liver.", "l"),
        ("liver", "l"),
        ("There are two", "t"),
        ("this", "t"),
        ("it is", "i"),
        ("", None),
    ],
)
def test_the_published_character_is_the_first_after_is(reply, character):
    assert first_character(reply) == (UNPARSED if character is None else character)


def test_a_first_character_is_enough_for_the_published_score():
    one = Example("e", "What?", "The organ is the liver.", task="vqa")
    task = TASKS["vqa"]
    for reply, published, ours in (("The organ is the lung.", 1.0, 0.0), ("It is a liver.", 0.0, 0.0)):
        answer = task.published.parse(reply, one, answer_form="text")
        state = task.published.metrics.add(task.published.metrics.zero, one, answer, None)
        assert task.published.metrics.result(state)["accuracy_published"] == published
        state = task.metrics.add(task.metrics.zero, one, task.parse(reply, one, answer_form="text"), None)
        assert task.metrics.result(state)["accuracy"] == ours


def test_options_with_the_same_first_character_are_alike_to_the_published_code():
    one = Example("e", "Which?", "smile", label=1, options=("sun", "smile", "fox"))
    assert [
        CHOICE.parse(reply, one, answer_form="text") for reply in ("sun", "fox", "It is stone", "zoo")
    ] == [
        1,
        2,
        1,
        UNPARSED,
    ]


def test_published_boxes_that_cannot_be_read_are_left_out():
    task, one = TASKS["grounding"], Example("e", "Where?", "[0, 0, 9, 9]", task="grounding")
    ours, published = task.metrics.zero, task.published.metrics.zero
    for reply in ("[0, 0, 9, 4]", "nowhere", "[0, 0, 9, 9] or [1, 1, 2, 2]"):
        ours = task.metrics.add(ours, one, task.parse(reply, one, answer_form="text"), None)
        answer = task.published.parse(reply, one, answer_form="text")
        published = task.published.metrics.add(published, one, answer, None)
    assert task.metrics.result(ours)["iou"] == pytest.approx(0.5 / 3)
    assert task.published.metrics.result(published) == {
        "iou_published": pytest.approx((0.5 + 1) / 2),
        "dropped_published": pytest.approx(1 / 3),
    }
