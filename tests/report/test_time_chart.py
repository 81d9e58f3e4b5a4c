"""The stacked bars of time add up, and there are none if nothing was timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedloom.report.run_results import read_run
from fedloom.report.time_chart import FLOOR, GROUPS, seconds_by_timer, time_bars

from .conftest import make_run


def test_seconds_add_up_over_rounds_and_evaluations(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    by_method = seconds_by_timer(run)
    assert by_method
    for method, took in by_method.items():
        rounds = sum(entry["method"] == method for entry in run.rounds)
        evaluations = sum(entry["method"] == method for entry in run.evaluations)
        assert took["forward"] == pytest.approx(rounds)
        assert took["evaluate"] == pytest.approx(0.5 * evaluations)


def test_every_timer_has_its_place_in_the_bar() -> None:
    drawn = {name for parts in GROUPS.values() for name in parts}
    assert {"data", "vision", "forward", "backward", "step", "load", "aggregate", "evaluate", "wire"} == drawn
    assert set(FLOOR) <= drawn


@pytest.mark.parametrize("width", [760, 400])
def test_a_bar_for_each_method_that_was_timed(width: float, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    markup = time_bars(run, width)
    assert markup.count("forward: ") == len(seconds_by_timer(run))


def test_nothing_is_drawn_for_runs_without_timers(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    bare = tuple({key: value for key, value in entry.items() if key != "timers"} for entry in run.record)
    assert not time_bars(replace(run, record=bare), 760)
