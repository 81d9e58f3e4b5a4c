"""Ranks over tasks and gains against training alone, worked by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from fedloom.report.federation_gain import client_gains, compare_methods, mean_ranks, relative_gain

METHODS = "abcd"
scores = st.fixed_dictionaries(
    {name: st.lists(st.integers(0, 3), min_size=3, max_size=3) for name in METHODS}
)


@given(scores)
def test_mean_ranks_are_scipys(columns):
    by_task = {name: dict(zip("xyz", map(float, values), strict=True)) for name, values in columns.items()}
    table = np.array([columns[name] for name in METHODS])
    expected = np.mean([rankdata(-table[:, task]) for task in range(3)], axis=0)
    assert mean_ranks(by_task) == pytest.approx(dict(zip(METHODS, expected, strict=True)))
    # However many tasks and ties: ranks of n methods average (n + 1) / 2.
    assert sum(mean_ranks(by_task).values()) == pytest.approx(len(METHODS) * (len(METHODS) + 1) / 2)


@given(scores, st.floats(0.1, 100))
def test_ranks_do_not_depend_on_the_scale_of_a_score(columns, factor):
    def ranks(scale):
        return mean_ranks({name: {"x": scale * v[0], "y": v[1], "z": v[2]} for name, v in columns.items()})

    assert ranks(1.0) == ranks(factor)


def test_a_method_without_a_score_takes_no_rank():
    ranks = mean_ranks({"a": {"x": 0.2, "y": 0.1}, "b": {"x": 0.9, "y": None}, "c": {"x": 0.1, "y": 0.3}})
    assert ranks == {"a": 1.5, "b": None, "c": 1.5}
    assert mean_ranks({"a": {}}) == {"a": None}
    assert mean_ranks({}) == {}


def test_gains_by_hand():
    local = {
        "client_tasks": [{"vqa": 0.5}, {"vqa": 0.4, "caption": 2.0}, {"iou": 0.0}, {"vqa": 0.5, "iou": 0.0}]
    }
    ours = {
        "client_tasks": [{"vqa": 0.6}, {"vqa": 0.2, "caption": 3.0}, {"iou": 0.3}, {"vqa": 1.0, "iou": 0.1}]
    }
    # A fifth more; half less and half more, together nothing; nothing to compare with; twice as much.
    assert client_gains(ours, local) == [pytest.approx(0.2), pytest.approx(0.0), None, 1.0]
    assert client_gains(local, local) == [0.0, 0.0, None, 0.0]
    assert client_gains({}, local) == [] == client_gains(ours, {})
    assert relative_gain(None, 0.5) is None


def test_a_comparison_names_each_tasks_score():
    def of(accuracy: float, cider: float):
        tasks = {"vqa": {"accuracy": accuracy}, "caption": {"cider": cider, "accuracy": 0.0}}
        return {"accuracy": 0.3, "tasks": tasks, "client_tasks": [{"vqa": accuracy}, {"caption": cider}]}

    comparison = compare_methods({"local": of(0.5, 1.0), "fedavg": of(0.75, 0.5)})
    assert comparison["headlines"] == {"vqa": "accuracy", "caption": "cider"}
    assert comparison["tasks"]["fedavg"] == {"vqa": 0.75, "caption": 0.5}
    assert comparison["mean_rank"] == {"local": 1.5, "fedavg": 1.5}
    assert comparison["gain"] == {"fedavg": [0.5, -0.5]}
    assert compare_methods({"fedavg": of(1, 1)})["gain"] == {}
    assert compare_methods({"fedavg": {"accuracy": 0.5}})["headlines"] == {}
