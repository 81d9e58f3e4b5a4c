"""The chart of the clients' data and the heterogeneity card of the report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom.report import read_run, write_report
from fedloom.report.client_charts import DISTANCE, LENGTH, columns, holdings_chart
from fedloom.report.split_table import card_table, split_text
from fedloom.scenarios import Plan
from fedloom.scenarios.heterogeneity_card import card, survey
from fedloom.scenarios.plan_file import plan_to_json
from fedloom.types import Example

KINDS = ["both", "image only", "text only"]


def client(**changes: Any) -> dict[str, Any]:
    held = {"id": 0, "size": 4, "both": 2, "image_only": 0, "text_only": 2, "none": 0}
    return held | {"labels": {"a": 1, "b": 3}, "words": 2.0, "jensen_shannon": 0.5} | changes


def example(number: int, label: int) -> Example:
    text = "one two three" if label else "one"
    return Example(str(number), "Which?", "ab"[label], text=text, label=label, options=("a", "b"))


def plan_of(labels: list[list[int]]) -> tuple[Plan, list[Example]]:
    flat = [label for part in labels for label in part]
    offsets = np.cumsum([0, *map(len, labels)])
    flags = np.zeros(len(flat), bool), np.ones(len(flat), bool)
    return Plan(np.arange(len(flat)), offsets, *flags, "ab" * 32), [example(*one) for one in enumerate(flat)]


def page_with(folder: Path, plan: dict[str, Any]) -> str:
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    write_report([folder], folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_columns_by_hand() -> None:
    by_head = {
        one.head: one
        for one in columns([client(), client(words=None, jensen_shannon=1.0), client(words=5.0)])
    }
    assert list(by_head) == [*KINDS, LENGTH, DISTANCE]
    assert (by_head["both"].texts, by_head["both"].shares) == (("2", "2", "2"), (0.5, 0.5, 0.5))
    assert (by_head[LENGTH].texts, by_head[LENGTH].shares) == (("2.0", "—", "5.0"), (0.4, 0.0, 1.0))
    assert (by_head[DISTANCE].texts, by_head[DISTANCE].shares) == (("0.50", "1.00", "0.50"), (0.5, 1.0, 0.5))


@pytest.mark.parametrize(
    ("one", "heads"),
    [
        (client(none=1), [*KINDS, "neither", LENGTH, DISTANCE]),
        (client(words=None), [*KINDS, DISTANCE]),  # nobody sees a text
        (client(labels={"a": 4}), [*KINDS, LENGTH]),  # one label has no skew
        (client(jensen_shannon=None), [*KINDS, LENGTH]),  # a record of an older version
        ({"id": "x"}, KINDS),
    ],
)
def test_a_column_without_figures_is_left_out(one: dict[str, Any], heads: list[str]) -> None:
    assert [column.head for column in columns([one, one])] == heads


@pytest.mark.parametrize("width", [760.0, 400.0])
def test_the_chart_has_the_figures_in_both_widths(run_folder: Callable[..., Path], width: float) -> None:
    folder = run_folder()
    plan, examples = plan_of([[0, 0, 1], [1, 1]])
    (folder / "plan.json").write_text(json.dumps(plan_to_json(plan, examples)), encoding="utf-8")
    drawn = str(holdings_chart(read_run(folder), width))
    # Means of (1, 1, 3) and of (3, 3) words; the longest fills its cell, and 5/3 is five ninths of it.
    assert ">1.7<" in drawn and ">3.0<" in drawn
    lines = [float(length) for length in re.findall(r'width="([\d.]+)" height="3"', drawn)]
    assert len(lines) == 4  # for length and for distance of each client
    assert lines[0] / lines[2] == pytest.approx(5 / 9, abs=0.01)


def test_the_page_has_the_card_that_split_prints(run_folder: Callable[..., Path]) -> None:
    plan, examples = plan_of([[0, 0, 1], [1, 1]])
    value = plan_to_json(plan, examples)
    page = page_with(run_folder(), value)
    rows = card_table(card(survey(plan, examples))).rows
    assert [name for name, _ in rows] == ["2 labels", "Modalities", "Examples", "Sizes", "Words"]
    for name, content in rows:
        assert f"<dt>{name}</dt><dd>{content.replace(chr(39), '&#39;')}</dd>" in page
    scenario = {
        "mode": "corrected",
        "clients": 2,
        "image_clients": None,
        "pattern": "aligned",
        "partition": "iid",
    }
    scenario |= {"rate": 0.3, "p": 0.7, "alpha": 0.5, "repair": None}
    printed = " ".join(split_text({**value, "data": "made", "scenario": scenario}).split())
    assert all(" ".join(content.split()) in printed for name, content in rows if name != "2 labels")
    assert "Mean words:" in page and "Label distance:" in page


def test_a_plan_without_a_card_is_drawn_without(run_folder: Callable[..., Path]) -> None:
    folder = run_folder()
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    page = page_with(folder, plan)
    assert "Who holds what" in page
    assert "How much the clients differ" not in page
    assert "Mean words:" not in page
