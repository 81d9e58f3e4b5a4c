"""Whole runs on a simulated accelerator give the processor's numbers; runs on processors leave CUDA alone."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.shares import share
from tests.simulated_accelerator import Accelerator, simulated_accelerator

from fedloom.algorithms import SERVERS
from fedloom.client import backpropagation
from fedloom.client.site import Site
from fedloom.experiment.experiment import Experiment
from fedloom.models.load_model import Vlm
from fedloom.runs import run_setup
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError, user_errors
from fedloom.system.manifest import read_sealed
from fedloom.system.progress import Progress
from fedloom.tuning.strategies import SEQUENCES

PACKAGE = str(Path(run_setup.__file__).parents[1])


def experiment(path: Path, /, **sections: Any) -> Experiment:
    """Return a small experiment whose clients train one after the other, as on every machine."""
    values: dict[str, Any] = {
        "data": {"name": "emoji", "limit": 18, "test_share": 0.02},
        "scenario": {"clients": 2, "partition": "iid"},
        "model": {"path": str(path), "threads": 1, "precision": "float32"},
        "strategy": {"name": "both", "rank": 2},
        "train": {"rounds": 2, "batch_size": 4},
        "methods": ["fedavg"],
        "engine": {"cache": False, "side_by_side": 1, "workers": 1},
    }
    for name, section in sections.items():
        values[name] = (
            {**values[name], **section} if isinstance(section, dict) and name in values else section
        )
    return Experiment.from_json(json.dumps(values))


def outcome(value: Experiment, folder: Path, models: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Run an experiment; return its result without times, and the values of its adapter."""
    result = run_experiment(value, folder, Progress(None), models)
    files = sorted((folder / "adapter").glob("*.safetensors"))
    return (
        {name: one for name, one in result.items() if name not in ("seconds", "digest")},
        {name: one.tolist() for file in files for name, one in load_file(file).items()},
    )


def both(here: Experiment, folder: Path) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return the outcome on the processor, and on an accelerator."""
    expected = outcome(here, folder / "processor")
    with simulated_accelerator():
        return expected, outcome(here, folder / "accelerator")


def test_a_run_on_an_accelerator_has_the_numbers_of_a_run_on_the_processor(
    tiny_model: Path, tmp_path: Path
) -> None:
    expected, result = both(experiment(tiny_model, strategy={"dropout": 0.1}), tmp_path)
    assert result == expected and expected[1]


def test_a_run_needs_no_float64_on_the_device(tiny_model: Path, tmp_path: Path) -> None:
    """Metal and some GPUs of Intel have none. Every client's loss is the processor's, too."""
    here = experiment(tiny_model, train={"rounds": 1})
    expected = outcome(here, tmp_path / "processor")
    with simulated_accelerator(float64=False):
        assert outcome(here, tmp_path / "accelerator") == expected


def test_a_whole_run_asks_for_deterministic_kernels(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked for in training and in evaluation; two runs are equal, and close to that of the processor."""
    asked = dict[str, set[bool]]()
    for name in ("update", "answer"):

        def noted(self: Any, *given: Any, of: Any = getattr(Site, name), name: str = name) -> Any:
            asked.setdefault(name, set()).add(torch.are_deterministic_algorithms_enabled())
            return of(self, *given)

        monkeypatch.setattr(Site, name, noted)
    here = experiment(tiny_model, engine={"deterministic": True})
    processor = outcome(here, tmp_path / "processor")
    assert asked == {"update": {False}, "answer": {False}}
    asked.clear()
    with simulated_accelerator():
        first, second = (outcome(here, tmp_path / name) for name in ("first", "second"))
    assert asked == {"update": {True}, "answer": {True}}
    assert not torch.are_deterministic_algorithms_enabled()
    assert first == second
    for name, values in processor[1].items():
        torch.testing.assert_close(torch.tensor(first[1][name]), torch.tensor(values), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEQUENCES)
def test_every_strategy_runs_on_an_accelerator(name: str, tiny_model: Path, tmp_path: Path) -> None:
    expected, result = both(experiment(tiny_model, strategy={"name": name}), tmp_path)
    assert result == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SERVERS))
def test_every_algorithm_runs_on_an_accelerator(name: str, tiny_model: Path, tmp_path: Path) -> None:
    plain = {"train": {"optimizer": "sgd"}} if name == "fedkseed" else {}
    expected, result = both(experiment(tiny_model, methods=[name], **plain), tmp_path)
    assert result == expected


def test_cells_of_a_sweep_share_a_model_on_an_accelerator(tiny_model: Path, tmp_path: Path) -> None:
    """A strategy that trains the connector leaves it, on its device, to the one that follows."""
    cells = [experiment(tiny_model, strategy={"name": name}) for name in ("connector", "lora")]
    expected = [outcome(cell, tmp_path / f"processor-{k}") for k, cell in enumerate(cells)]
    models: dict[str, Any] = {}
    with simulated_accelerator():
        assert [outcome(cell, tmp_path / f"cell-{k}", models) for k, cell in enumerate(cells)] == expected
    assert len(models) == 1


@pytest.fixture
def cuda_questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let CUDA claim to be there, and note fedloom's questions about it; a call that initializes it raises."""
    asked: list[str] = []

    def note(name: str, answer: Any) -> None:
        def question(*_: Any, **__: Any) -> Any:
            if sys._getframe(1).f_code.co_filename.startswith(PACKAGE):
                asked.append(name)
            return answer

        monkeypatch.setattr(torch.cuda, name, question)

    def initialized(*_: Any, **__: Any) -> None:
        raise AssertionError("CUDA was initialized")

    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "get_device_capability": (9, 0),
        "get_device_properties": None,
    }.items():
        note(name, answer)
    for name in ("_lazy_init", "init", "synchronize", "current_device"):
        monkeypatch.setattr(torch.cuda, name, initialized)
    return asked


@pytest.mark.parametrize("backend", ["in-process", "workers"])
def test_a_model_on_the_processor_leaves_cuda_alone(
    backend: str, cuda_questions: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    """Otherwise its worker processes could not be copied any more."""
    engine = {"backend": backend, "workers": "auto" if backend == "in-process" else 2}
    here = experiment(tiny_model, model={"device": "cpu", "precision": "auto"}, engine=engine)
    result = run_experiment(here, tmp_path, Progress(None))
    assert result["scores"] and not cuda_questions


def on_gpu(capability: tuple[int, int] | None) -> AbstractContextManager[Accelerator | None]:
    """Return a machine with a GPU of a generation, or with none."""
    if capability is None:
        return nullcontext()
    machine = simulated_accelerator()

    class Entered(AbstractContextManager["Accelerator | None"]):
        def __enter__(self) -> Accelerator:
            state = machine.__enter__()
            state.capability = capability
            return state

        def __exit__(self, *error: Any) -> None:
            machine.__exit__(*error)

    return Entered()


@pytest.mark.parametrize(
    ("capability", "precision"),
    share(
        [
            (None, "float32"),
            ((9, 0), "bfloat16"),
            ((8, 0), "bfloat16"),
            ((7, 5), "float16"),
            ((7, 0), "float16"),
        ],
        every=3,
    ),
    ids=["processor", "H100", "A100", "T4", "V100"],
)
def test_the_precision_of_a_run_is_that_of_the_machine_on_which_it_began(
    capability: tuple[int, int] | None, precision: str, tiny_model: Path, tmp_path: Path
) -> None:
    here = experiment(tiny_model, model={"precision": "auto"}, train={"rounds": 1})
    with on_gpu(capability):
        run_experiment(here, tmp_path, Progress(None))
        assert read_sealed(tmp_path / "machine.json")["precision"] == precision
        assert run_experiment(here, tmp_path, Progress(None))["scores"]  # finished, with the same identity
    resolved = run_setup.with_precision(here, tmp_path)  # on any other machine, too
    assert resolved.model.precision == precision
    if precision != "float32":
        with on_gpu(capability), pytest.raises(UserError, match="this has changed: precision"):
            run_experiment(experiment(tiny_model, train={"rounds": 1}), tmp_path, Progress(None))


def test_auto_and_float32_are_one_experiment_on_processors(tiny_model: Path, tmp_path: Path) -> None:
    auto = experiment(tiny_model, model={"precision": "auto"})
    assert (
        auto.digest
        == experiment(tiny_model).digest
        != experiment(tiny_model, model={"precision": "float16"}).digest
    )
    assert outcome(auto, tmp_path / "auto") == outcome(experiment(tiny_model), tmp_path / "float32")


@pytest.mark.parametrize("rows", [1, 2])
def test_a_gpu_without_memory_ends_the_run_with_advice(
    rows: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client is left out, and no batch changed: results would depend on the memory that is free. The same run can begin again."""
    here = experiment(tiny_model, train={"rounds": 1}, engine={"side_by_side": rows})
    losses = backpropagation.answer_losses

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with simulated_accelerator():
        monkeypatch.setattr(backpropagation, "answer_losses", full)
        advice = r"memory of the accelerator ran out; try engine\.recompute=always.* train\.micro_batch"
        with pytest.raises(UserError, match=advice), user_errors():
            run_experiment(here, tmp_path, Progress(None))
        monkeypatch.setattr(backpropagation, "answer_losses", losses)
        assert run_experiment(here, tmp_path, Progress(None))["scores"]


def test_an_encoder_without_memory_on_a_gpu_ends_the_run_and_rejects_no_record(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Vlm, "encode_images", full)
    with simulated_accelerator(), pytest.raises(UserError, match="memory of the accelerator"), user_errors():
        run_experiment(experiment(tiny_model), tmp_path, Progress(None))


def test_large_base_models_are_not_kept_beside_each_other(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: dict[str, Any] = {}
    other = tmp_path / "other"
    other.symlink_to(tiny_model)
    for limit, kept in ((2**31, 2), (0, 1)):
        monkeypatch.setattr(run_setup, "BASES_HELD", limit)
        models.clear()
        for path in (tiny_model, other):
            with run_setup._adapted(experiment(path), models):
                pass
        assert len(models) == kept
