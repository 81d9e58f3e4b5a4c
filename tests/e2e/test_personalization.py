"""Runs in which clients have their own models or answers: the shared model is scored besides, and equal trainings run once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedloom.client.site import Question, Site
from fedloom.experiment.experiment import Experiment
from fedloom.run_log import RunLog, read_lines
from fedloom.runs import method_results
from fedloom.runs.single_run import run_experiment
from fedloom.runs.verify_files import verify
from fedloom.system.progress import Progress

METHODS = (
    "local",
    "local+prior",
    "fedavg",
    "fedavg+prior",
    "fedavg+average-alone",
    "fedavg+finetune",
    "fedavg+finetune+interpolate+prior",
    "fedavg+fedsa-lora",
    "centralized",
    "centralized+prior",
)


def go(model: Path, folder: Path, methods: Sequence[str], clients: int = 2, **changes: Any) -> dict[str, Any]:
    values = {
        "data": {"name": "emoji", "limit": 30, "test_share": 0.02, "validation": 0.25},
        "scenario": {"clients": clients, "partition": "dirichlet", "alpha": 0.3},
        "model": {"path": str(model), "threads": 1},
        "strategy": {"name": "both", "rank": 2},
        "train": {"rounds": 1, "batch_size": 8, "lr": 0.01},
        "methods": methods,
        "algorithms": {"prior": {"strength": 3.0}},
        "evaluate": {"every": 0},
        "engine": {"side_by_side": 1, "workers": 1},
        **changes,
    }
    return run_experiment(Experiment.from_json(json.dumps(values)), folder, Progress(None))


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("personal") / "run"
    return folder, go(tiny_model, folder, METHODS)["scores"]


def without(scores: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name not in names}


OF_CLIENTS = ("clients", "client_tasks", "shared")


@pytest.mark.parametrize("name", ["local", "fedavg", "centralized"])
def test_the_prior_changes_clients_scores_alone(run: tuple[Path, dict[str, Any]], name: str) -> None:
    plain, own = run[1][name], run[1][f"{name}+prior"]
    assert without(own, *OF_CLIENTS) == without(plain, *OF_CLIENTS)
    assert own["clients"] != plain["clients"]


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("fedavg+")])
def test_the_shared_model_is_scored_beside_what_clients_have(
    run: tuple[Path, dict[str, Any]], name: str
) -> None:
    shared = run[1][name]["shared"]
    assert {"accuracy", "tasks", "slices", "clients", "client_tasks"} <= shared.keys()
    assert len(shared["clients"]) == len(run[1][name]["clients"]) == 2
    if "fedsa" not in name:  # its adapters are not shared
        assert shared == run[1]["fedavg"]
    assert "shared" not in run[1]["fedavg"]


def test_answers_are_averaged_with_those_of_the_models_of_local(run: tuple[Path, dict[str, Any]]) -> None:
    own = run[1]["fedavg+average-alone"]
    assert without(own, *OF_CLIENTS) == without(run[1]["fedavg"], *OF_CLIENTS)


def test_clients_choose_how_much_of_their_own_model_they_take(run: tuple[Path, dict[str, Any]]) -> None:
    shares = run[1]["fedavg+finetune+interpolate+prior"].get("own_shares", [1.0, 1.0])
    assert len(shares) == 2
    assert set(shares) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_equal_trainings_ran_once(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    rounds = [line for _, line in read_lines(folder / "record.jsonl") if line["kind"] == "round"]
    assert {line["method"] for line in rounds} == {
        "local",
        "fedavg",
        "fedavg+finetune",
        "fedavg+fedsa-lora",
        "centralized",
    }


def test_a_run_that_is_interrupted_between_two_methods_with_one_training_goes_on(
    run: tuple[Path, dict[str, Any]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ends = method_results.global_scores, [True]

    def interrupted(context: Any, models: Any, name: str, *rest: Any, **others: Any) -> Any:
        if name == "fedavg+prior" and ends.pop():
            raise KeyboardInterrupt
        return real(context, models, name, *rest, **others)

    methods = ["fedavg+prior", "fedavg"]
    monkeypatch.setattr(method_results, "global_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tiny_model, tmp_path / "run", methods)
    ends[:] = [False]
    scores = go(tiny_model, tmp_path / "run", methods)["scores"]
    assert scores == {name: run[1][name] for name in methods}
    assert verify(tmp_path / "run")[1] == []


def test_models_that_several_methods_share_answer_once(
    run: tuple[Path, dict[str, Any]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of clients and the shared one, on three slices; the scores are those of a run with other methods."""
    real, asked = Site.answer, list[Question]()

    def counted(self: Site, questions: Sequence[Question], *options: Any) -> Any:
        asked.extend(question for question in questions if question.test == "test")
        return real(self, questions, *options)

    monkeypatch.setattr(Site, "answer", counted)
    methods = ["fedavg+average-alone", "local", "local+prior", "fedavg+prior", "fedavg"]
    scores = go(tiny_model, tmp_path / "run", methods)["scores"]
    assert [len([one for one in asked if one.method == name]) for name in ("local", "fedavg")] == [6, 3]
    assert len(asked) == 9
    assert scores == {name: run[1][name] for name in methods}


def test_a_method_alone_has_the_scores_that_it_has_beside_the_one_it_trains_with(
    run: tuple[Path, dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    alone = go(tiny_model, tmp_path / "run", ["fedavg+prior"])["scores"]
    assert alone["fedavg+prior"] == run[1]["fedavg+prior"]


def test_training_alone_with_a_final_stage_is_that_of_the_only_client_of_a_federation(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Its model after the last stage is one, and so are its answers up to rounding."""
    scores = go(tiny_model, tmp_path / "run", ["local", "local+finetune", "fedavg+finetune"], clients=1)[
        "scores"
    ]
    assert scores["local+finetune"]["clients"] == scores["fedavg+finetune"]["clients"]
    lines = [line for _, line in read_lines(tmp_path / "run/record.jsonl") if line["kind"] == "round"]
    losses = {
        name: [line["clients"][0]["loss"] for line in lines if line["method"] == name]
        for name in ("local", "local+finetune", "fedavg+finetune")
    }
    assert len(losses["local+finetune"]) == 2 == len(losses["local"]) + 1
    assert losses["local+finetune"] == pytest.approx(losses["fedavg+finetune"], rel=1e-5)


def rounds_of(folder: Path, name: str) -> list[tuple[Any, ...]]:
    """The rounds of a method: client, round, and the clients' losses."""
    lines = [line for _, line in read_lines(folder / "record.jsonl") if line["kind"] == "round"]
    return [
        (line["client"], line["round"], [client["loss"] for client in line["clients"]])
        for line in lines
        if line["method"] == name
    ]


@pytest.mark.parametrize("base", ["fedavg", "local", "fedadam+prompt", "scaffold"])
def test_a_method_goes_on_from_the_training_of_the_one_that_it_begins_as(
    base: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Scores and record are those of the method alone; clients of SCAFFOLD keep memories, so that it is trained twice."""
    name, train = f"{base}+finetune", {"rounds": 2, "batch_size": 8, "lr": 0.01}
    go(tiny_model, tmp_path / "alone", [name], train=train)
    go(tiny_model, tmp_path / "both", [name, base], train=train)
    alone, both = (json.loads((tmp_path / where / "result.json").read_text()) for where in ("alone", "both"))
    assert both["scores"][name] == alone["scores"][name]
    assert both["bytes"][name] == pytest.approx(alone["bytes"][name], rel=0.01)  # messages name their method
    assert rounds_of(tmp_path / "both", name) == rounds_of(tmp_path / "alone", name)
    first_stage = tmp_path / "both/methods" / name
    assert any(first_stage.rglob("round-0002.json")) == (base == "scaffold")
    assert verify(tmp_path / "both")[1] == []


def test_a_run_that_is_interrupted_in_what_comes_after_a_shared_training_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods, real, calls = ["fedavg", "fedavg+finetune"], RunLog.append, list[str]()

    def interrupted(log: RunLog, kind: str, values: Any) -> None:
        real(log, kind, values)
        calls.append(str(values.get("method")))
        if kind == "round" and calls.count("fedavg+finetune") == 1:
            raise KeyboardInterrupt

    train = {"rounds": 2, "batch_size": 8, "lr": 0.01}
    go(tiny_model, tmp_path / "whole", methods, train=train)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLog, "append", interrupted)
        go(tiny_model, tmp_path / "run", methods, train=train)
    go(tiny_model, tmp_path / "run", methods, train=train)
    for name in methods:
        assert rounds_of(tmp_path / "run", name) == rounds_of(tmp_path / "whole", name)
    scores = [json.loads((tmp_path / one / "result.json").read_text())["scores"] for one in ("run", "whole")]
    assert scores[0] == scores[1]
