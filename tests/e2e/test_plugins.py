"""Whole runs with plug-ins: what they add is computed, recorded and reported, and decides what a run is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedloom
from fedloom import Experiment, Plugins
from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.fedavg import fedavg
from fedloom.cli.run_commands import app
from fedloom.plugins import code_digest
from fedloom.run_log import RunLog
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.progress import Progress
from fedloom.types import Example

PLUGIN = '''
from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import server
from fedloom.algorithms.fedavg import averaging
from fedloom.types import DataSet, Example
from helper import FACTOR


def slow(*, lr: float = FACTOR):
    """Half a step of FedAvg."""
    return server(averaging(lr), mean())


def letters(settings, seed):
    rows = [
        Example(str(n), "Which?", "ab"[n % 2], text=f"note {n}", label=n % 2, options=("a", "b")) for n in range(20)
    ]
    return DataSet("", tuple(rows[:14]), tuple(rows[14:]))


ALGORITHMS = {"slow": slow}
DATASETS = {"letters": letters}
METRICS = {"first_letter": lambda example, answer: float(answer == 0)}
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "helper.py").write_text("FACTOR = 0.5\n")
    (folder / "mine.py").write_text(PLUGIN)
    return folder / "mine.py"


def experiment(model: Path, *plugins: Any, **changes: Any) -> Experiment:
    values: dict[str, Any] = {
        "name": "plugged",
        "plugins": plugins,
        "data": {"name": "letters"},
        "scenario": {"clients": 2},
        "model": {"path": str(model), "threads": 1},
        "strategy": {"name": "lora", "rank": 2},
        "train": {"rounds": 2, "batch_size": 4},
        "methods": ["fedavg", "slow"],
        "evaluate": {"every": 0},
        "engine": {"workers": 1, "side_by_side": 1},
    }
    return Experiment(**{**values, **changes})


def run(value: Experiment, folder: Path) -> dict[str, Any]:
    return run_experiment(value, folder, Progress(None))


def adapter(folder: Path) -> bytes:
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


@pytest.fixture
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the digest of fedloom's own code, whatever else works on it."""
    monkeypatch.setattr("fedloom.runs.run_identity._editable", lambda: False)


def test_what_a_plugin_adds_is_run_recorded_and_reported(
    tiny_model: Path, mine: Path, tmp_path: Path
) -> None:
    result = run(experiment(tiny_model, mine, main="slow"), tmp_path / "run")
    assert json.loads((tmp_path / "run/result.json").read_text()) == result
    assert result["metrics"] == ["first_letter"] and result["parts"]["slow"] == "Half a step of FedAvg."
    for method in ("fedavg", "slow"):
        scores = result["scores"][method]
        assert 0 <= scores["first_letter"] == scores["tasks"]["choice"]["first_letter"] <= 1
    page = (tmp_path / "run/report.html").read_text()
    assert ">first_letter<" in page and "Half a step of FedAvg." in page
    same = run(
        experiment(tiny_model, mine, main="fedavg", algorithms={"fedavg": {"lr": 0.5}}), tmp_path / "other"
    )
    assert same["scores"]["fedavg"] == result["scores"]["slow"]
    assert adapter(tmp_path / "other") == adapter(tmp_path / "run"), "half a step is half a step"


def test_an_interrupted_run_goes_on_with_its_plugins(
    tiny_model: Path, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_code: None
) -> None:
    def stopping(append: Callable[..., None]) -> Callable[..., None]:
        def stop(record: RunLog, kind: str, values: dict[str, object]) -> None:
            if kind == "round" and values["method"] == "slow" and values["round"] == 1:
                raise KeyboardInterrupt
            append(record, kind, values)

        return stop

    whole = run(experiment(tiny_model, mine), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLog, "append", stopping(RunLog.append))
        run(experiment(tiny_model, mine), tmp_path / "run")
    text = json.loads((tmp_path / "run/experiment.json").read_text())
    assert text["plugins"] == [str(mine)]
    resumed = CliRunner().invoke(app, ["resume", str(tmp_path / "run"), "--json", "--quiet"])
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["scores"] == whole["scores"]
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


@pytest.mark.parametrize("what", ["mine.py", "helper.py"])
def test_a_changed_plugin_is_another_run(
    what: str, tiny_model: Path, mine: Path, tmp_path: Path, same_code: None
) -> None:
    result = run(experiment(tiny_model, mine), tmp_path / "run")
    file = mine.parent / what
    before = file.read_text()
    file.write_text(f"{before}\nMORE = 1\n")
    with pytest.raises(UserError, match=r"since it began, this has changed: plug-in mine.py\."):
        run(experiment(tiny_model, mine), tmp_path / "run")
    file.write_text(before)
    assert run(experiment(tiny_model, mine), tmp_path / "run") == result


def test_a_plugin_that_has_moved_is_the_same_and_a_missing_one_is_named(
    tiny_model: Path, mine: Path, tmp_path: Path, same_code: None
) -> None:
    result = run(experiment(tiny_model, mine), tmp_path / "run")
    moved = shutil.move(mine.parent, tmp_path / "moved")
    told = CliRunner().invoke(app, ["resume", str(tmp_path / "run"), "--quiet"])
    assert told.exit_code == 2 and f"plugins[0]: {mine} is missing" in told.output
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run")]).exit_code == 0, (
        "a report needs no plug-in"
    )
    words = ["resume", str(tmp_path / "run"), "--quiet", "--json", "--plugin", str(Path(moved) / "mine.py")]
    actual = CliRunner().invoke(app, words)
    assert actual.exit_code == 0 and json.loads(actual.stdout) == result
    assert run(experiment(tiny_model, Path(moved) / "mine.py"), tmp_path / "run") == result


def test_what_a_plugin_prints_is_no_part_of_a_result(tiny_model: Path, mine: Path, tmp_path: Path) -> None:
    mine.write_text(
        mine.read_text().replace(
            "lambda example, answer: float(", "lambda example, answer: print('noise') or float("
        )
    )
    recipe = tmp_path / "mine.json"
    recipe.write_text(experiment(tiny_model, mine, methods=["zero-shot"]).to_json())
    folder, swept = str(tmp_path / "run"), ["--set", "grid.seed=[0]", "--out", str(tmp_path / "sweep")]
    for command in (
        ["run", str(recipe), "--out", folder],
        ["eval", folder, "--plugin", str(mine)],
        ["sweep", str(recipe), *swept],
    ):
        told = CliRunner().invoke(app, [*command, "--json", *(["--quiet"] if command[0] != "sweep" else [])])
        assert told.exit_code == 0, told.output
        assert "first_letter" in json.dumps(json.loads(told.stdout)), command
        assert "noise" in told.stderr, command


def test_worker_processes_have_plugins_too(tiny_model: Path, mine: Path, tmp_path: Path) -> None:
    alone = run(experiment(tiny_model, mine), tmp_path / "alone")
    both = run(experiment(tiny_model, mine, engine={"workers": 2, "side_by_side": 1}), tmp_path / "both")
    assert both["scores"] == alone["scores"] and adapter(tmp_path / "both") == adapter(tmp_path / "alone")


def test_a_sweep_runs_plugins_in_several_jobs(tiny_model: Path, mine: Path, tmp_path: Path) -> None:
    base = experiment(tiny_model, mine, train={"rounds": 1, "batch_size": 4}).model_dump(mode="json")
    del base["plugins"]
    recipe = tmp_path / "grid.json"
    recipe.write_text(json.dumps({**base, "grid": {"algorithms.slow.lr": [0.1, 0.2]}}))
    words = [
        "sweep",
        str(recipe),
        "--plugin",
        str(mine),
        "--out",
        str(tmp_path / "sweep"),
        "--quiet",
        "--jobs",
        "2",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    cells = json.loads((tmp_path / "sweep/sweep.json").read_text())["cells"]
    assert [cell["state"] for cell in cells] == ["done", "done"]


EXAMPLES = [
    Example(str(n), f"Which, {n}?", "ab"[n % 2], text=f"note {n}", label=n % 2, options=("a", "b"))
    for n in range(20)
]


def test_python_values_are_run_and_are_finished_for_this_process_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_code: None
) -> None:
    def of(value: FederatedAlgorithm) -> Experiment:
        given = Plugins.of(algorithms={"value": value}, datasets={"listed": EXAMPLES})
        return experiment(tiny_model, given, data={"name": "listed"}, methods=["value"])

    half, whole = fedavg(lr=0.5), fedavg(lr=1.0)
    result = fedloom.run(of(half), tmp_path / "run", quiet=True)
    assert result["scores"]["value"]["accuracy"] is not None
    assert fedloom.run(of(half), tmp_path / "run", quiet=True) == result
    with pytest.raises(UserError, match=r"another experiment|this has changed: code of value"):
        fedloom.run(of(whole), tmp_path / "run", quiet=True)
    code_digest._number.cache_clear()  # as in another process
    with pytest.raises(UserError, match=r"another experiment|this has changed: code of value"):
        fedloom.run(of(half), tmp_path / "run", quiet=True)
    told = CliRunner().invoke(app, ["resume", str(tmp_path / "run"), "--quiet"])
    assert told.exit_code == 2 and "value, listed was a Python value" in told.output


def test_a_factory_with_source_is_finished_for_every_process(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_code: None
) -> None:
    def of(examples: list[Example]) -> Experiment:
        given = Plugins.of(algorithms={"factory": fedavg}, datasets={"listed": examples})
        return experiment(tiny_model, given, data={"name": "listed"}, methods=["factory"])

    result = fedloom.run(of(EXAMPLES), tmp_path / "run", quiet=True)
    code_digest._number.cache_clear()  # as in another process
    assert fedloom.run(of(EXAMPLES), tmp_path / "run", quiet=True) == result
    with pytest.raises(UserError, match="this has changed: training examples"):
        fedloom.run(
            of([*EXAMPLES[1:], Example("x", "?", "a", text="x", label=0, options=("a", "b"))]),
            tmp_path / "run",
        )
