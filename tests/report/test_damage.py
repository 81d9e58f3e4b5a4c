"""Damaged and odd run folders: a report is written, or one message names the damaged file; there is no traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedloom.config.schema import Scenario
from fedloom.report.run_page import render
from fedloom.report.run_results import FILES, read_run
from fedloom.report.terminal_summary import terminal_table
from fedloom.scenarios.heterogeneity_card import card, survey
from fedloom.scenarios.plan import build_plan
from fedloom.system.errors import UserError
from fedloom.types import Example

ODD = st.sampled_from(
    [None, True, 0, -1, 1e308, 2**70, "x", "", [], {}, [1], {"a": 1}, -0.0, [None], [{}], [[]], {"a": None}]
)
LAW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*above, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 3)):
            yield from places(value[index], (*above, index))


@pytest.fixture
def folder(run_folder) -> Path:
    """Return a run folder whose plan has a heterogeneity card, as those of runs have."""
    run = run_folder(names=(0, 1), rounds=1, methods=("zero-shot", "local", "fedavg"))
    examples = [Example(f"e{place}", "?", "a", text="word", group="ab"[place % 2]) for place in range(8)]
    plan = build_plan(examples, Scenario(clients=2), 0)
    value = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    value["card"] = card(survey(plan, examples))
    (run / "plan.json").write_text(json.dumps(value), encoding="utf-8")
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    for scores in result["scores"].values():
        scores |= {
            "client_tasks": [{"choice": 0.5}, {"choice": 0.25}],
            "tasks": {"choice": {"accuracy": 0.5}},
        }
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return run


def test_an_undamaged_folder_has_a_page(folder: Path) -> None:
    assert "Jensen-Shannon" in render([read_run(folder)])


@LAW
@given(data=st.data())
def test_any_value_may_be_missing_or_odd(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    whole = (folder / name).read_text(encoding="utf-8")
    documents = [json.loads(line) for line in (whole.splitlines() if name.endswith("l") else [whole])]
    document = documents[data.draw(st.integers(0, len(documents) - 1))]
    *above, last = data.draw(st.sampled_from([place for place in places(document) if place]))
    inner = document
    for key in above:
        inner = inner[key]
    if data.draw(st.booleans()):
        del inner[last]
    else:
        inner[last] = data.draw(ODD)
    (folder / name).write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    try:
        run = read_run(folder)
        render([run]), render([run, run]), terminal_table(run.result)
    except UserError as error:
        assert str(folder / name) in str(error)
    finally:
        (folder / name).write_text(whole, encoding="utf-8")


@LAW
@given(data=st.data())
def test_any_file_may_be_cut_short(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        render([read_run(folder)])
    except UserError as error:
        assert str(folder / name) in str(error)
    finally:
        (folder / name).write_bytes(whole)


def test_null_figures_of_a_diverged_run_are_dashes(folder: Path) -> None:
    """A loss or score that was not finite is written as null."""
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["kind"] == "round":
            line["loss"] = None
            for client in line["clients"]:
                client |= {"loss": None, "norm": None}
        if line["kind"] == "evaluation":
            line["scores"] = dict.fromkeys(line["scores"])
    (folder / "record.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result["scores"]["fedavg"] = {"accuracy": None, "tasks": {"choice": {"accuracy": None}}}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    page = render([read_run(folder)])
    assert "None" not in page.replace("<p>None. ", "") and "no gain from federation to report" in page
