"""The same bytes on every backend: for every algorithm and part that comes with fedloom, and as the command says it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clients import start_of
from typer.testing import CliRunner

from fedloom.algorithms import ENTRIES, SERVERS
from fedloom.algorithms.algorithm import ServerState
from fedloom.cli.run_commands import app
from fedloom.engine.rounds import TrainingState
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.recipes import load_experiment, recipes, sweep_keys
from fedloom.params import Params
from fedloom.runs import parity
from fedloom.runs.parity import BACKENDS, Backend, compare, digest, shorten
from fedloom.system.errors import UserError
from fedloom.system.processes import can_fork
from fedloom.system.progress import Progress

CLIENTS = 7
SGD = {"optimizer": "sgd", "clip": None, "schedule": "constant"}
OWN_GRADIENT = {"gradient", "noise", "no values"}
AFTER_TRAINING = {"answers", "mix"}
ALL = [
    *SERVERS,
    *(f"fedavg+{name}" for name, entry in ENTRIES.items() if entry.kind not in {"server", *AFTER_TRAINING}),
]
CASES: dict[str, dict[str, Any]] = {
    "steps of the optimizer": {"methods": [one for one in ALL if not OWN_GRADIENT & ENTRIES[one.split("+")[-1]].traits]},
    "gradients of their own": {
        "methods": [one for one in ALL if OWN_GRADIENT & ENTRIES[one.split("+")[-1]].traits],
        "train": SGD,
    },
    "own models and answers": {
        "data": {"limit": 6 * CLIENTS, "test_share": 0.01, "validation": 0.2},
        "methods": [
            "local",
            *(f"fedavg+{name}" for name, entry in ENTRIES.items() if entry.kind == "answers"),
            *(f"fedavg+finetune+{name}" for name, entry in ENTRIES.items() if entry.kind == "mix"),
        ],
    },
    "codecs and personal parts": {
        "methods": ["fedavg", "scaffold", "fednova"],
        "strategy": {"name": "share-lora"},
        "communication": {"up": "int8", "down": "bf16"},
    },
    "few values, two stages": {
        "methods": ["fedavg", "fedadam+sam"],
        "strategy": {"name": "two-stage"},
        "communication": {"up": "top16"},
    },
}  # fmt: skip
QUICK = {
    "methods": ["scaffold", "fedavg+ditto", "fedavg+sam"],
    "communication": {"up": "int4", "down": "int8"},
}


def values(tiny_model: Path, case: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {"limit": 3 * CLIENTS, "test_share": 0.01},
        "scenario": {"clients": CLIENTS, "pattern": "hybrid", "p": 0.8},
        "model": {"path": str(tiny_model)},
        "algorithms": {
            "adaptive": {"skip": 0},
            "layers": {"budgets": [1, 2, 1, 2, 1, 2, 1]},
            "ranks": {"ranks": [1, 2, 1, 2, 1, 2, 1]},
        },
        **case,
        "strategy": {"rank": 2, **case.get("strategy", {})},
        "train": {"batch_size": 2, "lr": 0.01, **case.get("train", {})},
    }


def require_equal(value: Experiment, names: list[str]) -> None:
    found = compare(value, names, Progress(None))
    assert [*found] == names
    first = found[names[0]]
    assert [*first] == [*value.federated_methods]
    assert len(set(first.values())) > 1  # what is compared depends on the method
    for name in names[1:]:
        assert found[name] == first


COMPARED = [
    pytest.param(
        "workers", marks=pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
    ),
    pytest.param(
        "ray",
        marks=(pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")),
    ),
    pytest.param(
        "flower",
        marks=(
            pytest.mark.slow,
            pytest.mark.skipif(find_spec("flwr") is None, reason="Flower is not installed"),
        ),
    ),
]


@pytest.mark.parametrize("backend", COMPARED)
def test_a_few_algorithms_have_the_bytes_of_one_process(backend: str, tiny_model: Path) -> None:
    require_equal(Experiment.from_json(json.dumps(values(tiny_model, QUICK))), ["in-process", backend])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", COMPARED)
def test_every_algorithm_has_the_bytes_of_one_process(backend: str, case: str, tiny_model: Path) -> None:
    require_equal(Experiment.from_json(json.dumps(values(tiny_model, CASES[case]))), ["in-process", backend])


def test_all_algorithms_and_parts_are_compared() -> None:
    compared = {part for case in CASES.values() for name in case["methods"] for part in name.split("+")}
    assert compared - {"local"} == set(ENTRIES)


# What is compared -------------------------------------------------------------------------------------


def test_two_rounds_of_what_is_federated_are_compared() -> None:
    value = Experiment(methods=["zero-shot", "local", "fedavg", "centralized"], train={"rounds": 9})
    short = shorten(value)
    assert (short.federated_methods, short.train.rounds, short.model.threads) == (("fedavg",), 2, 1)
    with pytest.raises(UserError, match="none of them is federated"):
        shorten(Experiment(methods=["zero-shot", "local"]))


@pytest.mark.parametrize("case", CASES)
def test_what_is_compared_is_valid_at_other_processes(case: str, tiny_model: Path) -> None:
    short = shorten(Experiment.from_json(json.dumps(values(tiny_model, CASES[case]))))
    assert Experiment.from_json(short.to_json()) == short


@pytest.mark.parametrize("name", [name for name in recipes() if not sweep_keys(name)])
def test_every_recipe_with_a_federated_method_can_be_compared(name: str) -> None:
    value = load_experiment(name, ["data.root=somewhere"] if name == "own-data" else [])
    if not value.federated_methods:
        with pytest.raises(UserError, match="none of them is federated"):
            shorten(value)
        return
    short = shorten(value)
    assert Experiment.from_json(short.to_json()) == short


def test_every_bit_of_a_server_and_of_its_clients_counts(tmp_path: Path) -> None:
    flat = start_of()
    training_state = TrainingState(
        ServerState(flat, 2, {"momentum": torch.ones(3)}), {0: (1,)}, (0.5,), bytes_up=7, bytes_down=8
    )
    (tmp_path / "0").mkdir()
    file = tmp_path / "0" / "round-0001.safetensors"
    file.write_bytes(b"kept")
    changed = flat.flat.clone()
    changed[3] = torch.nextafter(changed[3], torch.tensor(9.0))
    state = training_state.state
    others = [
        replace(training_state, state=replace(state, params=Params(flat.layout, changed))),
        replace(
            training_state, state=replace(state, slots={"momentum": torch.tensor([1.0, 1.0, 1.0 + 2**-23])})
        ),
        replace(training_state, state=replace(state, slots={"other": torch.ones(3)})),
        replace(training_state, state=replace(state, round=1)),
        replace(training_state, kept={0: (0,)}),
        replace(training_state, norms=(0.25,)),
        replace(training_state, bytes_up=6),
        replace(training_state, bytes_down=9),
    ]
    found = [digest(one, tmp_path) for one in (training_state, *others)]
    file.write_bytes(b"lost")
    found.append(digest(training_state, tmp_path))
    assert len(set(found)) == len(found)


# The command ------------------------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch, digests: dict[str, dict[str, str]], *words: str) -> Any:
    """Run the command with backends that give fixed digests."""
    columns = {name: Backend(lambda *_, one=one: one) for name, one in digests.items()}
    monkeypatch.setattr(parity, "BACKENDS", columns)
    return CliRunner().invoke(app, ["parity", "quickstart", "--quiet", *words])


ONE, OTHER = {"fedavg": "1", "scaffold": "2"}, {"fedavg": "1", "scaffold": "3"}


def test_equal_bytes_are_said_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch, {"in-process": ONE, "workers": dict(ONE)}, "--json")
    told = json.loads(found.stdout)
    assert found.exit_code == 0
    assert told.keys() == {"equal", "digests"}
    assert told["equal"] is True
    assert told["digests"]["in-process"] == told["digests"]["workers"]


def test_other_bytes_fail_and_name_method_and_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch, {"in-process": ONE, "workers": OTHER}, "--json")
    told = json.loads(found.stdout)
    assert found.exit_code == 1
    assert told["equal"] is False
    assert told["digests"]["in-process"] != told["digests"]["workers"]
    assert "scaffold: workers gives other bytes than in-process" in found.stderr
    assert "fedavg" not in found.stderr


@pytest.mark.parametrize(
    ("backends", "message"),
    [
        ("in-process,wrokers", "Did you mean workers"),
        ("in-process", "at least two"),
        ("workers,workers", "at least two"),
        ("", "at least two"),
    ],
)
def test_wrong_backends_are_refused(backends: str, message: str) -> None:
    found = CliRunner().invoke(app, ["parity", "quickstart", "--quiet", "--backends", backends])
    assert found.exit_code == 2
    assert message in found.stderr


def test_a_backend_that_is_not_installed_is_named() -> None:
    assert set(BACKENDS) >= {"in-process", "workers", "ray", "flower"}
    for backend, library in (("ray", "ray"), ("flower", "flwr")):
        assert (backend in parity.installed()) is (find_spec(library) is not None)
