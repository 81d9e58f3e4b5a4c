"""Our metrics against scikit-learn's, and against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from fedloom.tasks import UNPARSED
from fedloom.tasks.grounding import GROUNDING, iou
from fedloom.tasks.metrics import auc, classification, macro_f1, token_f1
from fedloom.tasks.vqa import VQA
from fedloom.types import Example

C = 4
METRIC = classification(lambda example: example.label or 0)
labels = st.integers(0, C - 1)
pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=40)
with_silence = st.lists(st.tuples(labels, st.integers(-1, C - 1)), min_size=1, max_size=40)
# Few different values, so that ties are common.
scored = st.lists(
    st.tuples(labels, st.lists(st.integers(0, 4), min_size=C, max_size=C)), min_size=1, max_size=40
)


def asked(label: int, options: int = C) -> Example:
    return Example("e", "Which?", str(label), label=label, options=tuple(map(str, range(options))))


def result(rows):
    state = METRIC.zero
    for label, answer, scores in rows:
        state = METRIC.add(state, asked(label), UNPARSED if answer == -1 else answer, scores)
    return METRIC.result(state)


@given(pairs)
def test_accuracy_and_macro_f1_are_scikit_learns(rows):
    truth, given_ = zip(*rows, strict=True)
    scores = result([(label, answer, None) for label, answer in rows])
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, given_))
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, given_, average="macro"))
    assert scores["unparsed"] == 0.0


@given(with_silence)
def test_an_unparsed_answer_counts_as_scikit_learns_row_of_all_wrong_options(rows):
    truth, given_ = (np.array(column) for column in zip(*rows, strict=True))
    silent = given_ == -1
    is_true = np.eye(C, dtype=int)[truth]
    is_given = np.where(silent[:, None], 1 - is_true, np.eye(C, dtype=int)[given_])
    classes = np.arange(C) if silent.any() else np.union1d(truth, given_)
    wanted = f1_score(is_true, is_given, labels=classes, average="macro", zero_division=0.0)
    assert macro_f1(truth, given_, C) == pytest.approx(wanted)
    scores = result([(label, answer, None) for label, answer in rows])
    assert scores["unparsed"] == pytest.approx(silent.mean())
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, given_))


@given(with_silence)
def test_an_unparsed_answer_never_counts_milder_than_scikit_learn_counts_an_unknown_label(rows):
    truth, given_ = (np.array(column) for column in zip(*rows, strict=True))
    classes = np.union1d(truth, given_[given_ >= 0])
    wanted = f1_score(truth, given_, labels=classes, average="macro", zero_division=0.0)
    assert macro_f1(truth, given_, C) <= wanted + 1e-12


@given(scored)
def test_auc_is_the_mean_of_scikit_learns_one_vs_rest_areas(rows):
    truth = np.array([label for label, _ in rows])
    scores = np.array([values for _, values in rows]) / 4
    areas = [
        roc_auc_score(truth == label, scores[:, label])
        for label in range(C)
        if 0 < (truth == label).sum() < len(truth)
    ]
    ours = result([(label, 0, row) for label, row in zip(truth.tolist(), scores, strict=True)])["auc"]
    assert ours == (pytest.approx(np.mean(areas)) if areas else None)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40))
def test_auc_of_two_options_is_the_roc_auc(rows):
    truth = np.array([int(label) for label, _ in rows])
    positive = np.array([value for _, value in rows]) / 8
    ours = auc(truth, np.stack([1 - positive, positive], axis=1))
    wanted = roc_auc_score(truth, positive) if len(set(truth)) == 2 else None
    assert ours == (pytest.approx(wanted) if wanted is not None else None)


def test_auc_agrees_with_scikit_learns_own_average_where_every_class_occurs():
    rng = np.random.default_rng(0)
    truth = np.arange(60) % C
    scores = rng.dirichlet(np.ones(C), size=60)
    assert auc(truth, scores) == pytest.approx(
        roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    )


def test_auc_needs_every_score():
    row = np.full(C, 0.25)
    assert result([(0, 0, row), (1, 1, None)])["auc"] is None
    assert result([(0, 0, row), (1, 1, np.full(3, 0.3))])["auc"] is None
    assert result([(0, 0, row), (1, 1, np.full(C, np.nan))])["auc"] is None
    assert result([(0, 0, row), (1, 1, row)])["auc"] == 0.5


def test_numpy_integers_are_labels():
    assert result([(2, np.int64(2), None)])["accuracy"] == 1.0


def test_silence_in_place_of_a_wrong_answer_worked_by_hand():
    # Naming class 0 wrongly costs it precision; with −1 dropped instead of counted, F1 would rise to 1/2.
    assert macro_f1(np.array([0, 1]), np.array([0, 0]), 2) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(np.array([0, 1]), np.array([0, -1]), 2) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ("a b", "a b", 1.0),
        ("a b", "c", 0.0),
        ("a a b", "a b b", 2 / 3),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("a", "a b c", 0.5),
    ],
)
def test_token_f1_worked_by_hand(first, second, wanted):
    assert token_f1(first, second) == pytest.approx(wanted)
    assert token_f1(second, first) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), 1.0),
        ((0, 0, 9, 9), (0, 0, 9, 4), 0.5),
        ((0, 0, 9, 9), (5, 0, 14, 9), 50 / 150),
        ((0, 0, 0, 0), (1, 0, 1, 0), 0.0),  # neighbors share nothing, though ends are included
        ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
    ],
)
def test_iou_worked_by_hand(first, second, wanted):
    assert iou(first, second) == pytest.approx(wanted)
    assert iou(second, first) == pytest.approx(wanted)


def test_boxes_count_as_right_from_one_half_and_unparsed_ones_as_nothing():
    one = Example("e", "Where?", "[0, 0, 9, 9]", task="grounding")
    state = GROUNDING.metrics.zero
    for answer in ((0, 0, 9, 9), (0, 0, 9, 4), (0, 0, 9, 3), UNPARSED):
        state = GROUNDING.metrics.add(state, one, answer, None)
    scores = GROUNDING.metrics.result(state)
    hits = {"accuracy": 0.5, "accuracy@0.25": 0.75, "accuracy@0.75": 0.25}
    assert scores == {**hits, "iou": pytest.approx((1 + 0.5 + 0.4) / 4), "unparsed": 0.25}


@pytest.mark.parametrize(
    ("given_", "right"),
    [
        ("The cat.", "cat"),
        ("two", "2"),
        ("1,000", "1000"),
        ("None", "zero"),
        ("don't", "dont"),
        ("T-shirt", "t shirt"),
        ("(.5)", ".5"),
        ("-.5", "−.5"),
        ("p.5", "p 5"),
    ],
)
def test_vqa_answers_are_equal_after_normalization(given_, right):
    one = Example("e", "What?", right, task="vqa")
    state = VQA.metrics.add(VQA.metrics.zero, one, VQA.parse(given_, one, answer_form="text"), None)
    assert VQA.metrics.result(state) == {"accuracy": 1.0, "token_f1": 1.0, "unparsed": 0.0}


@pytest.mark.parametrize(("given_", "right"), [("3.5", "35"), ("cats", "cat"), ("1.2", "12"), (".5", "5")])
def test_vqa_answers_that_differ(given_, right):
    one = Example("e", "What?", right, task="vqa")
    state = VQA.metrics.add(VQA.metrics.zero, one, VQA.parse(given_, one, answer_form="text"), None)
    assert VQA.metrics.result(state)["accuracy"] == 0.0
