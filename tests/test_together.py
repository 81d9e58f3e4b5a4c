"""Cells of a sweep and methods of a run that train in step: what each comes to alone, whatever stops another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from fedloom import together as together_module
from fedloom.engine import fit as fitting
from fedloom.engine.fit import Fit
from fedloom.experiment import Experiment
from fedloom.grid import load_grid
from fedloom.models.compiled import compiling
from fedloom.models.load import Vlm, load_vlm
from fedloom.progress import Progress
from fedloom.record import read_lines
from fedloom.runner import kinship, run_experiment
from fedloom.sweep import run_sweep
from fedloom.together import train_together
from fedloom.training import Setting, Training
from fedloom.tuning.adapters import prepare, release, reseeded
from fedloom.tuning.strategy import LoRA, stage
from fedloom.types import UserError

RECIPE = """\
data: {{name: emoji, limit: 12, test_share: 0.03}}
model: {{path: {model}, threads: 1}}
strategy: {{name: both, rank: 2}}
train: {{rounds: 2, batch_size: 4, optimizer: sgd, lr: 0.05}}
evaluate: {{every: 1}}
engine: {{side_by_side: 1, together: {together}}}
grid:
  what:
    - {{name: plain, scenario.clients: 2, methods: [zero-shot, fedavg, centralised]}}
    - {{name: other, scenario.clients: 3, scenario.pattern: missing, seed: 1, methods: [scaffold, local]}}
    - {{name: bad, scenario.clients: 2, methods: [fedadam], gate.max_norm: 1.0e-9}}
    - {{name: last, scenario.clients: 2, methods: [yoco], seed: 2}}
"""

Sweep = tuple[Path, Mapping[str, Any], list[str]]


def sweep(recipe: Path, folder: Path, *changes: str) -> Sweep:
    told: list[str] = []
    result = run_sweep(load_grid(str(recipe), changes), folder, told.append, lambda: Progress(None))
    return folder, result, told


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("together") / "cells.yaml"
    file.write_text(RECIPE.format(model=tiny_model, together=3))
    return file


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Sweep:
    """The cells one after another."""
    return sweep(recipe, recipe.parent / "alone", "engine.together=1")


@pytest.fixture(scope="module")
def in_step(recipe: Path) -> Sweep:
    """The cells in step, three at a time."""
    return sweep(recipe, recipe.parent / "in-step")


def cells(found: Sweep) -> dict[str, tuple[Path, Mapping[str, Any]]]:
    folder, result, _ = found
    return {cell["name"]: (folder / cell["folder"], cell) for cell in result["cells"]}


def record(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for _, line in read_lines(folder / "record.jsonl") if line["kind"] == kind]


def timeless(value: Any) -> Any:
    """Leave out how long things took."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in ("seconds", "timers")}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def assert_same_runs(found: Sweep, wanted: Sweep) -> None:
    """Equal commits and adapters to the byte, equal scores, equal figures of every round."""
    for name, (folder, cell) in cells(wanted).items():
        other, row = cells(found)[name]
        assert row["state"] == cell["state"], name
        files = sorted(file.relative_to(folder) for file in folder.rglob("*.safetensors"))
        assert sorted(file.relative_to(other) for file in other.rglob("*.safetensors")) == files
        for file in files:
            assert (other / file).read_bytes() == (folder / file).read_bytes(), (name, file)
        assert row.get("scores") == cell.get("scores")
        assert row.get("error") == cell.get("error")


def test_cells_in_step_are_the_cells_alone(alone: Sweep, in_step: Sweep) -> None:
    assert_same_runs(in_step, alone)
    for name, (folder, _) in cells(alone).items():
        other = cells(in_step)[name][0]
        for kind in ("start", "round", "evaluation"):
            lines = [[timeless(line) for line in record(place, kind)] for place in (folder, other)]
            for line in (*lines[0], *lines[1]):
                line.pop("started", None)
            assert lines[0] == lines[1], (name, kind)
        assert record(folder, "together") == []
    first, _ = cells(in_step)["plain"]
    assert [line["of"] for line in record(first, "together")] == [3, 3]


def test_a_cell_that_fails_stops_no_other(alone: Sweep, in_step: Sweep) -> None:
    for found in (alone, in_step):
        states = {name: cell["state"] for name, (_, cell) in cells(found).items()}
        assert states == {"plain": "done", "other": "done", "bad": "failed", "last": "done"}
        error = cells(found)["bad"][1]["error"]
        assert "round 0: every client's update was refused" in error
        assert sum(line.startswith("[3/4] bad: failed: round 0") for line in found[2]) == 1
        assert len(found[2]) == 4


def test_each_cell_is_told_its_own_time(in_step: Sweep) -> None:
    """Every round of every cell has computed, and what a method took holds what its rounds took."""
    for name, (folder, cell) in cells(in_step).items():
        if cell["state"] == "failed":
            continue
        result = json.loads((folder / "result.json").read_text())
        rounds = record(folder, "round")
        assert rounds, name
        for line in rounds:
            assert line["timers"]["forward"] > 0 and line["timers"]["backward"] > 0
            assert sum(line["timers"].values()) == pytest.approx(line["seconds"])
        for method, seconds in result["seconds"].items():
            own = [line["seconds"] for line in rounds if line["method"] == method]
            asked = [line["seconds"] for line in record(folder, "evaluation") if line["method"] == method]
            assert seconds >= sum(own) + sum(asked)
        assert record(folder, "end")[0]["seconds"] >= sum(result["seconds"].values())


CHILD = """
import os, re, signal, sys
from pathlib import Path
from fedloom.grid import load_grid
from fedloom.progress import Progress
from fedloom.sweep import run_sweep
import torch
torch.set_num_threads(1)
real = os.replace
def replace(source, target):
    if re.search(sys.argv[3], str(target)):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
run_sweep(load_grid(sys.argv[1]), Path(sys.argv[2]), lambda line: None, lambda: Progress(None))
"""


@pytest.mark.parametrize(
    ("file", "states"),
    [
        ("other-.*/scaffold/round-0001.json$", ["begun", "begun", "begun", "waiting"]),
        ("other-.*/local/client-1/round-0002.json$", ["begun", "begun", "failed", "begun"]),
        ("plain-[^/]*/result.json$", ["begun", "begun", "failed", "begun"]),
    ],
)
def test_a_sweep_killed_with_several_cells_under_way_ends_with_the_same_bytes(
    file: str, states: Sequence[str], recipe: Path, in_step: Sweep, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    words = [sys.executable, "-c", CHILD, str(recipe), str(folder), file]
    killed = subprocess.run(words, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert [row["state"] for row in json.loads((folder / "sweep.json").read_text())["cells"]] == states
    assert_same_runs(sweep(recipe, folder), in_step)


def near(folder: Path, other: Path) -> None:
    """Both adapters are the same but for rounding."""
    ours, theirs = (load_file(place / "adapter/adapter_model.safetensors") for place in (folder, other))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert float((value - theirs[name]).norm()) <= 1e-4 * float(theirs[name].norm()) + 1e-6, name


def test_clients_of_several_cells_stand_side_by_side(recipe: Path, alone: Sweep, tmp_path: Path) -> None:
    found = sweep(recipe, tmp_path / "rows", "engine.side_by_side=4")
    for name in ("plain", "other", "last"):
        (folder, cell), (other, row) = cells(found)[name], cells(alone)[name]
        assert cell["state"] == row["state"] == "done"
        if (folder / "adapter").exists():
            near(folder, other)
    assert cells(found)["bad"][1]["state"] == "failed"


@pytest.mark.parametrize(("rows", "of"), [(1, 1), (3, 3)])
def test_cells_go_together_by_themselves_where_side_by_side_pays(
    rows: int, of: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "fit", lambda tuned, works, cohort, workers: Fit(rows, float(rows), rows))
    file = tmp_path / "seeds.yaml"
    file.write_text(
        f"{{data: {{limit: 8, test_share: 0.03}}, model: {{path: {tiny_model}, threads: 1}}, methods: [fedavg],\n"
        "scenario: {clients: 2}, train: {rounds: 1}, evaluate: {every: 0}, grid: {seed: [0, 1, 2]}}"
    )
    found = cells(sweep(file, tmp_path / "all"))
    for folder, _ in found.values():
        assert [line["of"] for line in record(folder, "together")] == ([of] if of > 1 else [])
        assert [line["rows"] for line in record(folder, "engine")] == [rows]
        assert json.loads((folder / "engine.json").read_text())["rows"] == rows


def test_methods_of_a_run_in_step_are_the_methods_one_by_one(tiny_model: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data": {"limit": 12, "test_share": 0.03},
        "scenario": {"clients": 2},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"name": "two-stage", "rank": 2},
        "train": {"rounds": 2, "batch_size": 4},
        "methods": ["zero-shot", "local", "fedavg", "scaffold+prompt", "centralised"],
        "evaluate": {"every": 1},
    }
    found = []
    for together in (1, 3):
        engine = {"side_by_side": 1, "together": together}
        experiment = Experiment.from_json(json.dumps({**values, "engine": engine}))
        result = run_experiment(experiment, tmp_path / str(together), Progress(None))
        files = sorted((tmp_path / str(together)).rglob("*.safetensors"))
        content = [(str(file.relative_to(tmp_path / str(together))), file.read_bytes()) for file in files]
        found.append((timeless(result), content))
    assert found[0] == found[1]
    lines = record(tmp_path / "3", "together")
    assert {line["of"] for line in lines} == {3}  # the last is alone
    assert {line["training"] for line in lines} >= {"local, stage 1", "fedavg, stage 2"}


def test_another_seed_draws_what_preparing_with_it_draws(tiny_model: Path) -> None:
    vlm, both = load_vlm(str(tiny_model)), stage("both", LoRA(2))
    first = prepare(vlm, both, seed=0)
    again = reseeded(first, 7)
    before = first.start.flat.clone()
    release(first)
    wanted = prepare(vlm, both, seed=7)
    assert torch.equal(again.start.flat, wanted.start.flat)
    assert torch.equal(first.start.flat, before)
    assert not torch.equal(again.start.flat, before)


def test_kin_share_base_layout_training_and_engine() -> None:
    def of(**changes: Any) -> str:
        return kinship(Experiment.from_json(json.dumps(changes)))

    base = of()
    assert (
        base
        == of(seed=1)
        == of(methods=["fedprox"])
        == of(scenario={"clients": 9})
        == of(gate={"max_ratio": 3})
    )
    others = [
        of(model={"path": "x"}), of(model={"threads": 1}), of(strategy={"rank": 2}), of(train={"batch_size": 1}),
        of(engine={"side_by_side": 2}),
    ]  # fmt: skip
    assert base not in others
    fresh = {"model": {"connector": "mlp2"}}  # its values depend on the seed
    assert of(**fresh) != of(**fresh, seed=1)


def test_a_mistake_is_told_to_who_makes_it() -> None:
    setting = cast("Setting", SimpleNamespace(progress=Progress(None), folder=Path("x")))

    def refused() -> list[Any]:
        raise UserError("mine")

    asked = [Training(setting, str(k), refused if k in (1, 4) else list) for k in range(5)]
    found = [one.ended for one in train_together(asked)]
    assert [str(one) if isinstance(one, UserError) else one for one in found] == [[], "mine", [], [], "mine"]


def test_a_run_through_compiled_layers_learns_the_same(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, not compiled: that is quick and tells as well whether training goes through the layers."""
    experiment = load_grid(str(recipe)).cells[0].experiment
    wanted: list[bool] = []

    def traced(vlm: Vlm, compiled: bool) -> AbstractContextManager[None]:
        wanted.append(compiled)
        return compiling(vlm, compiled, backend="eager")

    monkeypatch.setattr(together_module, "compiling", traced)
    found = []
    for compiled in (False, True):
        engine = experiment.engine.model_copy(update={"compile": compiled, "together": 1})
        folder = tmp_path / str(compiled)
        run_experiment(experiment.model_copy(update={"engine": engine}), folder, Progress(None))
        found.append(load_file(folder / "adapter/adapter_model.safetensors"))
    assert set(wanted) == {False, True}
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)
