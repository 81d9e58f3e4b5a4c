"""Callbacks of `fedloom.run`: they get every event, and an error of theirs ends the run, which the same call continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_runs import adapter, watched
from tests.shares import share

import fedloom
from fedloom.experiment.experiment import Experiment
from fedloom.run_log import RunLog
from fedloom.runs.finished_run import FinishedRun
from fedloom.system.errors import UserError

Event = Mapping[str, Any]
Whole = tuple[FinishedRun, list[Event], list[str]]


@pytest.fixture(scope="module")
def short(tiny_model: Path) -> Experiment:
    return watched(tiny_model)


@pytest.fixture(scope="module")
def whole(short: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run that nothing disturbed, and what two callbacks got: all events, and their kinds."""
    events, kinds = list[Event](), list[str]()
    run = fedloom.run(
        short,
        tmp_path_factory.mktemp("callbacks") / "whole",
        quiet=True,
        callbacks=[events.append, lambda event: kinds.append(event["kind"])],
    )
    return run, events, kinds


def test_what_a_callback_does_with_an_event_changes_nothing(
    short: Experiment, whole: Whole, tmp_path: Path
) -> None:
    def empty(event: Any) -> None:
        for value in list(event.values()):
            if isinstance(value, dict):
                empty(value)
        event.clear()

    kinds = list[str]()
    run = fedloom.run(
        short, tmp_path / "run", quiet=True, callbacks=[empty, lambda event: kinds.append(event["kind"])]
    )
    assert kinds == whole[2], "the other callbacks get whole events"
    assert run["scores"] == whole[0]["scores"] and run.scores.to_dicts() == whole[0].scores.to_dicts()


class Stop(Exception):
    """An error of a user's own."""


def test_callbacks_get_every_event_in_order(short: Experiment, whole: Whole) -> None:
    run, events, kinds = whole
    assert kinds == [event["kind"] for event in events]
    written = list(RunLog(run.folder / "record.jsonl"))
    assert json.loads(json.dumps([event for event in events if event["kind"] != "stage"])) == written
    rounds = [
        (event["method"], event["round"], event["loss"]) for event in events if event["kind"] == "round"
    ]
    assert rounds == [(row.method, row.round, row.loss) for row in run.rounds]
    last = [event for event in events if event["kind"] == "evaluation" and event["method"] == "fedavg"][-1]
    assert last["scores"]["accuracy"] == run["scores"]["fedavg"]["accuracy"]
    stages = [event["name"] for event in events if event["kind"] == "stage"]
    assert [name for name in stages if name in ("loading data and model", "zero-shot", "fedavg")] == [
        "loading data and model",
        "zero-shot",
        "fedavg",
    ]
    assert all(event["steps"] >= 1 for event in events if event["kind"] == "stage")
    again = list[Event]()
    fedloom.run(short, run.folder, quiet=True, callbacks=[again.append])
    assert again == [], "nothing happens in a finished run"


@pytest.mark.parametrize("error", [Stop("enough"), OSError(2, "no such file", "mine.csv")])
def test_an_error_of_a_callback_ends_the_run_which_goes_on_later(
    error: Exception, short: Experiment, whole: Whole, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if event["kind"] == "round" and event["round"] == 1:
            raise error

    with pytest.raises(type(error)) as raised:
        fedloom.run(short, tmp_path / "run", quiet=True, callbacks=[stop])
    assert raised.value is error
    (note,) = error.__notes__
    assert "stop" in note and "'round'" in note and str(tmp_path / "run") in note
    rounds = list[int]()
    fedloom.run(
        short,
        tmp_path / "run",
        quiet=True,
        callbacks=[lambda event: rounds.append(event["round"]) if event["kind"] == "round" else None],
    )
    assert rounds == [1, 2], "the first round is not run again"
    assert adapter(tmp_path / "run") == adapter(whole[0].folder)


@pytest.mark.parametrize("kind", share(["end", "start", "plan", "stage"], every=3))
def test_an_error_at_any_event_ends_the_run(kind: str, short: Experiment, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event["kind"] == kind:
            raise Stop

    with pytest.raises(Stop):
        fedloom.run(short, tmp_path / "run", quiet=True, callbacks=[stop])
    assert fedloom.run(short, tmp_path / "run", quiet=True)["scores"]["fedavg"]


@pytest.mark.parametrize("callbacks", [print, ["print"], "print"])
def test_what_is_no_list_of_functions_is_a_mistake(callbacks: Any, short: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks: expected a list of functions"):
        fedloom.run(short, tmp_path / "run", quiet=True, callbacks=callbacks)
    assert not (tmp_path / "run").exists()
