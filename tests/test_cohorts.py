"""Experiments whose cohorts are too small for what aggregates their updates are refused, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedloom.experiment.experiment import Experiment
from fedloom.system.errors import UserError


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
        (4, None, "fedavg+krum", {"krum": {"f": 0, "keep": 5}}, "Krum is set to keep 5 updates"),
    ],
)
def test_too_small_cohorts(
    clients: int, cohort: int | None, method: str, algorithms: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        experiment(clients, [method], cohort, **algorithms)


@pytest.mark.parametrize(
    ("cohort", "method", "algorithms", "reason"),
    [
        (None, "fedavg+ranks", {}, r"methods\[0\]: .*ranks lists 0 numbers for 4 clients"),
        (None, "fedavg+layers+clip", {}, r"methods\[0\]: .*budgets lists 0 .*such as \[1, 1, 1, 1\]"),
        # The last slots of the rank are those of two clients, and a median with f = 1 needs three.
        (
            None,
            "fedavg+median+ranks",
            {"ranks": {"ranks": [4, 4, 8, 8]}},
            "ranks and median .*= 3 .*there are 2",
        ),
        (
            3,
            "fedavg+trimmed-mean+layers",
            {"layers": {"budgets": [1, 1, 2, 2]}},
            "layers and trimmed-mean .*= 3 ",
        ),
    ],
)
def test_parts_that_no_round_could_use_are_refused(
    cohort: int | None, method: str, algorithms: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        experiment(4, [method], cohort, **algorithms)


def test_a_value_that_enough_clients_report_or_none_is_aggregated() -> None:
    assert experiment(4, ["fedavg+median+ranks"], ranks={"ranks": [4, 8, 8, 8]})
    assert experiment(4, ["fedavg+median+layers"], layers={"budgets": [2, 2, 2, 2]})


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
def test_arguments_can_be_right_only_together(clients: int, method: str, algorithms: dict[str, Any]) -> None:
    assert experiment(clients, ["fedavg", method], **algorithms).methods == ("fedavg", method)


def test_each_of_several_mistakes_has_its_place() -> None:
    with pytest.raises(UserError) as caught:
        experiment(5, ["fedadam"], fedadam={"lr": -1.0, "beta1": "x"})
    assert "lr is -1.0" in str(caught.value)
    assert "beta1 is 'x'" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("fedavg+ranks+krum", "krum needs every client to report the full vector"),
        ("fedavg+krum+ranks", "krum needs every client to report the full vector"),
        ("fedavg+dp+median", "the noise of dp fits the largest change of a mean"),
        ("fedavg+bucketing+dp", "the noise of dp fits .* and bucketing mixes them"),
        ("scaffold+median", "the aggregate of scaffold belongs to it"),
        ("scaffold+dp-sgd", "what clients of scaffold send besides their delta would carry no noise"),
        ("fedkseed+proximal", "clients of fedkseed step along drawn directions"),
    ],
)
def test_a_reason_names_its_part(method: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"do not go together, since {reason}"):
        experiment(5, [method])
