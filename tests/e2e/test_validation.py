"""The validation part in whole runs: never trained on, and the best round by it survives an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedloom import training
from fedloom.answering import _values
from fedloom.experiment import Experiment
from fedloom.progress import make_progress
from fedloom.runner import resume_run, run_experiment
from fedloom.tasks.scoring import Judged, each
from fedloom.types import Example


def experiment(tiny_model: Path, **changes: object) -> Experiment:
    values: dict[str, object] = {
        "data": {"name": "emoji", "limit": 24, "test_share": 0.02, "validation": 0.25},
        "scenario": {"clients": 2},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"name": "both", "rank": 2},
        "train": {"rounds": 3, "batch_size": 8},
        "methods": ["local", "fedavg", "centralised"],
        "evaluate": {"round": "best"},
    }
    return Experiment.from_json(json.dumps({**values, **changes}))


@pytest.mark.parametrize("strategy", ["both", "share-lora"])
def test_nothing_of_it_is_trained_on(
    strategy: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = training.conversations_of, set[int]()

    def noted(setting, share, method):
        seen.update(share.indices.tolist())
        return real(setting, share, method)

    monkeypatch.setattr(training, "conversations_of", noted)
    value = experiment(tiny_model, strategy={"name": strategy, "rank": 2}, train={"rounds": 2})
    result = run_experiment(value, tmp_path / "run", make_progress(quiet=True))
    kept = json.loads((tmp_path / "run/plan.json").read_text())["validation"]
    held_out = {index for client in kept["clients"] for index in client}
    assert seen
    assert held_out
    assert not seen & held_out
    assert set(result["validation"]["methods"]) == {"local", "fedavg", "centralised"}


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
    best = min(done for done in scores if scores[done] == max(scores.values()))
    assert whole["validation"]["methods"]["fedavg"]["rounds"] == [best]
    assert whole["validation"]["methods"]["fedavg"]["score"] == scores[best]

    real = training.commit

    def stopped(folder, standing, *more):
        real(folder, standing, *more)
        if folder.name == "fedavg" and standing.state.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "commit", stopped)
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


def test_rarity_in_captions_is_counted_over_all_clients() -> None:
    """A client with one caption alone would score nothing, whatever it says: no word of it could be rare."""
    said = ["a red apple", "a blue car", "two green trees"]
    asked = {
        client: (
            [Example(str(client), "?", text, None, text, task="caption")],
            Judged((text,), (None,), (text,)),
        )
        for client, text in enumerate(said)
    }
    values = _values(asked, headline=True)
    assert all(len(value) == 1 and value[0] > 0 for value in values.values())
    whole = each(
        [one for examples, _ in asked.values() for one in examples],
        Judged(tuple(said), (None,) * 3, tuple(said)),
        headline=True,
    )
    assert [float(value[0]) for value in values.values()] == whole.tolist()
