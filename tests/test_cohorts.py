"""Experiments whose cohorts are too small for what aggregates their updates are refused, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedloom.experiment import Experiment
from fedloom.types import UserError


def experiment(clients: int, methods: list[str], cohort: int | None = None, **algorithms: Any) -> Experiment:
    values = {
        "scenario": {"clients": clients},
        "train": {"cohort": cohort},
        "methods": methods,
        "algorithms": algorithms,
    }
    return Experiment.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("clients", "cohort", "method", "algorithms", "reason"),
    [
        (4, None, "fedavg+krum", {}, r"methods\[0\]: .*Krum with f = 1 .*= 5 .*there are 4"),
        (9, 4, "fedavg+krum", {}, r"methods\[0\]: .*Krum with f = 1 .*= 5 .*there are 4"),
        (6, None, "fedavg+krum", {"krum": {"f": 2}}, r"algorithms\.krum: .*= 7 .*there are 6"),
        (2, None, "fedadam+median", {}, r"median with f = 1 .*= 3 .*there are 2"),
        (6, None, "fedavg+krum+bucketing", {}, "make 3 buckets of 2.*Krum .*= 5"),
        (9, None, "fedavg+median+bucketing", {"bucketing": {"size": 5}}, "make 2 buckets of 5.*median"),
        (4, None, "fedavg+krum", {"krum": {"f": 0, "keep": 5}}, "Krum keeps 5 updates"),
    ],
)
def test_too_small_cohorts(
    clients: int, cohort: int | None, method: str, algorithms: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        experiment(clients, [method], cohort, **algorithms)


@pytest.mark.parametrize(
    ("clients", "method", "algorithms"),
    [
        (4, "fedavg+krum", {"krum": {"f": 0, "keep": 2}}),
        (2, "fedavg+geometric-median", {"geometric-median": {"f": 0, "steps": 5}}),
        (5, "fedavg+krum", {}),
        (9, "fedavg+krum+bucketing", {}),
        (2, "fedavg+clip", {"clip": {"bound": 2.0}}),
    ],
)
def test_arguments_are_right_together_that_would_not_be_alone(
    clients: int, method: str, algorithms: dict[str, Any]
) -> None:
    assert experiment(clients, ["fedavg", method], **algorithms).methods == ("fedavg", method)


def test_each_of_several_mistakes_has_its_place() -> None:
    with pytest.raises(UserError) as found:
        experiment(5, ["fedadam"], fedadam={"lr": -1.0, "beta1": "x"})
    assert "lr is -1.0" in str(found.value)
    assert "beta1 is 'x'" in str(found.value)
