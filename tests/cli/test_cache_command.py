"""`fedloom cache` lists and removes fedloom's own files, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.cache_command import PARTS
from fedloom.cli.run_commands import app
from fedloom.models.added_models import ADDED, added_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))
    for name in ("features/ab/cd.safetensors", "hashes/images.json", "models/minilm/x", "models/mine/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "hashes/images-too").write_bytes(b"")
    (tmp_path / "features/ab/link.safetensors").symlink_to(tmp_path / "models/mine/y")
    return tmp_path


def call(*words: str) -> str:
    result = CliRunner().invoke(app, ["cache", *words])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_parts_are_listed_with_their_bytes(folder: Path) -> None:
    rows = json.loads(call("ls", "--json"))
    assert rows["folder"] == str(folder)
    assert {name: row["bytes"] for name, row in rows["parts"].items()} == {
        "features": 5,
        "hashes": 5,
        "models": 5,
        "emoji-styles": 0,
    }
    assert all(name in call("ls") for name in PARTS)


def test_clearing_removes_only_what_is_computed_again(folder: Path) -> None:
    call("clear")
    left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert left == {
        "models/minilm/x",
        "models/mine/y",
        "hashes/images-too",
        "features/ab/link.safetensors",
    }
    call("clear", "models")
    assert not (folder / "models/minilm").exists()
    assert (folder / "models/mine/y").exists()


def test_an_unknown_part_is_guessed(folder: Path) -> None:
    result = CliRunner().invoke(app, ["cache", "clear", "feature"])
    assert result.exit_code == 2
    assert "Did you mean features?" in result.stderr
    assert (folder / "features/ab/cd.safetensors").exists()


@pytest.mark.parametrize("name", ADDED)
def test_added_models_belong_to_the_part_of_models(name: str, folder: Path) -> None:
    file = added_folder(name) / "config.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    call("clear", "models")
    assert not file.parent.exists()
