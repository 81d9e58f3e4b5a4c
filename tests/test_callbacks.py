"""Callbacks of `fedloom.run`: they get every event, and an error of theirs ends the run, which the same call continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_runs import adapter, experiment

import fedloom
from fedloom.experiment.experiment import Experiment
from fedloom.run_log import RunLog
from fedloom.system.errors import UserError

Event = Mapping[str, Any]


@pytest.fixture
def short(tiny_model: Path) -> Experiment:
    return experiment(
        tiny_model,
        methods=["zero-shot", "fedavg"],
        algorithms={},
        evaluate={"every": 1},
        train={"rounds": 3},
        engine={"cache": False},  # in which other tests may have left the features
    )


class Stop(Exception):
    """An error of a user's own."""


def test_callbacks_get_every_event_in_order(short: Experiment, tmp_path: Path) -> None:
    events, kinds = list[Event](), list[str]()
    run = fedloom.run(
        short,
        tmp_path / "run",
        quiet=True,
        callbacks=[events.append, lambda event: kinds.append(event["kind"])],
    )
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
    error: Exception, short: Experiment, tmp_path: Path
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
    fedloom.run(short, tmp_path / "whole", quiet=True)
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["stage", "start", "plan", "end"])
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
