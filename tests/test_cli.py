import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import fedloom
from fedloom.cli.options import complete_key, complete_recipe
from fedloom.cli.run_commands import app
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import parse_method
from fedloom.experiment.recipes import load_experiment, recipes, sweep_keys
from fedloom.runs.run_folder import begin_run, folder_state
from fedloom.system.errors import UserError
from fedloom.system.manifest import Manifest, add_to_manifest, files_in

LISTS = ["recipes", "algorithms", "datasets", "models", "strategies", "scenarios", "methods"]
RESULT = {
    "name": "smoke",
    "main": "fedavg",
    "scores": {"fedavg": {"accuracy": 0.4375, "macro_f1": 0.4, "auc": None, "unparsed": 0.0, "slices": {}}},
    "bytes": {"fedavg": {"up": 1000, "down": 1000}},
    "seconds": {"fedavg": 1.5},
    "report": "report.html",
    "adapter": "adapter",
}


class Engine:
    """A fake engine that writes the required files of a run folder, and can be interrupted."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path]] = []
        self.stop: BaseException | None = None

    def run_experiment(self, experiment, out, progress, models=None, **followed):
        state = folder_state(out, experiment)
        if state == "finished":
            return RESULT
        if state == "new":
            out.mkdir(parents=True)
            begin_run(out, experiment, {}, Manifest("0.2.0"))
        return self.finish("run" if state == "new" else "resume", out, progress)

    def finish(self, what, out, progress):
        self.calls.append((what, out))
        progress.stage("fedavg", 1)
        if self.stop:
            raise self.stop
        progress.advance()
        for name, text in {"result.json": json.dumps(RESULT), "report.html": ""}.items():
            (out / name).write_text(text)
        add_to_manifest(out, files_in(out))
        return RESULT


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fake, module = Engine(), ModuleType("fedloom.runs.single_run")
    module.run_experiment = fake.run_experiment
    monkeypatch.setitem(sys.modules, "fedloom.runs.single_run", module)
    return fake


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("kind", LISTS)
def test_every_list_has_names_with_descriptions(kind):
    rows = json.loads(call("list", kind, "--json").stdout)
    lines = call("list", kind).stdout.splitlines()
    assert len(lines) == len(rows) > 0
    for line, (name, about) in zip(lines, rows.items(), strict=True):
        assert about
        assert line.split() == [*name.split(), *about.split()]


def test_lists_contain_what_an_experiment_can_name():
    assert set(json.loads(call("list", "recipes", "--json").stdout)) == set(recipes())
    for row in json.loads(call("list", "scenarios", "--json").stdout):
        load_experiment("smoke", [f"scenario.{row}"])
    for row in json.loads(call("list", "strategies", "--json").stdout):
        load_experiment("smoke", [f"strategy.name={row}", "train.rounds=2"])
    for row in json.loads(call("list", "datasets", "--json").stdout):
        load_experiment("smoke", [f"data.name={row}", "data.root=somewhere"])
    methods = json.loads(call("list", "methods", "--json").stdout)
    for row in methods:
        assert parse_method(f"{'fedavg' if row[0] == '+' else ''}{row}")
    assert set(json.loads(call("list", "algorithms", "--json").stdout)) <= set(methods)


def test_an_unknown_list_is_guessed():
    result = call("list", "recipies")
    assert result.exit_code == 2
    assert "Did you mean recipes?" in result.stderr


@pytest.mark.parametrize("name", [name for name in recipes() if not sweep_keys(name)])
def test_show_prints_a_recipe_that_can_be_used_as_a_file(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(call("show", name).stdout, encoding="utf-8")
    root = ["data.root=somewhere"]
    assert load_experiment(str(path), root) == load_experiment(name, root)


def test_validate_confirms_or_lists_every_mistake(tmp_path):
    good = call("validate", "smoke")
    assert good.exit_code == 0
    assert load_experiment("smoke").digest[:8] in good.stdout
    path = tmp_path / "mine.yaml"
    path.write_text("sede: 1\ntrain: {lrr: 2}\n")
    bad = call("validate", str(path), "--set", "train.lr=0")
    assert bad.exit_code == 2
    assert bad.stdout == ""
    assert "Traceback" not in bad.stderr
    for words in (f"{path}:1:1: sede", f"{path}:2:9: train.lrr", "--set train.lr: train.lr is 0"):
        assert words in bad.stderr


def test_validate_writes_the_resolved_experiment():
    text = call("validate", "smoke", "--set", "train.lr=3e-4", "--json").stdout
    assert Experiment.from_json(text) == load_experiment("smoke", ["train.lr=3e-4"])
    assert json.loads(text)["train"]["lr"] == 3e-4


def test_a_grid_from_the_command_line_is_validated_as_by_sweep():
    shown = call("validate", "smoke", "--syntax", "--set", "grid.seed=[0,1,2]")
    assert shown.exit_code == 0, shown.output
    assert "3" in shown.stdout
    wrong = call("validate", "smoke", "--set", "grid.sed=[0,1]")
    assert wrong.exit_code == 2 and "sed" in wrong.stderr


def test_debug_shows_the_place_of_an_error():
    plain, traced = call("validate", "nope"), call("validate", "nope", "--debug")
    assert plain.exit_code == traced.exit_code == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in traced.stderr
    assert traced.stderr.endswith(plain.stderr)


def test_run_shows_the_table_and_the_paths(engine):
    result = call("run", "smoke")
    folder = Path("runs") / f"smoke-{load_experiment('smoke').digest[:8]}"
    assert result.exit_code == 0, result.output
    assert engine.calls == [("run", folder)]
    assert "43.8" in result.stdout
    assert str(folder / "report.html") in result.stdout
    assert "Adapter:" not in result.stdout  # none was written
    assert "fedavg: begins" in result.stderr


def test_run_can_be_quiet_and_write_json(engine):
    result = call("run", "smoke", "--quiet", "--json", "--out", "here")
    assert json.loads(result.stdout) == RESULT
    assert result.stderr == ""
    assert engine.calls == [("run", Path("here"))]


@pytest.mark.parametrize("command", [("run", "smoke", "--out", "here"), ("resume", "here")])
def test_an_interrupted_run_is_continued_and_never_overwritten(engine, command):
    engine.stop = KeyboardInterrupt()
    broken = call("run", "smoke", "--out", "here")
    assert broken.exit_code == 130
    assert "fedloom resume here" in broken.stderr
    engine.stop = None
    other = call("run", "smoke", "--set", "seed=1", "--out", "here")
    assert other.exit_code == 2 and "another experiment" in other.stderr
    continued = call(*command)
    assert continued.exit_code == 0
    assert "43.8" in continued.stdout
    assert ("here holds a part of this run" in continued.stderr) == (command[0] == "run")
    assert [what for what, _ in engine.calls] == ["run", "resume"]


@pytest.mark.parametrize("command", [("run", "smoke", "--out", "here"), ("resume", "here")])
def test_a_finished_run_is_shown_and_left_alone(engine, command):
    call("run", "smoke", "--out", "here")
    again = call(*command)
    assert again.exit_code == 0
    assert "here is finished" in again.stderr
    assert "43.8" in again.stdout
    assert len(engine.calls) == 1


def test_a_folder_that_holds_something_else_is_refused(engine):
    call("run", "smoke", "--out", "here")
    other = call("run", "smoke", "--set", "seed=1", "--out", "here")
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    full = call("run", "smoke", "--out", "full")
    file = call("run", "smoke", "--out", "full/thesis.tex")
    assert (other.exit_code, full.exit_code, file.exit_code) == (2, 2, 2)
    assert "another experiment" in other.stderr
    assert "is not empty" in full.stderr
    assert "--out" in file.stderr
    assert len(engine.calls) == 1


def test_a_mistake_during_a_run_has_no_traceback(engine):
    engine.stop = UserError("data: the folder is empty")
    result = call("run", "smoke")
    assert result.exit_code == 2
    assert result.stderr.endswith("fedloom: data: the folder is empty\n")


@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_folder_without_a_run_is_refused(command, tmp_path):
    result = call(command, str(tmp_path))
    assert result.exit_code == 2
    assert "is not a run folder" in result.stderr


def test_python_runs_resumes_and_reads_results(engine):
    experiment = load_experiment("smoke")
    engine.stop = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fedloom.run(experiment, "here", quiet=True)
    engine.stop = None
    assert fedloom.run(experiment, "here", quiet=True) == RESULT
    assert fedloom.run(experiment, "here", quiet=True) == RESULT
    assert [what for what, _ in engine.calls] == ["run", "resume"]
    with pytest.raises(UserError, match="here"):
        fedloom.run(Experiment(seed=9), "here")


def test_completion_offers_recipes_and_keys():
    assert complete_recipe("qu") == ["quickstart"]
    assert complete_key("train.l") == ["train.lr=", "train.local_schedule="]


@pytest.mark.parametrize("words", [["ask"], ["export"], ["data", "check"]])
def test_help_writes_brackets_without_backslashes(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert "[required]" in result.output
    assert "\\" not in result.output


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the words of each command and the command, those of groups too."""
    for name, one in getattr(command, "commands", {}).items():
        yield from _commands(one, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


@pytest.mark.parametrize(("words", "command"), list(_commands(get_command(app))), ids=str)
def test_help_explains_every_argument_and_option(words: tuple[str, ...], command: Any) -> None:
    """Some pairs of versions of typer and click leave out what an argument is."""
    output = " ".join(CliRunner().invoke(app, [*words, "--help"]).output.split())
    for parameter in command.params:
        first = " ".join((parameter.help or "").split()[:2])
        assert first, f"{parameter.name} has no help"
        assert first in output


def test_help_version_and_bad_keys_load_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fedloom.cli.run_commands import app\n"
        "for words, code in ((['--help'], 0), (['run', '--help'], 0), (['--version'], 0),\n"
        "                    (['list', 'recipes'], 0),\n"
        "                    (['validate', 'smoke', '--set', 'train.lrr=1'], 2)):\n"
        "    result = CliRunner().invoke(app, words)\n"
        "    assert result.exit_code == code, result.output\n"
        "    assert not {'torch', 'transformers', 'peft'} & set(sys.modules), words\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_is_the_command():
    shown = subprocess.run(
        [sys.executable, "-m", "fedloom", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"fedloom {fedloom.__version__}\n"


@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "-1", "0"])
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["watch", "runs/none"], "--every"),
        (["server", "smoke", "--out", "runs/none"], "--deadline"),
        (["server", "smoke", "--out", "runs/none"], "--join"),
        (["site", "127.0.0.1:8470", "--name", "a"], "--idle"),
    ],
)
def test_seconds_are_numbers_that_a_system_can_wait(words: list[str], option: str, value: str) -> None:
    result = CliRunner().invoke(app, [*words, option, value])
    assert result.exit_code == 2 and option in result.stderr
