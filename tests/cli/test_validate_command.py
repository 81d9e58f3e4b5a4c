"""`fedloom validate` checks what a run needs besides its keys, and reports all that is missing at once."""

from __future__ import annotations

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
    "a model": (["model.path=/none/model"], "/none/model"),
    "layers to train": (["strategy.targets=[q_prj]"], "no linear layer of the llm is called any of q_prj"),
    "enough examples": (["data.limit=3", "scenario.clients=5"], "clients"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named(name: str) -> None:
    changes, words = MISSING[name]
    result = call(*(word for change in changes for word in ("--set", change)))
    assert result.exit_code == 2
    assert "the keys are valid, but one thing is missing here" in result.stderr
    assert words in result.stderr.replace("\n", " ")
    syntax = call("--syntax", *(word for change in changes for word in ("--set", change)))
    assert syntax.exit_code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_several_things_are_reported_together() -> None:
    result = call("--set", "model.device=cuda", "--set", "data.name=folder", "--set", "data.root=/none")
    assert "2 things are missing" in result.stderr
    assert "there is no cuda device here" in result.stderr


def test_a_full_disk_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check_resources.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    result = call()
    assert result.exit_code == 2
    assert "its disk has 0 MB left" in result.stderr
