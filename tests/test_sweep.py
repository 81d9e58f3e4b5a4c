"""Sweeps: every cell runs once, whatever interrupts it, and shared models change no byte."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.killed_process import killed_at
from typer.testing import CliRunner, Result

from fedloom.cli.run_commands import app
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.grid import load_grid
from fedloom.runs import single_run
from fedloom.runs.run_folder import begin_run
from fedloom.runs.single_run import run_experiment
from fedloom.runs.sweep import run_sweep
from fedloom.system.errors import UserError
from fedloom.system.manifest import Manifest, add_to_manifest, files_in
from fedloom.system.processes import can_fork
from fedloom.system.progress import Progress

RECIPE = """\
name: mine
methods: [fedavg, local]
grid:
  scenario:
    - {name: even, scenario.partition: iid}
    - {name: gaps, scenario.pattern: missing}
  seed: [0, 1]
quick: {grid: {seed: [0]}}
"""


class Engine:
    """A fake runner that writes the required files of a run folder; `stop` holds the calls that raise an error."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.stop: dict[int, BaseException] = {}
        self.bad: dict[str, Callable[[], None]] = {}

    def run(self, experiment: Experiment, folder: Path, progress: Progress, models: object) -> None:
        what = "resume" if folder.exists() else "run"
        folder.mkdir(parents=True, exist_ok=True)
        begin_run(folder, experiment, {}, Manifest("0.2.0"))
        self.calls.append((what, folder.name.rpartition("-")[0]))
        if stop := self.stop.get(len(self.calls)):
            raise stop
        self.bad.get(folder.name.rpartition("-")[0], lambda: None)()
        scores = {name: {"accuracy": share} for name, share in (("fedavg", 0.75), ("local", 0.5))}
        (folder / "result.json").write_text(json.dumps({"scores": scores, "main": "fedavg", "seconds": {}}))
        (folder / "report.html").touch()
        add_to_manifest(folder, files_in(folder))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    fake = Engine()
    monkeypatch.setattr(single_run, "run_experiment", fake.run)
    monkeypatch.setattr(single_run, "unusable_cells", lambda cells: {})
    return fake


def sweep(*words: str) -> Result:
    return CliRunner().invoke(app, ["sweep", "mine.yaml", "--out", "all", *words])


def states() -> list[str]:
    return [cell["state"] for cell in json.loads(Path("all/sweep.json").read_text())["cells"]]


CELLS = ["even_seed-0", "even_seed-1", "gaps_seed-0", "gaps_seed-1"]


def test_every_cell_runs_once_and_prints_a_line(engine: Engine) -> None:
    first = sweep()
    assert first.exit_code == 0, first.output
    assert engine.calls == [("run", name) for name in CELLS]
    lines = [line for line in first.stderr.splitlines() if line.startswith("[")]
    names = [cell.replace("_seed-", ", seed=") for cell in CELLS]
    assert lines[::2] == [f"[{k}/4] {name}: begins" for k, name in enumerate(names, 1)]
    lines = lines[1::2]
    assert len(lines) == 4
    assert lines[0].startswith("[1/4] even, seed=0: local 50.0, fedavg 75.0; about")
    assert "left" not in lines[-1]
    assert states() == ["done"] * 4
    again = sweep()
    assert again.exit_code == 0
    assert len(engine.calls) == 4
    assert "4 of 4 cells are done already" in again.stderr
    assert again.stdout == first.stdout


def test_quiet_and_json_leave_only_the_result(engine: Engine) -> None:
    result = sweep("--quiet", "--json")
    assert result.stderr == ""
    printed = json.loads(result.stdout)
    assert printed == json.loads(Path("all/result.json").read_text())
    assert [cell["scores"]["fedavg"]["accuracy"] for cell in printed["cells"]] == [0.75] * 4
    assert [row["methods"]["local"]["seeds"] for row in printed["rows"]] == [2, 2]


def test_comparisons_of_the_grid_are_printed_and_saved(engine: Engine) -> None:
    output = sweep().stdout
    assert "Paired comparisons, in points" in output
    assert "scenario against even: gaps 0.0†" in output.replace(" (Accuracy, global test)", "")
    assert "local −25.0†" in output and "local −25.0†*" not in output
    comparisons = json.loads(Path("all/result.json").read_text())["comparisons"]
    (local,) = [one for one in comparisons if (one["factor"], one["by"]) == ("method", None)]
    assert (local["value"], local["verdict"]) == ("local", "not significant")


def test_choosing_runs_the_same_cells_and_is_printed_and_saved(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two rates the second has the higher validation score, and the lower test score."""
    Path("mine.yaml").write_text(
        "methods: [fedavg, local]\ndata: {validation: 0.1}\ngrid: {train.lr: [0.01, 0.02], seed: [0, 1]}\n"
    )
    real = engine.run

    def run(experiment: Experiment, folder: Path, progress: Progress, models: object) -> None:
        real(experiment, folder, progress, models)
        file, second = folder / "result.json", experiment.train.lr == 0.02
        saved = json.loads(file.read_text())
        saved["scores"]["fedavg"]["accuracy"] = 0.6 if second else 0.9
        scores = {name: {"score": 0.7 if second else 0.5} for name in saved["scores"]}
        file.write_text(json.dumps({**saved, "validation": {"from": 0.1, "methods": scores}}))
        add_to_manifest(folder, files_in(folder))

    monkeypatch.setattr(single_run, "run_experiment", run)
    assert sweep().exit_code == 0
    printed = sweep("--set", "choose=[train.lr]")
    assert printed.exit_code == 0, printed.output
    assert len(engine.calls) == 4
    assert "90.0" not in printed.stdout
    saved = json.loads(Path("all/result.json").read_text())
    assert [(one["values"], one["test"]["mean"]) for one in saved["choices"]] == [
        ({"train.lr": 0.02}, 0.6),
        ({"train.lr": 0.02}, 0.5),
    ]
    (local,) = [one for one in saved["comparisons"] if (one["factor"], one["by"]) == ("method", None)]
    assert local["mean"] == pytest.approx(-0.1)


def test_one_cell_is_reported_in_the_singular(engine: Engine) -> None:
    Path("mine.yaml").write_text("methods: [fedavg]\ngrid: {scenario.alpha: [0.5], seed: [0]}\n")
    assert sweep().stderr.startswith("1 cell in all\n")
    assert "1 of 1 cell is done already" in sweep().stderr
    assert "is valid: 1 cell (" in CliRunner().invoke(app, ["validate", "mine.yaml"]).stdout
    page = Path("all/report.html").read_text()
    assert "1 value<" in page
    assert not re.search(r"\b1 (cells|values|seeds|settings|intervals)\b", page)


def test_the_quick_form_goes_to_a_folder_of_its_own(engine: Engine) -> None:
    result = CliRunner().invoke(app, ["sweep", "mine.yaml", "--quick"])
    assert result.exit_code == 0, result.output
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("mine-quick-")
    assert [name for _, name in engine.calls] == ["even_seed-0", "gaps_seed-0"]


def test_an_interrupted_sweep_shows_how_to_continue_and_continues(engine: Engine) -> None:
    engine.stop[2] = KeyboardInterrupt()
    stopped = sweep("--set", "train.lr=0.5")
    assert stopped.exit_code == 130
    assert "`fedloom sweep mine.yaml --set train.lr=0.5 --out all` continues from there" in stopped.stderr
    assert states() == ["done", "begun", "waiting", "waiting"]
    assert sweep("--set", "train.lr=0.5").exit_code == 0
    assert engine.calls[1:] == [("run", CELLS[1]), ("resume", CELLS[1]), ("run", CELLS[2]), ("run", CELLS[3])]
    assert states() == ["done"] * 4


def test_a_failed_cell_is_reported_and_the_others_continue(engine: Engine) -> None:
    engine.stop[2] = UserError("round 0: every client's update was refused")
    result = sweep()
    assert result.exit_code == 1
    assert states() == ["done", "failed", "done", "done"]
    assert "even, seed=1 failed: round 0: every client's update was refused" in result.stderr
    assert "every client&#39;s update was refused" in Path("all/report.html").read_text()
    assert json.loads(Path("all/result.json").read_text())["rows"][0]["methods"]["fedavg"]["seeds"] == 1
    assert sweep().exit_code == 0  # tried again, and now it works
    assert engine.calls[-1] == ("resume", CELLS[1])


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
@pytest.mark.parametrize("jobs", ["2", "9"])
def test_a_cell_that_fails_in_its_own_process_is_reported_and_run_again(jobs: str, engine: Engine) -> None:
    engine.stop[1] = UserError("no room")  # the first cell of each process
    result = sweep("--jobs", jobs)
    assert result.exit_code == 1 and "failed: no room" in result.stderr
    assert "failed" in states() and set(states()) <= {"done", "failed"}
    engine.stop.clear()
    assert sweep("--jobs", jobs).exit_code == 0
    assert states() == ["done"] * 4


FAILURES = [
    (
        OSError(28, "No space left on device", "cells/x/record.jsonl"),
        "cells/x/record.jsonl: no space is left",
    ),
    (MemoryError(), "memory ran out"),
    (RuntimeError("shapes differ"), "RuntimeError: shapes differ"),
]


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(("error", "said"), FAILURES, ids=lambda value: type(value).__name__)
def test_any_exception_fails_its_cell_alone(jobs: str, error: Exception, said: str, engine: Engine) -> None:
    engine.bad = {"even_seed-1": lambda: raised(error)}
    result = sweep("--jobs", jobs)
    assert result.exit_code == 1
    assert states() == ["done", "failed", "done", "done"]
    assert said in json.loads(Path("all/sweep.json").read_text())["cells"][1]["error"]
    assert said in result.stderr and "all/sweep.json has the reasons" in result.stderr
    assert "Traceback" not in result.output
    engine.bad = {}
    assert sweep("--jobs", jobs).exit_code == 0


def raised(error: Exception) -> None:
    raise error


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
@pytest.mark.parametrize("cells", [["even_seed-0"], CELLS[:2], CELLS])
@pytest.mark.parametrize(
    ("die", "said"),
    [(lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"), (lambda: os._exit(0), "exit code 0")],
)
def test_a_killed_job_fails_only_its_cells(
    die: Callable[[], None], said: str, cells: list[str], engine: Engine
) -> None:
    engine.bad = dict.fromkeys(cells, die)
    result = sweep("--jobs", "2")
    assert result.exit_code == 1
    rows = json.loads(Path("all/sweep.json").read_text())["cells"]
    for name, cell in zip(CELLS, rows, strict=True):
        assert cell["state"] == ("failed" if name in cells else "done")
        assert name not in cells or said in cell["error"]
    engine.bad = {}
    assert sweep("--jobs", "2").exit_code == 0
    assert states() == ["done"] * 4


def test_a_damaged_cell_fails_alone(engine: Engine) -> None:
    engine.bad = {"even_seed-1": lambda: raised(UserError("no"))}
    sweep()
    (file,) = Path("all/cells").glob("even_seed-1-*/experiment.json")
    file.write_bytes(b"\xff{")
    engine.bad = {}
    result = sweep()
    assert result.exit_code == 1
    assert str(file) in result.stderr
    assert states() == ["done", "failed", "done", "done"]


def test_a_cell_done_under_another_name_is_not_run_again(engine: Engine) -> None:
    sweep()
    text = RECIPE.replace("name: even", "name: level").replace("[0, 1]", "[0, 1, 2]")
    Path("mine.yaml").write_text(text)
    assert sweep().exit_code == 0
    assert engine.calls[4:] == [("run", "level_seed-2"), ("run", "gaps_seed-2")]
    os.rename("all/cells", "all/kept")
    os.mkdir("all/cells")
    for place, folder in enumerate(sorted(Path("all/kept").iterdir())):
        os.rename(folder, f"all/cells/{place}")
    assert sweep().exit_code == 0
    assert len(engine.calls) == 6


def test_the_same_experiment_twice_in_a_grid_runs_once(engine: Engine) -> None:
    Path("mine.yaml").write_text("grid: {x: [{name: a, seed: 1}, {name: b, seed: 1}, {name: c, seed: 2}]}\n")
    assert sweep().exit_code == 0
    assert [name for _, name in engine.calls] == ["a", "c"]
    assert states() == ["done"] * 3


def test_only_a_folder_for_sweeps_is_written_to(engine: Engine) -> None:
    Path("all").mkdir()
    Path("all/thesis.tex").touch()
    result = sweep()
    assert result.exit_code == 2
    assert "all is not empty and is not a sweep folder" in result.stderr
    assert engine.calls == []


def test_other_commands_know_grids_and_sweeps(engine: Engine) -> None:
    def call(*words: str) -> Result:
        return CliRunner().invoke(app, list(words))

    assert "4 cells in runs/" in call("run", "mine.yaml").stderr
    assert "mine.yaml is valid: 4 cells (2 scenario × 2 seed)" in call("validate", "mine.yaml").stdout
    cells = json.loads(call("validate", "mine.yaml", "--json").stdout)
    assert cells["gaps, seed=1"]["scenario"]["pattern"] == "missing"
    sweep()
    page = Path("all/report.html").read_bytes()
    Path("all/report.html").unlink()
    assert call("report", "all").exit_code == 0
    assert Path("all/report.html").read_bytes() == page
    for words in (("report", "all", "all"), ("report", "all", "--out", "x.html"), ("resume", "all")):
        refused = call(*words)
        assert refused.exit_code == 2
        assert "all is a sweep" in refused.stderr


@pytest.fixture(scope="module")
def real(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose cells insert other adapters into the same tiny model."""
    recipe = tmp_path_factory.mktemp("real") / "real.yaml"
    recipe.write_text(
        "data: {name: emoji, limit: 12, test_share: 0.03}\n"
        f"model: {{path: {tiny_model}, threads: 1}}\n"
        "scenario: {clients: 2}\n"
        "train: {rounds: 1, batch_size: 4}\n"
        "evaluate: {every: 0}\n"
        "engine: {workers: 1, side_by_side: 1}\n"  # so that comparisons stand at equal rows
        "methods: [fedavg]\n"
        "grid:\n"
        "  how:\n"
        "    - {name: both, strategy: {name: both, rank: 2}}\n"
        "    - {name: lora, strategy: {name: lora, rank: 3}, seed: 1}\n"
        "    - {name: again, strategy: {name: both, rank: 2}, train.lr: 0.01}\n"
    )
    return recipe


@pytest.fixture(scope="module")
def undisturbed(real: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the result of a sweep without interruption."""
    folder = real.parent / "all"
    return folder, run_sweep(load_grid(str(real)), folder, lambda line: None, lambda: Progress(None))


def adapter(folder: Path) -> bytes:
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


def test_sharing_between_cells_changes_no_byte(
    real: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, result = undisturbed
    for cell, row in zip(load_grid(str(real)).cells, result["cells"], strict=True):
        place = tmp_path / cell.values["how"]
        alone = run_experiment(cell.experiment, place, Progress(None))
        assert row["scores"] == alone["scores"]
        assert adapter(folder / row["folder"]) == adapter(place)


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_cells_in_several_processes_have_the_same_bytes(
    real: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    lines: list[str] = []
    folder = tmp_path / "all"
    result = run_sweep(load_grid(str(real)), folder, lines.append, lambda: Progress(None), jobs=2)
    ended = [line for line in lines if not line.endswith(": begins")]
    assert len(lines) == 2 * len(ended)
    assert sorted(re.match(r"\[(\d)/3\]", line).group(1) for line in ended) == ["1", "2", "3"]
    for row, wanted in zip(result["cells"], undisturbed[1]["cells"], strict=True):
        assert row["scores"] == wanted["scores"]
        assert adapter(folder / row["folder"]) == adapter(undisturbed[0] / wanted["folder"])


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_a_sweep_killed_in_its_second_cell_ends_with_the_same_bytes(
    real: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "all"

    def dies(_: int, target: str) -> bool:
        return "cells/lora-" in target and target.endswith("methods/fedavg/result.json")

    def quietly() -> None:
        run_sweep(load_grid(str(real)), folder, lambda line: None, lambda: Progress(None))

    assert killed_at(quietly, dies)
    states = [cell["state"] for cell in json.loads((folder / "sweep.json").read_text())["cells"]]
    assert states == ["done", "begun", "waiting"]
    lines: list[str] = []
    result = run_sweep(load_grid(str(real)), folder, lines.append, lambda: Progress(None))
    assert lines[0] == "1 of 3 cells is done already"
    assert [line.endswith(": begins") for line in lines[1:]] == [True, False, True, False]
    for row, wanted in zip(result["cells"], undisturbed[1]["cells"], strict=True):
        assert row["scores"] == wanted["scores"]
        assert adapter(folder / row["folder"]) == adapter(undisturbed[0] / wanted["folder"])
