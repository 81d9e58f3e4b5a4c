"""The validation set in whole runs: never trained on, and the best round by it survives an interruption."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.killed_process import killed_at
from tests.shares import share

from fedloom.data import load_data
from fedloom.experiment.experiment import Experiment
from fedloom.run_log import CHECKS
from fedloom.runs import site_setup, train_method
from fedloom.runs.evaluation import _values
from fedloom.runs.single_run import resume_run, run_experiment
from fedloom.system.processes import can_fork
from fedloom.system.progress import make_progress
from fedloom.tasks.score_answers import Answers, example_scores
from fedloom.types import Example


def experiment(tiny_model: Path, **changes: object) -> Experiment:
    values: dict[str, object] = {
        "data": {"name": "emoji", "limit": 24, "test_share": 0.02, "validation": 0.25},
        "scenario": {"clients": 2},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"name": "both", "rank": 2},
        "train": {"rounds": 3, "batch_size": 8},
        "methods": ["local", "fedavg", "centralized"],
        "evaluate": {"round": "best"},
        "engine": {"side_by_side": 1, "workers": 1},  # so that comparisons stand at equal rows
    }
    return Experiment.from_json(json.dumps({**values, **changes}))


@pytest.mark.parametrize("strategy", ["both", "share-lora"])
def test_validation_examples_are_not_trained_on(
    strategy: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = site_setup.render, set[str]()

    def noted(examples, presence, answer, *, clause):
        seen.update(example.id for example in examples)
        return real(examples, presence, answer, clause=clause)

    monkeypatch.setattr(site_setup, "render", noted)
    value = experiment(tiny_model, strategy={"name": strategy, "rank": 2}, train={"rounds": 2})
    result = run_experiment(value, tmp_path / "run", make_progress(quiet=True))
    kept = json.loads((tmp_path / "run/plan.json").read_text())["validation"]
    train = load_data(value.data, value.seed).train
    held_out = {train[index].id for client in kept["clients"] for index in client}
    assert seen
    assert held_out
    assert not seen & held_out
    assert set(result["validation"]["methods"]) == {"local", "fedavg", "centralized"}


def test_the_best_round_is_the_first_with_the_highest_score_and_survives(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, value = make_progress(quiet=True), experiment(tiny_model)
    whole = run_experiment(value, tmp_path / "whole", quiet)
    lines = [json.loads(line) for line in (tmp_path / "whole/record.jsonl").read_text().splitlines()]
    scores = {
        line["round"]: line["score"]
        for line in lines
        if line["kind"] == "validation" and line["method"] == "fedavg"
    }
    assert sorted(scores) == [1, 2, 3]
    lines_of_one = [line for line in lines if line["kind"] == "validation" and line["client"] is not None]
    assert lines_of_one
    assert not any(
        "clients" in line for line in lines_of_one
    )  # a list for each client would be long for many
    best = min(done for done in scores if scores[done] == max(scores.values()))
    assert whole["validation"]["methods"]["fedavg"]["rounds"] == [best]
    assert whole["validation"]["methods"]["fedavg"]["score"] == scores[best]

    real = train_method.write_checkpoint

    def stopped(folder, training_state, *more):
        real(folder, training_state, *more)
        if folder.name == "fedavg" and training_state.state.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_method, "write_checkpoint", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(value, tmp_path / "cut", quiet)
    monkeypatch.undo()
    again = resume_run(tmp_path / "cut", quiet)
    adapters = [
        (tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "cut")
    ]
    assert adapters[0] == adapters[1]
    assert again["scores"] == whole["scores"]
    assert again["validation"] == whole["validation"]


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Experiment]:
    """A run with a best round of each method, with the strategy that is asked for."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    value = experiment(
        tiny_model,
        methods=["local", "fedavg"],
        strategy={"name": request.param, "rank": 2},
        engine={
            "workers": 1,
            "side_by_side": 1,
        },  # so that comparisons stand at equal rows
    )
    run_experiment(value, folder, make_progress(quiet=True))
    return folder, value


CLOCKED = ("seconds", "timers", "memory", *CHECKS)


def untimed(value: Any) -> Any:
    """Return plain values without what depends on the clock, and checksums of it."""
    if isinstance(value, list):
        return [untimed(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: untimed(one) for key, one in value.items() if key not in CLOCKED}


def lines_of(folder: Path) -> set[str]:
    """Return what the record holds; what is done again after an interruption is written again, and alike."""
    lines = map(json.loads, (folder / "record.jsonl").read_text().splitlines())
    kinds = ("round", "evaluation", "validation")
    return {json.dumps(untimed(line)) for line in lines if line["kind"] in kinds}


CUTS = {
    "share-lora": [  # each client has a model of its own
        "local/client-1/round-0001.safetensors$",  # the first round of one client of two
        "local/result.json$",
        "fedavg/round-0002.safetensors$",  # validated, and not committed
        "fedavg/round-0002.json$",  # half committed
        "fedavg/round-0003.json$",  # the last round, at which the best round is known
        "fedavg/result.json$",
        "adapter/client-1/adapter_model.safetensors$",
        "run/result.json$",
    ],
    "two-stage": [  # one round and two; only those of the second stage can be best
        "fedavg/stage-1/round-0001.json$",
        "fedavg/round-0001.safetensors$",
        "fedavg/round-0002.json$",
    ],
}


@pytest.mark.parametrize(
    ("undisturbed", "file"),
    share([(strategy, file) for strategy, files in CUTS.items() for file in files], every=6, first=3),
    indirect=["undisturbed"],
)
@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_a_run_killed_anywhere_reports_the_same_best_round(
    file: str, undisturbed: tuple[Path, Experiment], tmp_path: Path
) -> None:
    whole, value = undisturbed
    folder, quiet = tmp_path / "run", make_progress(quiet=True)
    assert killed_at(
        lambda: run_experiment(value, folder, quiet), lambda _, target: re.search(file, target) is not None
    )
    assert not (folder / "result.json").exists()
    again = resume_run(folder, quiet)
    wanted = json.loads((whole / "result.json").read_text())
    for key in ("scores", "validation", "bytes"):
        assert again[key] == wanted[key]
    assert lines_of(folder) == lines_of(whole)
    tensors = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors")) == tensors
    assert {path.parts[0] for path in tensors} == {"adapter", "methods"}
    for path in tensors:
        assert (folder / path).read_bytes() == (whole / path).read_bytes(), path


def test_rarity_in_captions_is_counted_over_all_clients() -> None:
    """A client with one caption alone would score nothing, whatever it says: no word of it could be rare."""
    said = ["a red apple", "a blue car", "two green trees"]
    asked = {
        client: (
            [Example(str(client), "?", text, None, text, task="caption")],
            Answers((text,), (None,), (text,)),
        )
        for client, text in enumerate(said)
    }
    values = _values(asked, headline=True)
    assert all(len(value) == 1 and value[0] > 0 for value in values.values())
    whole = example_scores(
        [one for examples, _ in asked.values() for one in examples],
        Answers(tuple(said), (None,) * 3, tuple(said)),
        headline=True,
    )
    assert [float(value[0]) for value in values.values()] == whole.tolist()
