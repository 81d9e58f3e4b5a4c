"""The agreement of two models on the same questions, and the intervals that it narrows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedloom.config.schema import Scenario
from fedloom.report.client_verdicts import verdict_on
from fedloom.report.confidence_intervals import difference_interval
from fedloom.runs.paired_answers import agreement, read_example_scores
from fedloom.scenarios.plan import build_plan
from fedloom.types import Example

TEST = [Example(f"e{k}", "?", "ab"[k % 2], None, "t", k % 2, None, ("a", "b")) for k in range(8)]
TRAIN = [
    Example("t0", "?", "a", None, "t", 0, None, ("a", "b")),
    Example("t1", "?", "b", None, "t", 1, None, ("a", "b")),
]
PLAN = build_plan(TRAIN, Scenario(clients=1), 0)


def scores_of(alone, ours):
    return {
        "local": {0: np.array([alone], float)},
        "fedavg": {None: np.array([ours], float)},
    }


def test_the_correlation_of_unweighted_questions_is_numpys():
    alone, ours = [1, 1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 1]
    found = agreement(TRAIN, TEST, PLAN, scores_of(alone, ours))["fedavg"]
    expected = np.corrcoef(alone, ours)[0, 1]
    assert found["clients"][0]["choice"] == pytest.approx(expected) == found["own"]["choice"]


def test_equal_and_opposite_answers():
    alone = [1, 0, 1, 1, 0, 0, 1, 0]
    equal = agreement(TRAIN, TEST, PLAN, scores_of(alone, alone))["fedavg"]
    opposite = agreement(TRAIN, TEST, PLAN, scores_of(alone, [1 - x for x in alone]))["fedavg"]
    assert equal["own"]["choice"] == pytest.approx(1) and opposite["own"]["choice"] == pytest.approx(-1)


def test_a_perfect_model_has_no_correlation():
    found = agreement(TRAIN, TEST, PLAN, scores_of([1] * 8, [1, 0] * 4))
    assert found["fedavg"] == {"own": {}, "clients": [{}]}


def test_without_training_alone_there_is_none():
    assert agreement(TRAIN, TEST, PLAN, {"fedavg": {None: np.ones((1, 8))}}) == {}


def test_fine_tuned_models_are_paired_with_models_that_were_fine_tuned_alone():
    """Its answers equal those of fine-tuned training alone, and are opposite to those of plain training alone."""
    right = np.array([[1, 0, 1, 1, 0, 0, 1, 0]], float)
    scores = {"local": {0: 1 - right}, "local+finetune": {0: right}, "fedavg+finetune": {0: right}}
    found = agreement(TRAIN, TEST, PLAN, scores)
    assert found["fedavg+finetune"]["alone"] == "local+finetune"
    assert found["fedavg+finetune"]["own"]["choice"] == pytest.approx(1)
    assert "alone" not in found["local+finetune"]
    assert found["local+finetune"]["own"]["choice"] == pytest.approx(-1)


def test_scores_are_read_from_the_predictions_of_methods(tmp_path):
    for method, client, right in (("local", 0, 1.0), ("fedavg", None, 0.0)):
        file = tmp_path / "methods" / method / "predictions" / "00000000.jsonl"
        file.parent.mkdir(parents=True)
        rows = ({"client": client, "slice": "text", "example": one.id, "score": right} for one in TEST)
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    found = read_example_scores(tmp_path, ["local", "fedavg", "linear"], TEST)
    assert list(found) == ["local", "fedavg"]
    assert found["local"][0].tolist() == [[1.0] * 8] and found["fedavg"][None].tolist() == [[0.0] * 8]


def test_a_paired_interval_by_hand():
    """Newcombe's formula with a correlation of one half, from Wilson's limits of 40 and 30 of 50."""
    low, high = difference_interval(0.8, 0.6, 50, correlation=0.5)
    a, b = 0.8 - 0.669631, 0.724 - 0.6  # to Wilson's lower limit of 40 and upper limit of 30 of 50
    assert low == pytest.approx(0.2 - np.sqrt(a * a - a * b + b * b), abs=1e-3)
    wide = difference_interval(0.8, 0.6, 50)
    assert wide[0] < low < 0.2 < high < wide[1]


def test_agreement_narrows_the_interval_of_a_client():
    result = {
        "scores": {
            name: {"tasks": {"choice": {}}, "client_tasks": [{"choice": value}]}
            for name, value in (("local", 0.6), ("fedavg", 0.7))
        },
        "independent_questions": {"own": {"choice": 100}, "clients": [{"choice": 100}]},
    }
    paired = {**result, "agreement": {"fedavg": {"own": {"choice": 0.8}, "clients": [{"choice": 0.8}]}}}
    wide, narrow = (verdict_on(one, "fedavg") for one in (result, paired))
    assert wide is not None and narrow is not None
    for one, other in ((wide.interval, narrow.interval), (wide.gains[0].interval, narrow.gains[0].interval)):
        assert one is not None and other is not None and one[0] < other[0] < other[1] < one[1]
    assert wide.gained == () and narrow.gained == (0,)
