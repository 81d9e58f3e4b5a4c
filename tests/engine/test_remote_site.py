"""A site in another process that gets only messages trains, keeps and answers as one in this process does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tests.clients import EXCHANGING, same
from tests.shares import fast_if

from fedloom.client.site import Question
from fedloom.engine.client_sampling import Schedule
from fedloom.engine.in_process import InProcess
from fedloom.engine.remote_site import Remote, question_from_bytes, question_to_bytes
from fedloom.engine.rounds import Backend, Training, TrainingState, run_rounds
from fedloom.experiment.experiment import Experiment
from fedloom.params import Layout, Params
from fedloom.runs.run_setup import open_site
from fedloom.runs.site_setup import algorithm_of
from fedloom.system.timing import Clock
from fedloom.tuning.strategies import LoRA, strategy
from fedloom.tuning.strategy_parts import Parts, parts_of
from fedloom.wire.messages import Assignment, Missing, Update

CLIENTS = 3
METHODS = ("local", "centralized", *EXCHANGING, "fedprox+prompt+adaptive")
RULES = (
    *(f"fedavg+{part}" for part in ("sam", "dp-sgd", "pfedme", "keep-last", "ditto")),
    "fednova+sam+ditto",
)
SGD = {"optimizer": "sgd", "clip": None, "schedule": "constant"}
FEW = ("scaffold", "fedadam", "fedprox+prompt+adaptive", "fedavg+ditto", "fedkseed")
CASES = {
    "a few": ("both", FEW, SGD),
    **{name: (name, METHODS, {}) for name in ("both", "share-connector", "share-lora", "two-stage")},
    "rules": ("both", (*RULES, "fedkseed"), SGD),
    "rules in two stages": ("two-stage", RULES, SGD),
}


def experiment(tiny_model: Path, case: str) -> Experiment:
    name, methods, train = CASES[case]
    values = {
        "data": {"limit": 12, "test_share": 0.01},
        "scenario": {"clients": CLIENTS, "pattern": "hybrid"},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"name": name, "rank": 2},
        "train": {"rounds": 2, "batch_size": 2, "cohort": 2, **train},
        "methods": methods,
        "algorithms": {"adaptive": {"skip": 0}},
    }
    return Experiment.from_json(json.dumps(values))


@pytest.fixture(params=fast_if(CASES, lambda _, case: case == "a few"))
def sides(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path
) -> Iterator[tuple[Experiment, InProcess, Remote]]:
    """Yield an experiment, and its site in this process and in another one."""
    value = experiment(tiny_model, request.param)
    file = tmp_path / "experiment.json"
    file.write_text(value.to_json())
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    script = str(Path(__file__).parent / "site_process.py")
    command = [sys.executable, script, str(file), str(tmp_path / "there")]
    with (
        open_site(value, tmp_path / "here") as site,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        yield value, InProcess(site), Remote(process.stdin, process.stdout, site.tuned.layout)
        process.stdin.close()
        assert process.wait(600) == 0


def trained(value: Experiment, backend: Backend, name: str, stages: list[Parts]) -> list[TrainingState]:
    """Train all stages of a method; return where each ends."""
    algorithm = algorithm_of(value, value.method(name), backend.start(name).layout)
    results: list[TrainingState] = []
    rounds = value.train.rounds // len(stages)
    for number, parts in enumerate(stages):
        begun = results[-1].state.params if results else backend.start(name)
        kept = results[-1].kept if results else {}
        train = value.train.model_copy(update={"rounds": rounds})
        clients = range(len(backend.describe(name)))
        run = Training(
            name,
            algorithm,
            TrainingState(algorithm.init(begun), kept),
            Schedule(rounds, clients, value.train.cohort, value.seed),
            backend.describe(name),
            train,
            value.admission,
            stage=number,
            before=number * rounds,
            down=lambda client, parts=parts: parts.down,
            up=lambda client, parts=parts: parts.up,
        )
        results += run_rounds([run], backend)
    return results


def test_a_question_survives_its_way_as_bytes() -> None:
    layout = Layout.of({"w": (2,)})
    asked = Question("fedavg+finetune", 1, Params(layout, torch.ones(2)), 3, 7, "validation", "text", 0.25)
    there = question_from_bytes(question_to_bytes(asked), layout)
    assert {**vars(there), "params": None} == {**vars(asked), "params": None}
    assert torch.equal(there.params.flat, asked.params.flat)


def test_every_algorithm_has_equal_bits(sides: tuple[Experiment, InProcess, Remote], tmp_path: Path) -> None:
    value, here, there = sides
    stages = strategy(value.strategy.name, LoRA(rank=2))
    for name in value.methods:
        if name in ("local", "centralized"):
            continue
        assert torch.equal(here.start(name).flat, there.start(name).flat)
        assert list(here.describe(name)) == list(there.describe(name))
        parts = [parts_of(here.site.tuned.layout, stages, number) for number in range(len(stages))]
        mine, theirs = (trained(value, backend, name, parts) for backend in (here, there))
        for one, other in zip(mine, theirs, strict=True):
            assert same(one, other), name
            assert (one.kept, one.norms, one.bytes_up, one.bytes_down) == (
                other.kept,
                other.norms,
                other.bytes_up,
                other.bytes_down,
            )
            assert all(torch.isfinite(one.state.params.flat))
        last, stage = mine[-1], len(stages) - 1
        algorithm = algorithm_of(value, value.method(name), here.site.tuned.layout)
        assert not algorithm.personal or last.since
        sent = algorithm.broadcast(algorithm.init(here.start(name)))
        questions = [
            Question(name, stage, last.state.params, client, since)
            for client, since in last.since.items() or [(0, -1)]
        ]
        for one, other in zip(here.answer(questions), there.answer(questions), strict=True):
            assert one.answers == other.answers
            assert all((a == b).all() for a, b in zip(one.probabilities, other.probabilities, strict=True))
        asked = [
            Assignment(name, 0, 0, client, sent.params, sent.extras, down=parts[0].down, up=parts[0].up)
            for client in range(CLIENTS)
        ]
        for one, other in zip(
            here.measure(asked, "gradient_norms"), there.measure(asked, "gradient_norms"), strict=True
        ):
            assert isinstance(one, Update)
            assert isinstance(other, Update)
            assert torch.equal(one.extras["norms"], other.extras["norms"])
    memories = [
        {str(one.relative_to(tmp_path / side)): one.read_bytes() for one in (tmp_path / side).rglob("*.safetensors")}
        for side in ("here", "there")
    ]  # fmt: skip
    assert memories[0] == memories[1]
    assert memories[0]


def test_clients_of_a_site_that_dies_are_missing(tiny_model: Path, tmp_path: Path) -> None:
    value = experiment(tiny_model, "both")
    with open_site(value, tmp_path) as site:
        command = [sys.executable, "-c", "import sys; sys.stdin.buffer.read(1)"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            there = Remote(process.stdin, process.stdout, site.tuned.layout)
            todo = [Assignment("fedavg", 0, 0, client, site.tuned.start) for client in range(2)]
            answers = list(there.train(todo, Clock()))
            with suppress(BrokenPipeError):  # what the site never read is still in the buffer
                process.stdin.close()
    assert [one.client for one in answers if isinstance(one, Missing)] == [0, 1]
    assert all(isinstance(one, Missing) and "its site failed" in one.reason for one in answers)
