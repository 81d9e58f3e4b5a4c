"""An unknown option with the name of a key of an experiment is answered with the change that was meant."""

from __future__ import annotations

import re

import pytest
from tests.shares import share
from typer.main import get_command
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.config.validation_errors import key_descriptions
from fedloom.config.yaml_document import dotted
from fedloom.experiment.experiment import Experiment

PATHS = [path for path, _ in key_descriptions(Experiment.model_json_schema())]
KEYS = [path for path in PATHS if not any(path == other[:-1] for other in PATHS)]
KNOWN = {
    option.lstrip("-")
    for parameter in get_command(app).commands["run"].params  # type: ignore[attr-defined]
    for option in parameter.opts
}


def answer(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2
    return re.sub(r"[\s│]+", " ", result.stderr)


@pytest.mark.parametrize("key", share([dotted(path) for path in KEYS if str(path[-1]) not in KNOWN], every=6))
def test_every_key_is_suggested_for_an_option_of_its_name(key: str) -> None:
    name = key.rpartition(".")[2].replace("_", "-")
    assert f"--set {key}=3" in answer("run", "smoke", f"--{name}", "3")


@pytest.mark.parametrize("words", [["--train.rounds", "3"], ["--train.rounds=3"], ["--rounds=3"]])
def test_other_ways_of_writing_it(words: list[str]) -> None:
    assert "use --set train.rounds=3" in answer("validate", "smoke", *words)


def test_a_value_that_the_shell_would_split_is_quoted() -> None:
    assert "--set 'methods=[fedavg, local]'" in answer("run", "smoke", "--methods", "[fedavg, local]")


def test_without_a_value_the_form_is_given() -> None:
    assert "--set train.rounds=VALUE" in answer("run", "smoke", "--rounds")


def test_other_unknown_options_and_commands_without_keys_get_no_such_advice() -> None:
    assert "--set" not in answer("run", "smoke", "--nothing", "3")
    assert "--quiet" in answer("run", "smoke", "--quite")
    assert "--set" not in answer("list", "recipes", "--rounds", "3")
    assert "--set" not in answer("resume", "somewhere", "--rounds", "3")
