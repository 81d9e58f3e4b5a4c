"""`fedloom validate` checks what a run needs besides its keys, and reports all that is missing at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.runs import check_resources


def call(*words: str):
    return CliRunner().invoke(app, ["validate", "smoke", *words])


MISSING = {
    "a folder of data": (["data.name=folder", "data.root=/none/here"], "/none/here"),
    "a model": (["model.path=/none/model"], "model.path: '/none/model' is not a folder with a checkpoint"),
    "a model nearby": (["model.path=./none"], "model.path: './none' is not a folder with a checkpoint"),
    "layers to train": (["strategy.targets=[q_prj]"], "no linear layer of the llm is called any of q_prj"),
    "each layer to train": (
        ["strategy.targets=[q_proj,v_porj,lm_head]"],
        "no linear layer of the llm is called any of v_porj, lm_head; there are",
    ),
    "enough examples": (["data.limit=3", "scenario.clients=5"], "clients"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named(name: str) -> None:
    changes, words = MISSING[name]
    result = call(*(word for change in changes for word in ("--set", change)))
    assert result.exit_code == 2
    assert "the keys are valid, but one requirement is not met:" in result.stderr
    shown = " ".join(result.stderr.split())
    assert words in shown
    assert "Repo id" not in shown
    syntax = call("--syntax", *(word for change in changes for word in ("--set", change)))
    assert syntax.exit_code == 0


@pytest.mark.parametrize("name", [*MISSING, "a grid"])
def test_json_checks_the_same_and_says_it_as_json(name: str) -> None:
    changes, words = MISSING.get(name, (["grid.seed=[0,1]", "data.name=folder", "data.root=/none"], "/none"))
    options = [word for change in changes for word in ("--set", change)]
    plain, result = call(*options), call("--json", *options)
    assert (plain.exit_code, result.exit_code, result.stdout) == (2, 2, "")
    error = json.loads(result.stderr)
    assert error["code"] == 2 and words in error["error"]
    keys = call("--json", "--syntax", *options)
    assert keys.exit_code == 0 and json.loads(keys.stdout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_several_things_are_reported_together() -> None:
    result = call("--set", "model.device=cuda", "--set", "data.name=folder", "--set", "data.root=/none")
    assert "2 requirements are not met" in result.stderr
    assert "there is no cuda device here" in result.stderr


def test_a_full_disk_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check_resources.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    result = call()
    assert result.exit_code == 2
    assert "its disk has 0 MB left" in result.stderr


def test_the_advice_on_a_folder_is_right_where_there_is_no_option_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("")
    monkeypatch.chdir(tmp_path)
    message = " ".join(call().stderr.split())
    assert "cannot be written to" in message
    assert "`fedloom run` takes another folder with --out" in message
    assert "--out" not in call("--help").stdout
