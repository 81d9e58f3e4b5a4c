"""`fedloom runs` lists runs with their state, and `fedloom doctor` checks an installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_runs import experiment
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.runs.run_folder import begin_run
from fedloom.runs.single_run import run_experiment
from fedloom.system import installation
from fedloom.system.installation import satisfies
from fedloom.system.manifest import Manifest
from fedloom.system.progress import Progress

HOLD = """
import sys
from pathlib import Path
from fedloom.runs.run_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def states(folder: Path) -> dict[str, str]:
    result = CliRunner().invoke(app, ["runs", str(folder), "--json"])
    assert result.exit_code == 0, result.stderr
    return {Path(row["folder"]).name: row["state"] for row in json.loads(result.stdout)}


def test_runs_are_listed_with_their_states(tiny_model: Path, tmp_path: Path) -> None:
    value = experiment(tiny_model, methods=["zero-shot"])
    run_experiment(value, tmp_path / "deep" / "finished", Progress(None))
    for name in ("interrupted", "damaged", "running"):
        (tmp_path / name).mkdir()
        begin_run(tmp_path / name, value, {}, Manifest("0.2.0"))
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/sweep.json").write_text(
        json.dumps({"cells": [{"state": "done"}, {"state": "waiting"}]})
    )
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "running")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        assert states(tmp_path) == {
            "finished": "finished",
            "interrupted": "interrupted",
            "damaged": "damaged",
            "running": "running",
            "sweep": "interrupted",
        }
    shown = CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout
    assert "zero-shot" in shown
    assert "1 of 2 cells are done" in shown


@pytest.mark.parametrize("asked", ["listdir", "stat"])
def test_a_folder_that_may_not_be_read_is_listed_with_the_reason(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "closed", "z"):
        (tmp_path / name / "sweep").mkdir(parents=True)
        (tmp_path / name / "sweep/sweep.json").write_text(json.dumps({"cells": [{"state": "done"}]}))
    original = getattr(os, asked)

    def refused(place: Any, *given: Any, **more: Any) -> Any:
        path = os.fspath(place)
        if path == str(tmp_path / "closed") if asked == "listdir" else path.startswith(f"{tmp_path}/closed/"):
            raise PermissionError(13, "Permission denied", path)
        return original(place, *given, **more)

    monkeypatch.setattr(os, asked, refused)
    result = CliRunner().invoke(app, ["runs", str(tmp_path), "--json"])
    monkeypatch.undo()
    rows = json.loads(result.stdout)
    assert [row["state"] for row in rows].count("finished") == 2
    (closed,) = (row for row in rows if row["state"] == "unreadable")
    assert closed["folder"] == str(tmp_path / "closed")
    assert "allow this user to read it" in closed["figure"]


def test_a_missing_folder_is_a_mistake(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["runs", str(tmp_path / "none")]).exit_code == 2


@pytest.mark.parametrize(
    ("version", "wanted", "holds"),
    [
        ("1.42.0", ">=1.41,<1.43", True),
        ("1.43", ">=1.41,<1.43", False),
        ("1.9", ">=1.10", False),
        ("2.10.0+cpu", ">=2.10", True),
        ("3.11.4", ">=3.11", True),
        ("5.0.0rc1", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, holds: bool) -> None:
    assert satisfies(version, wanted) == holds


def test_the_doctor_names_every_package_of_the_metadata() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.stdout
    for name in ("torch", "transformers", "pydantic", "scikit-learn"):
        assert f"{name} {metadata.version(name)}" in result.stdout
    for word in ("Python", "devices:", "cache:", "disk:"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("told", "line"), [("1", "ok   offline: HF_HUB_OFFLINE set"), ("0", "--   offline: HF_HUB_OFFLINE and")]
)
def test_the_doctor_says_whether_libraries_are_offline(
    told: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", told)
    assert line in CliRunner().invoke(app, ["doctor"]).stdout


def test_a_fault_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(
        installation.metadata, "requires", lambda name: ["typer>=99", 'nothing>=1; extra == "x"']
    )
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "FAIL typer" in result.stdout
    assert "--   nothing is not installed (extra x)" in result.stdout
    assert "cannot be written to" in result.stdout
