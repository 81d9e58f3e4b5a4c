"""What `fedloom.run` and `fedloom.sweep` take from Python, and the messages about anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedloom
from fedloom.experiment.recipes import experiment_of
from fedloom.system.errors import UserError

SETTINGS = {"name": "mine", "train": {"rounds": 2}}


def test_an_experiment_is_a_value_a_recipe_a_file_or_a_dict(tmp_path: Path) -> None:
    experiment = fedloom.Experiment(**SETTINGS)
    (tmp_path / "mine.json").write_text(experiment.to_json())
    for value in (experiment, SETTINGS, tmp_path / "mine.json", str(tmp_path / "mine.json")):
        assert experiment_of(value) == experiment
    assert experiment_of("smoke") == fedloom.load_experiment("smoke")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "expected a fedloom.Experiment, the name of a recipe"),
        ("smok", "Did you mean smoke"),
        ({"train": {"round": 2}}, "Did you mean train.rounds"),
        ({"grid": {"seed": [0, 1]}}, "run them all with fedloom.sweep"),
        ({5: 1}, "5 is not a known key"),
    ],
)
def test_anything_else_is_no_experiment(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fedloom.run(value, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=message), fedloom.open_clients(value):
        pass


@pytest.mark.parametrize("track", [["tensorbord"], ["wandb", "tensorbord"], "tensorboard", None])
def test_an_unknown_tracker_is_answered_with_the_one_that_was_meant(track: Any, tmp_path: Path) -> None:
    from fedloom.runs.followers import require_trackers

    with pytest.raises(UserError, match=r"track: .*(tensorboard|wandb)"):
        require_trackers(track)
    if track == ["tensorbord"]:
        with pytest.raises(UserError, match="Did you mean tensorboard"):
            fedloom.run(SETTINGS, tmp_path / "run", quiet=True, track=track)


def test_a_sweep_of_an_experiment_is_refused_without_its_repr() -> None:
    with pytest.raises(UserError, match="not a value of type Experiment") as refused:
        fedloom.sweep(fedloom.Experiment(**SETTINGS))  # type: ignore[arg-type]
    assert len(str(refused.value)) < 300


def test_a_misspelled_grid_is_answered_with_the_key_that_was_meant() -> None:
    with pytest.raises(UserError, match=r"gird is not a known key\. Did you mean grid\?"):
        fedloom.sweep({**SETTINGS, "gird": {"seed": [0, 1]}})


def test_plugins_of_a_sweep_are_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="list of paths"):
        fedloom.sweep({**SETTINGS, "grid": {"seed": [0, 1]}}, plugins=[fedloom.Plugins.of()])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"none\.py"):
        fedloom.sweep({**SETTINGS, "grid": {"seed": [0, 1]}}, plugins=[tmp_path / "none.py"])


GRID = {**SETTINGS, "grid": {"seed": [0, 1]}}
WRONG = {
    "out: expected a path, .* not 5": lambda out: fedloom.run("smoke", 5),
    "out: expected a path, .* not ''": lambda out: fedloom.run("smoke", ""),
    "folder: expected a path, .* not None": lambda out: fedloom.load_run(None),
    "folder: expected a path, .* not 5": lambda out: fedloom.load_sweep(5),
    "plugins: expected a list of paths": lambda out: fedloom.load_run(out, "mine.py"),
    "plugins: expected a list of .* fedloom.Plugins": lambda out: fedloom.load_run(out, fedloom.Plugins.of()),
    "out: expected a path, .* not 7": lambda out: fedloom.sweep(GRID, 7),
    "changes must be a dict": lambda out: fedloom.sweep(GRID, out, changes=["train.lr=1"]),
    "changes hold a value": lambda out: fedloom.sweep(GRID, out, changes={"train.lr": object()}),
    "plugins must be a list": lambda out: fedloom.sweep(GRID, out, plugins=None),
}


@pytest.mark.parametrize("message", WRONG)
def test_an_argument_of_another_kind_is_a_mistake(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        WRONG[message](tmp_path / "run")  # type: ignore[no-untyped-call]
    assert not (tmp_path / "run").exists()


def test_the_home_folder_may_be_written_as_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """~ is the home folder wherever Python or a recipe gives a path, and never a folder of that name."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "rows.jsonl").write_text('{"question": "?", "answer": "a", "text": "t"}\n')
    (home / "mine.py").write_text('METRICS = {"mine": lambda example, answer: 1.0}\n')
    (home / "mine.json").write_text(fedloom.Experiment(**SETTINGS).to_json())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert experiment_of("~/mine.json").name == "mine"
    given = fedloom.Experiment(plugins=["~/mine.py"], model={"path": "~/model"}, data={"root": "~/data"})
    assert given.plugins == (str(home / "mine.py"),)
    assert (given.model.path, given.data.root) == (str(home / "model"), str(home / "data"))
    for path in ("~/rows.jsonl", Path("~/rows.jsonl")):
        experiment = fedloom.Experiment(data={"records": path, "test_share": 0.5})
        assert experiment.datasets["given"].load.value == type(path)(home / "rows.jsonl")  # type: ignore[attr-defined]
    for load in (fedloom.load_run, fedloom.load_sweep, fedloom.leaderboard):
        with pytest.raises(UserError, match=str(home / "none")):
            load("~/none")
    with pytest.raises(UserError):
        fedloom.sweep({**GRID, "data": {"name": "none"}}, "~/sweep", quiet=True)
    assert [one.name for one in tmp_path.iterdir()] == ["home"]


def test_a_sweep_is_loaded_from_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    grid = {
        "name": "two",
        "methods": ["zero-shot"],
        "data": {"name": "emoji", "limit": 12},
        "scenario": {"clients": 2},
        "model": {"path": str(tiny_model), "threads": 1},
        "grid": {"seed": [0, 1]},
    }
    made = fedloom.sweep(grid, tmp_path / "sweep", quiet=True)
    found = fedloom.load_sweep(tmp_path / "sweep")
    assert dict(found) == dict(made)
    assert not found.failed
    assert found.scores.to_dicts() == made.scores.to_dicts()
    for name, run in found.runs.items():
        own = [(row.method, row.slice, row.metric, row.value, row.task) for row in run.scores]
        rows = found.scores.where(cell=name)
        assert own == [(row.method, row.slice, row.metric, row.value, row.task) for row in rows]
        assert {row.values["seed"] for row in rows} == {
            fedloom.load_experiment(str(run.folder / "experiment.json")).seed
        }
    assert found.report().is_file()
    with pytest.raises(UserError, match=r"load it with fedloom\.load_sweep"):
        fedloom.load_run(tmp_path / "sweep")
    run_folder = next(iter(found.runs.values())).folder
    with pytest.raises(UserError, match=r"load it with fedloom\.load_run"):
        fedloom.load_sweep(run_folder)
    with pytest.raises(UserError, match=r"holds no sweep\.json"):
        fedloom.load_sweep(tmp_path)
