"""Commands in messages can be copied into a shell, whatever the names of folders and files are."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedloom
from fedloom.cli.run_commands import app
from fedloom.config.yaml_document import read_document
from fedloom.experiment.recipes import load_experiment
from fedloom.system.errors import UserError
from fedloom.system.terminal import shell_word

NAMES = [
    "mine",
    "my run",
    "-mine",
    "--out",
    "50%",
    "it's",
    "$HOME",
    "a;b",
    "größe",
    "日本",
    '"x"',
    "#1",
    "~x",
    "a\nb",
]
SOURCES = Path(fedloom.__file__).parent
PLACES = ("folder", "path", "file", "path_or_recipe", "recipe")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_word_and_no_option(name: str) -> None:
    (word,) = shlex.split(shell_word(name))
    assert Path(word) == Path(name)
    assert not word.startswith("-")


@pytest.mark.parametrize("name", [name for name in NAMES if "\n" not in name])
def test_the_advice_to_sweep_a_grid_names_the_same_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("grid: {seed: [0, 1]}\n", encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_experiment(name)
    command = re.search(r"`fedloom (.*)`", str(refused.value))
    assert command is not None
    checked = CliRunner().invoke(app, ["validate", "--syntax", *shlex.split(command[1])[1:]])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("name", NAMES)
def test_a_new_recipe_is_valid_whatever_its_name_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["init", "--", name])
    assert made.exit_code == 0, made.output
    text = Path(name).read_text(encoding="utf-8")
    assert not read_document(text, name).mistakes
    assert text.startswith("# yaml-language-server") and text.split("\n")[1].startswith(
        "# A recipe for fedloom"
    )


@pytest.mark.parametrize(
    "file", [file for file in SOURCES.rglob("*.py") if "`fedloom " in file.read_text("utf-8")]
)
def test_no_message_has_a_bare_path_in_a_command(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            text = ast.unparse(node)
            bare = [name for name in PLACES if re.search(rf"`fedloom [^`]*\{{{name}\}}", text)]
            assert not bare, f"{file}:{node.lineno}: put shell_word() around {bare[0]}"
