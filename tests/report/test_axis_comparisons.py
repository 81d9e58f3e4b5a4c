"""Paired comparisons of a sweep along axes, methods and parts: each task has its own score, nothing is left out silently."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import pytest

from fedloom.report.significance import Estimate
from fedloom.report.sweeps.axis_comparisons import Comparison, comparison_json, comparisons
from fedloom.report.sweeps.comparison_tables import (
    explanation,
    group_by_factor,
    overall_table,
    split_tables,
    terminal_lines,
)
from fedloom.report.sweeps.difference_charts import paired_chart
from fedloom.report.sweeps.sweep_page import render_sweep
from fedloom.report.sweeps.sweep_results import CellRun, SweepRun
from fedloom.report.sweeps.sweep_summary import sweep_summary
from fedloom.report.sweeps.sweep_tables import mean_table

Values = Mapping[str, Any]
HEADLINES = {"choice": "accuracy", "vqa": "accuracy", "grounding": "iou", "caption": "cider"}
METHODS = ("local", "fedavg", "fedyogi", "fedyogi+prompt", "fedyogi+adaptive", "fedyogi+prompt+adaptive")
AXES = {"strategy.name": ["connector", "lora"], "data.task": ["looks", "tells"], "seed": [0, 1, 2]}
TASKS = {"looks": "grounding", "tells": "caption"}


def swept(
    axes: Mapping[str, list[Any]],
    methods: tuple[str, ...],
    score: Callable[[Values, str], float | None],
    tasks: Callable[[Values], list[str]] = lambda values: ["choice"],
    failed: Callable[[Values], bool] = lambda values: False,
) -> SweepRun:
    """Make a sweep whose headline scores are a function of a cell's values and the method."""
    cells = []
    for labels in itertools.product(*axes.values()):
        values = dict(zip(axes, labels, strict=True))
        name = ", ".join(map(str, labels))
        if failed(values):
            cells.append(CellRun(name, values, "", name, "failed", "a reason", None))
            continue
        scores: dict[str, Any] = {}
        for method in methods:
            by_task = {
                task: {HEADLINES[task]: score(values, method), "accuracy": 0.5} for task in tasks(values)
            }
            for task in by_task:
                by_task[task][HEADLINES[task]] = score(values, method)
            scores[method] = {**(by_task[tasks(values)[0]] if len(by_task) == 1 else {}), "tasks": by_task}
        cells.append(CellRun(name, values, "", name, "done", None, {"scores": scores, "main": None}))
    return SweepRun("made-up", "ab" * 32, False, axes, tuple(cells), None)


def find(sweep: SweepRun, factor: str, value: str, **more: Any) -> Comparison:
    (match,) = [
        one
        for one in comparisons(sweep)
        if (one.factor.name, one.value, one.by) == (factor, value, more.get("by"))
        and more.get("task", one.measure.task) == one.measure.task
    ]
    return match


def gains(values: Values, method: str) -> float:
    """Return a score with which LoRA loses 10 points on one task and gains 20 on the other, a little more or less with each
    seed; seeds shift all scores."""
    lora, seed = values["strategy.name"] == "lora", values["seed"]
    return 0.5 + 0.05 * seed + lora * ((-0.1 if values["data.task"] == "looks" else 0.2) + 0.001 * (seed - 1))


HALF = 4.303 / sqrt(3) * 0.001
"""Half the width of the interval of LoRA's gains over three seeds."""


def test_tasks_keep_their_own_scores_apart() -> None:
    sweep = swept(AXES, ("fedavg",), gains, lambda values: [TASKS[values["data.task"]]])
    results = comparisons(sweep)
    assert [(one.measure, one.result.verdict) for one in results] == [
        (("grounding", "iou", False), "worse"),
        (("caption", "cider", False), "better"),
    ]
    assert [one.result.estimate for one in results] == [
        Estimate(pytest.approx(-0.1), pytest.approx(HALF), 3),
        Estimate(pytest.approx(0.2), pytest.approx(HALF), 3),
    ]
    assert {one.factor.name for one in results} == {"strategy.name"}  # tasks share no score to compare
    assert "Not compared: data.task" in render_sweep(sweep)


def test_every_task_of_a_cell_is_compared_by_itself() -> None:
    axes = {"tasks": ["one each", "mixed"], "seed": [0, 1]}
    sweep = swept(axes, ("fedavg",), lambda values, method: 0.5, lambda values: ["choice", "caption"])
    results = comparisons(sweep)
    assert [one.measure for one in results] == [("choice", "accuracy", False), ("caption", "cider", False)]
    assert [one.result.same for one in results] == [2, 2]


def test_one_score_is_averaged_over_the_other_axes_and_split_by_each() -> None:
    sweep = swept(AXES, ("fedavg",), gains)
    overall = find(sweep, "strategy.name", "lora").result
    assert overall.estimate == Estimate(pytest.approx(0.05), pytest.approx(HALF), 3)
    assert (overall.better, overall.worse) == (3, 3)
    by_task = {
        label: find(sweep, "strategy.name", "lora", by=("data.task", label)).result.verdict
        for label in ("looks", "tells")
    }
    assert by_task == {"looks": "worse", "tells": "better"}
    assert find(sweep, "data.task", "tells").factor.reference == "looks"


def test_only_federated_methods_are_compared_along_an_axis() -> None:
    def score(values: Values, method: str) -> float:
        return 0.5 + (values["how"] == "b") * {"local": 0.4, "fedavg": 0.1, "fedprox": 0.2}[method]

    sweep = swept({"how": ["a", "b"], "seed": [0, 1]}, ("local", "fedavg", "fedprox"), score)
    comparison = find(sweep, "how", "b")
    assert comparison.result.estimate == Estimate(pytest.approx(0.15), pytest.approx(0, abs=1e-9), 2)
    assert find(sweep, "how", "b", by=("method", "fedprox")).result.better == 2
    alone = swept({"how": ["a", "b"], "seed": [0]}, ("local",), score)
    assert find(alone, "how", "b").result.verdict == "one seed"


def test_methods_are_compared_with_fedavg_and_parts_with_the_methods_without_them() -> None:
    levels = dict(zip(METHODS, (0.3, 0.5, 0.6, 0.7, 0.6, 0.65), strict=True))
    sweep = swept({"seed": [0, 1, 2]}, METHODS, lambda values, method: levels[method] + 0.1 * values["seed"])
    for method in METHODS[:1] + METHODS[2:]:
        comparison = find(sweep, "method", method)
        assert comparison.factor.reference == "fedavg"
        assert comparison.result.estimate is not None
        assert comparison.result.estimate.mean == pytest.approx(levels[method] - 0.5)
    prompt = find(sweep, "+prompt", "with")
    assert prompt.result.estimate is not None
    assert prompt.result.estimate.mean == pytest.approx((0.1 + 0.05) / 2)
    parts = [one for one in comparisons(sweep) if one.factor.name == "+adaptive" and one.by]
    assert [(one.by, one.result.estimate and round(one.result.estimate.mean, 6)) for one in parts] == [
        (("method", "fedyogi"), 0.0),
        (("method", "fedyogi+prompt"), -0.05),
    ]


def test_without_fedavg_the_first_federated_method_is_the_reference() -> None:
    sweep = swept({"seed": [0]}, ("local", "fedyogi", "fedadam"), lambda values, method: 0.5)
    assert {one.factor.reference for one in comparisons(sweep)} == {"fedyogi"}
    only = swept({"seed": [0]}, ("local", "zero-shot"), lambda values, method: 0.5)
    assert comparisons(only) == []
    assert terminal_lines(group_by_factor(only)) == ""


def test_axes_may_have_the_names_of_other_factors() -> None:
    axes = {"method": ["a", "b"], "+prompt": ["c", "d"], "seed": [0]}
    sweep = swept(axes, ("fedavg", "fedavg+prompt"), lambda values, method: 0.5)
    assert [group[0].factor.name for group in group_by_factor(sweep)] == [
        "method",
        "+prompt",
        "method_",
        "+prompt_",
    ]
    assert "Methods" in render_sweep(sweep)


def test_a_failed_cell_drops_its_pairs_which_are_counted_and_named() -> None:
    sweep = swept(
        AXES,
        ("fedavg", "fedprox"),
        gains,
        lambda values: [TASKS[values["data.task"]]],
        lambda values: tuple(values.values()) == ("lora", "tells", 1),
    )
    result = find(sweep, "strategy.name", "lora", task="caption").result
    assert result.missing == ("lora, tells, 1",) * 2  # of either method
    assert (result.better, result.estimate and result.estimate.seeds) == (4, 2)
    whole = find(sweep, "strategy.name", "lora", task="grounding").result
    assert (whole.worse, whole.missing) == (6, ())
    (table,) = [
        overall_table(group) for group in group_by_factor(sweep) if group[0].factor.name == "strategy.name"
    ]
    assert [row[-1] for row in table.rows] == ["0", "2"]
    assert "missing in: lora, tells, 1." in table.note


def test_a_value_without_any_score_has_no_pairs() -> None:
    sweep = swept(AXES, ("fedavg",), gains, failed=lambda values: values["strategy.name"] == "lora")
    result = find(sweep, "strategy.name", "lora").result
    assert (result.verdict, len(result.missing)) == ("no pairs", 6)
    assert "no pairs" in render_sweep(sweep)
    nothing = swept(AXES, ("fedavg",), gains, failed=lambda values: True)
    assert comparisons(nothing) == []
    assert "Paired comparisons" not in render_sweep(nothing)


def test_if_lower_is_better_the_verdict_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedloom.report.sweeps.observations.LOWER", {"accuracy"})
    sweep = swept(AXES, ("fedavg",), gains)
    result = find(sweep, "strategy.name", "lora", by=("data.task", "tells")).result
    assert result.estimate is not None
    assert (result.estimate.mean > 0, result.verdict, result.worse) == (True, "worse", 3)


def test_the_json_of_a_comparison_has_everything_that_tables_show() -> None:
    sweep = swept(AXES, ("fedavg",), gains)
    rows = [comparison_json(one) for one in comparisons(sweep)]
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0] | {key: round(rows[0][key], 6) for key in ("mean", "half", "p")} == {
        "factor": "strategy.name", "value": "lora", "reference": "connector", "task": "choice",
        "metric": "accuracy", "on": "global test", "by": None, "mean": 0.05, "half": round(HALF, 6), "seeds": 3, "better": 3, "same": 0,
        "worse": 3, "clients": None, "p": 0.000133, "verdict": "better", "missing": [],
    }  # fmt: skip
    assert rows[1]["by"] == {"factor": "data.task", "value": "looks"}


def test_tables_name_score_difference_and_verdict() -> None:
    (strategy, _) = group_by_factor(swept(AXES, ("fedavg",), gains))
    table = overall_table(strategy)
    assert table.columns[0] == "Against connector"
    assert table.rows == (("lora: Choice: Accuracy", "+5.0±0.2*", "better", "3 / 0 / 3", "3"),)
    ((name, split),) = split_tables(strategy)
    assert name == "by data.task"
    assert split.columns == ("Task", "lora")
    assert split.rows == (("looks", "−10.0±0.2*"), ("tells", "+20.0±0.2*"))


def test_one_seed_has_no_verdict() -> None:
    groups = group_by_factor(swept({**AXES, "seed": [0]}, ("fedavg",), gains))
    assert [row[2] for group in groups for row in overall_table(group).rows] == ["one seed"] * 2
    assert "There is one seed" in explanation(groups)
    assert "one seed, so no interval" in terminal_lines(groups)
    assert "±" not in terminal_lines(groups)


def test_the_page_explains_what_three_seeds_can_show() -> None:
    page = render_sweep(swept({**AXES, "strategy.name": ["connector", "lora", "both"]}, ("fedavg",), gains))
    assert "With so few seeds only large differences are significant" in page
    assert "confidence interval extends 2.5 times" in page
    assert "strategy.name: difference from connector" in page


@pytest.mark.parametrize("count", [1, 2, 11, 40])
def test_terminal_lines_are_few_and_fit(count: int) -> None:
    labels = [f"value-{place} " + "long " * (place % 9) for place in range(count + 1)]
    axes = {"a.long.name.of.an.axis": labels, "other": ["x\x1b[2J", "y"], "seed": [0, 1]}
    tasks: Mapping[str, list[str]] = {"x\x1b[2J": ["choice", "vqa"], "y": ["grounding", "caption"]}
    sweep = swept(axes, METHODS, lambda values, method: 0.5, lambda values: tasks[values["other"]])
    lines = terminal_lines(group_by_factor(sweep)).splitlines()
    assert 5 < len(lines) <= 15
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    assert lines[0].startswith("Paired comparisons")
    more = re.search(r"… (\d+) more lines? in the report", lines[-1])
    assert not more or len(lines) == 15


def test_a_chart_has_a_dot_for_each_value_filled_if_significant() -> None:
    def score(values: Values, method: str) -> float:
        return 0.5 + {"a": 0, "b": 0.2 + 0.001 * values["seed"], "c": 0.1 * values["seed"]}[values["how"]]

    (group,) = group_by_factor(swept({"how": ["a", "b", "c"], "seed": [0, 1, 2]}, ("fedavg",), score))
    for width in (760, 400):
        drawn = str(paired_chart(group, width))
        assert len(re.findall('<circle[^>]* class="dot"', drawn)) == 1
        assert len(re.findall('<circle[^>]* class="hollow"', drawn)) == 1
        assert "b +20.1±0.2 by Choice: Accuracy, global test, better" in drawn


def test_fewer_than_two_differences_are_not_drawn() -> None:
    assert paired_chart(group_by_factor(swept(AXES, ("fedavg",), gains))[0], 760) == ""
    sweep = swept(AXES, ("fedavg",), gains, failed=lambda values: values["strategy.name"] == "lora")
    assert paired_chart(group_by_factor(sweep)[0], 760) == ""


def test_scores_of_several_tasks_are_never_averaged() -> None:
    sweep = swept(AXES, ("fedavg",), gains, lambda values: [TASKS[values["data.task"]]])
    table = mean_table(sweep)
    assert table.columns == ("Name, task", "Score", "FedAvg", "n")
    assert [row[:3] for row in table.rows] == [
        ("connector, looks", "Mean IoU", "55.0±12.4"),
        ("connector, tells", "CIDEr", "55.0±12.4"),
        ("lora, looks", "Mean IoU", "45.0±12.7"),
        ("lora, tells", "CIDEr", "75.0±12.7"),
    ]
    written = sweep_summary(sweep)
    assert written["metric"] is None
    assert [row["metric"] for row in written["rows"]] == ["iou", "cider"] * 2
    assert "averaged over the other axes" not in render_sweep(sweep)
    assert sweep_summary(swept(AXES, ("fedavg",), gains))["metric"] == "accuracy"
