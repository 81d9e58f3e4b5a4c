"""Choices of a sweep by validation score: hand-worked, independent of test scores, with missing cells named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedloom.report.sweeps.axis_comparisons import comparisons
from fedloom.report.sweeps.chosen_settings import choices, with_chosen_values
from fedloom.report.sweeps.sweep_page import render_sweep, write_sweep_report
from fedloom.report.sweeps.sweep_results import SweepRun, read_sweep
from fedloom.report.sweeps.sweep_tables import mean_table
from fedloom.report.sweeps.terminal_tables import terminal_tables
from fedloom.system.errors import UserError

AXES: dict[str, list[Any]] = {"scenario": ["even", "gaps"], "train.lr": [0.1, 0.2, 0.3], "seed": [0, 1]}
METHODS = ["local", "fedavg"]
Score = Callable[[Mapping[str, Any], str], float | None]

VALIDATION = {  # scenario → method → mean validation score of each rate; seeds lie .1 to either side
    "even": {"local": [0.5, 0.6, 0.4], "fedavg": [0.3, 0.7, 0.7]},
    "gaps": {"local": [0.5, 0.5, 0.5], "fedavg": [0.2, 0.3, 0.4]},
}
BY_HAND = {("even", "local"): 0.2, ("even", "fedavg"): 0.2, ("gaps", "local"): 0.1, ("gaps", "fedavg"): 0.3}


def by_hand(values: Mapping[str, Any], method: str) -> float:
    place = AXES["train.lr"].index(values["train.lr"])
    return VALIDATION[values["scenario"]][method][place] + (0.1 if values["seed"] else -0.1)


def test_score(values: Mapping[str, Any], method: str) -> float:
    """Return a test score that is higher for small rates, which validation mostly does not choose."""
    return 0.9 - values["train.lr"] + 0.01 * values.get("seed", 0) + 0.05 * (method == "fedavg")


test_score.__test__ = False  # type: ignore[attr-defined]


def make_sweep(
    folder: Path,
    validation: Score = by_hand,
    test: Score = test_score,
    failed: tuple[int, ...] = (),
    axes: Mapping[str, list[Any]] = AXES,
    choose: tuple[str, ...] = ("train.lr",),
) -> Path:
    """Write a sweep with a validation set; `failed` are places of cells."""
    points: list[dict[str, Any]] = [{}]
    for axis, labels in axes.items():
        points = [{**point, axis: label} for point in points for label in labels]
    cells = []
    for place, values in enumerate(points):
        row = {
            "name": f"cell {place}",
            "values": values,
            "digest": f"{place:064x}",
            "folder": f"cells/{place}",
        }
        if place in failed:
            cells.append({**row, "state": "failed", "error": "a reason"})
            continue
        cells.append({**row, "state": "done"})
        validation_scores = {
            method: {"score": validation(values, method), "metric": "accuracy"} for method in METHODS
        }
        result = {
            "scores": {method: {"accuracy": test(values, method)} for method in METHODS},
            "main": "fedavg",
            "validation": {
                "from": 0.1,
                "examples": 40,
                "without": 0,
                "round": "last",
                "methods": validation_scores,
            },
        }
        (folder / f"cells/{place}").mkdir(parents=True)
        (folder / f"cells/{place}/result.json").write_text(json.dumps(result))
    head = {"name": "made-up", "digest": "ab" * 32, "quick": False, "axes": dict(axes), "published": None}
    (folder / "sweep.json").write_text(json.dumps({**head, "choose": list(choose), "cells": cells}))
    return folder


def rates(sweep: SweepRun) -> dict[tuple[str, str], Any]:
    return {(one.row, one.method): one.values and one.values["train.lr"] for one in choices(sweep)}


def test_the_value_with_the_highest_mean_validation_score_is_chosen_and_the_first_of_equals(
    tmp_path: Path,
) -> None:
    sweep = read_sweep(make_sweep(tmp_path))
    assert rates(sweep) == BY_HAND
    for one in choices(sweep):
        assert one.validation == pytest.approx(max(VALIDATION[one.row][one.method]))
        assert one.values is not None and one.test is not None
        ours = [test_score({"seed": seed, **one.values}, one.method) for seed in AXES["seed"]]
        assert (one.test.mean, one.test.seeds) == (pytest.approx(sum(ours) / 2), 2)
        assert one.missing == ()


def test_test_scores_do_not_influence_choices(tmp_path: Path) -> None:
    """Choices are the same for random test scores."""
    for number in range(20):
        draw = random.Random(number)
        sweep = read_sweep(make_sweep(tmp_path / str(number), test=lambda _, __, draw=draw: draw.random()))
        assert rates(sweep) == BY_HAND


def test_validation_scores_alone_decide(tmp_path: Path) -> None:
    """If learning rates swap their validation scores, the choice follows."""

    def swapped(values: Mapping[str, Any], method: str) -> float:
        return by_hand({**values, "train.lr": {0.1: 0.3, 0.2: 0.2, 0.3: 0.1}[values["train.lr"]]}, method)

    chosen_rates = rates(read_sweep(make_sweep(tmp_path, swapped)))
    assert chosen_rates["gaps", "fedavg"] == 0.1
    assert chosen_rates["even", "fedavg"] == 0.1  # now the first of the two equals


def test_a_value_with_a_missing_cell_is_not_chosen_and_the_cell_is_named(tmp_path: Path) -> None:
    sweep = read_sweep(make_sweep(tmp_path, failed=(3,)))  # even, 0.2, seed 1
    chosen_rates = rates(sweep)
    assert chosen_rates == {**BY_HAND, ("even", "local"): 0.1, ("even", "fedavg"): 0.3}
    assert {one.missing for one in choices(sweep) if one.row == "even"} == {("cell 3",)}
    assert {one.missing for one in choices(sweep) if one.row == "gaps"} == {()}
    assert "cell 3" in render_sweep(sweep)
    assert "cell 3" in " ".join(terminal_tables(sweep).split())


def test_a_method_without_a_validation_score_has_no_choice(tmp_path: Path) -> None:
    def lacking(values: Mapping[str, Any], method: str) -> float | None:
        return None if method == "fedavg" and values["scenario"] == "even" else by_hand(values, method)

    sweep = read_sweep(make_sweep(tmp_path, lacking))
    (one,) = [one for one in choices(sweep) if (one.row, one.method) == ("even", "fedavg")]
    assert (one.values, one.validation, one.test) == (None, None, None)
    assert one.missing == tuple(f"cell {place}" for place in range(6))
    left = mean_table(with_chosen_values(sweep, choices(sweep)))
    assert left.rows[0][left.columns.index("FedAvg")] == "—"
    methods = [one for one in comparisons(with_chosen_values(sweep, choices(sweep))) if one.by is None]
    assert [len(one.result.missing) for one in methods if one.factor.kind == "method"] == [2]
    render_sweep(sweep)


@pytest.mark.parametrize("failed", [tuple(range(6)), tuple(range(12)), (0, 2, 4, 7, 9, 11)])
def test_no_missing_cell_stops_the_report(failed: tuple[int, ...], tmp_path: Path) -> None:
    sweep = read_sweep(make_sweep(tmp_path, failed=failed))
    assert all(one.values is None or one.row == "gaps" for one in choices(sweep))
    render_sweep(sweep)
    terminal_tables(sweep)


def test_only_chosen_values_are_compared(tmp_path: Path) -> None:
    sweep = read_sweep(make_sweep(tmp_path))
    reduced = with_chosen_values(sweep, choices(sweep))
    assert list(reduced.axes) == ["scenario", "seed"]
    assert len(reduced.cells) == 4
    for cell in reduced.cells:
        for method in METHODS:
            values = {**cell.values, "train.lr": BY_HAND[cell.values["scenario"], method]}
            assert cell.scores[method] == {"accuracy": test_score(values, method)}
    assert {one.factor.name for one in comparisons(reduced)} == {"scenario", "method"}
    assert with_chosen_values(replace(sweep, choose=()), []).cells == sweep.cells


def test_values_that_were_not_chosen_change_no_comparison(tmp_path: Path) -> None:
    def other(values: Mapping[str, Any], method: str) -> float:
        same = values["train.lr"] == BY_HAND[values["scenario"], method]
        return test_score(values, method) if same else 0.99

    results = [
        write_sweep_report(make_sweep(tmp_path / str(place), test=one))
        for place, one in enumerate((test_score, other))
    ]
    assert results[0]["comparisons"]
    assert results[0]["comparisons"] == results[1]["comparisons"]
    assert results[0]["choices"] == results[1]["choices"]


def test_the_report_and_its_json_show_the_choices(tmp_path: Path) -> None:
    result = write_sweep_report(make_sweep(tmp_path))
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["choose"] == ["train.lr"]
    values = {(one["row"], one["method"]): one["values"] for one in result["choices"]}
    assert values == {place: {"train.lr": rate} for place, rate in BY_HAND.items()}
    page = (tmp_path / "report.html").read_text()
    assert "Chosen on the validation set" in page
    assert "at its chosen values" in page


def test_several_axes_are_chosen_together_and_no_other_axis_is_needed(tmp_path: Path) -> None:
    axes = {"train.lr": [0.1, 0.2], "train.epochs": [1, 2]}
    scores = {(0.1, 1): 0.3, (0.1, 2): 0.6, (0.2, 1): 0.5, (0.2, 2): 0.6}
    sweep = read_sweep(
        make_sweep(
            tmp_path,
            lambda values, _: scores[values["train.lr"], values["train.epochs"]],
            axes=axes,
            choose=("train.lr", "train.epochs"),
        )
    )
    assert [one.values for one in choices(sweep)] == [{"train.lr": 0.1, "train.epochs": 2}] * 2
    assert [one.row for one in choices(sweep)] == ["made-up"] * 2
    render_sweep(sweep)
    terminal_tables(sweep)


@pytest.mark.parametrize("axis", ["lr", "seed"])
def test_a_sweep_that_chooses_along_no_axis_is_refused(axis: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"\"choose\" names '{axis}'"):
        read_sweep(make_sweep(tmp_path, choose=(axis,)))
