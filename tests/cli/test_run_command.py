"""`fedloom run` with grids, unknown recipes, starts that fail, and errors of the system."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.e2e.test_runs import experiment
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.experiment.recipes import recipes
from fedloom.runs import single_run
from fedloom.runs.run_folder import folder_state
from fedloom.runs.single_run import run_experiment
from fedloom.system.progress import Progress


def call(*words: str):
    return CliRunner().invoke(app, list(words))


def tiny_recipe(tiny_model: Path, folder: Path, **changes: object) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(experiment(tiny_model, methods=["zero-shot"], **changes).to_json())
    return file


def test_an_unknown_recipe_gets_a_short_answer() -> None:
    text = call("run", "smok").stderr
    assert "Did you mean smoke?" in text
    assert f"`fedloom list recipes` lists all {len(recipes())}" in text
    assert len(text) < 250
    for name in ("smoke", "quickstart", "own-data"):
        assert name in recipes() and name in text


def test_run_runs_a_grid(tiny_model: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_model, tmp_path)
    out = str(tmp_path / "sweep")
    result = call("run", str(recipe), "--set", "grid.seed=[0, 1]", "--out", out, "--quiet", "--json")
    assert result.exit_code == 0, result.stderr
    assert [cell["state"] for cell in json.loads(result.stdout)["cells"]] == ["done", "done"]


def test_a_tilde_that_the_shell_leaves_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    result = call("run", "smoke", "--out=~/full", "--quiet")
    assert result.exit_code == 2
    assert str(tmp_path / "full") in result.stderr.replace("\n", "")
    assert not (tmp_path / "~").exists()


class Fails(Exception):
    pass


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_start_leaves_nothing_that_looks_like_a_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    value, folder = experiment(tiny_model, methods=["zero-shot"]), tmp_path / "run"
    if there:
        folder.mkdir()

    def fail(*_: object) -> None:
        assert (folder / "experiment.json").exists(), "the run has begun"
        raise Fails

    with monkeypatch.context() as patch:
        patch.setattr(single_run, "run_method", fail)
        with pytest.raises(Fails):
            run_experiment(value, folder, Progress(None))
    assert folder.exists() == there
    assert folder_state(folder, value) == "new"
    assert run_experiment(value, folder, Progress(None))["scores"]


def test_what_was_trained_survives_a_failure(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, folder = experiment(tiny_model, methods=["zero-shot"]), tmp_path / "run"

    def fail(*_: object) -> None:
        raise Fails

    with monkeypatch.context() as patch:
        patch.setattr(single_run, "compare_methods", fail)
        with pytest.raises(Fails):
            run_experiment(value, folder, Progress(None))
    assert folder_state(folder, value) == "unfinished"


def broken_link(folder: Path) -> list[str]:
    (folder / "link").symlink_to(folder / "link")
    return ["run", "smoke", "--out", str(folder / "link" / "run")]


def read_only(folder: Path) -> list[str]:
    (folder / "closed").mkdir(mode=0o500)
    return ["run", "smoke", "--out", str(folder / "closed" / "run")]


SYSTEM_ERRORS = {
    "a circle of links": broken_link,
    "a folder without permission": read_only,
    "a file in place of a folder": lambda folder: ["run", "smoke", "--out", "/dev/null/run"],
    "a name that is too long": lambda folder: ["run", "smoke", "--out", str(folder / ("x" * 300))],
    "a report in a missing folder": lambda folder: ["report", str(folder / "none")],
    "a recipe that is a folder": lambda folder: ["validate", str(folder)],
}


@pytest.mark.parametrize("name", SYSTEM_ERRORS)
def test_errors_of_the_system_are_mistakes_of_the_user(name: str, tmp_path: Path) -> None:
    if name == "a folder without permission" and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    result = call(*SYSTEM_ERRORS[name](tmp_path))
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr and "internal error" not in result.stderr
    assert result.stderr.count("\n") == 1
