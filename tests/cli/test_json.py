"""Every command has --json, and with it an error is one JSON object in the last line of standard error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

from fedloom.cli.explain_command import EXIT_CODES
from fedloom.cli.options import report_errors
from fedloom.cli.run_commands import app

DOCS = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def leaves(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the words and the command of each command that is no group."""
    if inner := getattr(command, "commands", None):
        for word, one in inner.items():
            yield from leaves(one, (*name, word))
    else:
        yield name, command


COMMANDS = dict(leaves(typer.main.get_command(app)))


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_has_json(name: tuple[str, ...]) -> None:
    assert "--json" in {option for one in COMMANDS[name].params for option in one.opts}


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_a_wrong_option_is_an_object_with_json(name: tuple[str, ...]) -> None:
    result = call(*name, "--json", "--no-such-option")
    assert (result.exit_code, result.stdout) == (2, "")
    error = json.loads(result.stderr.splitlines()[-1])
    assert error["code"] == 2
    assert "--no-such-option" in error["error"]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "missing.yaml"),
        ("resume", "missing"),
        ("verify", "missing"),
        ("sweep", "missing.yaml"),
        ("plan", "missing.yaml"),
        ("runs", "missing"),
        ("watch", "missing"),
        ("live", "missing"),
        ("validate", "missing.yaml"),
        ("show", "missing"),
        ("report", "missing"),
        ("explain", "77"),
        ("parity", "missing.yaml"),
        ("ask", "missing", "--question", "What?"),
        ("eval", "missing"),
        ("export", "missing", "--out", "here"),
        ("split", "missing"),
        ("server", "missing.yaml", "--out", "here", "--insecure"),
        ("site", "--name", "a"),
        ("keys", "here", "--sites", "../a"),
        ("doctor", "--server", "nowhere"),
        ("list", "missing"),
        ("data", "check", "missing"),
        ("data", "add", "missing"),
        ("models", "add", "missing"),
        ("cache", "clear", "missing"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_object_with_json(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain, result = call(*words), call(*words, "--json")
    assert plain.exit_code == result.exit_code == 2
    assert result.stdout == ""
    error = json.loads(result.stderr)
    assert list(error) == ["error", "code"]
    assert error["code"] == 2
    assert error["error"].split()[0] in plain.stderr


def test_an_internal_error_is_an_object_with_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stop, report_errors(False, as_json=True):
        raise KeyError("round")
    error = json.loads(capsys.readouterr().err)
    assert stop.value.exit_code == error["code"] == 1
    assert error["error"].startswith("internal error: KeyError")


def test_a_signal_is_an_object_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stop, report_errors(False, "nothing was started", as_json=True):
        raise KeyboardInterrupt
    assert json.loads(capsys.readouterr().err) == {"error": "interrupted; nothing was started", "code": 130}
    assert stop.value.exit_code == 130


def test_results_are_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    for words in (
        ("init", "mine.yaml"),
        ("show", "smoke"),
        ("validate", "smoke"),
        ("cache", "ls"),
        ("cache", "clear"),
        ("doctor",),
        ("explain",),
        ("explain", "2"),
        ("list", "recipes"),
        ("data", "check", "digits"),
        ("split", "digits"),
        ("runs", "."),
    ):
        result = call(*words, "--json")
        assert result.exit_code == 0, (words, result.output)
        json.loads(result.stdout)


def test_the_docs_have_the_table_of_exit_codes() -> None:
    rows = [
        tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d", line)
    ]
    assert rows == [
        (", ".join(map(str, row.codes)), row.meaning.replace("|", r"\|"), row.remedy) for row in EXIT_CODES
    ]


@pytest.mark.parametrize("code", [code for row in EXIT_CODES for code in row.codes])
def test_every_exit_code_is_explained(code: int) -> None:
    (row,) = [row for row in EXIT_CODES if code in row.codes]
    result = call("explain", str(code))
    assert result.exit_code == 0
    assert " ".join(result.stdout.split()).endswith(f"{row.meaning} {row.remedy}".strip())
    assert max(map(len, result.stdout.splitlines())) <= 80
