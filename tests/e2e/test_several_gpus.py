"""Runs on several GPUs: a process for each further one, and the numbers of one GPU.

The first GPU is simulated, and the CPUs of other processes take the place of further ones.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.e2e.test_accelerator import experiment, outcome
from tests.simulated_accelerator import simulated_accelerator

from fedloom.engine.gpu_processes import GpuProcesses
from fedloom.experiment.experiment import Experiment
from fedloom.models.last_layer import layers_of
from fedloom.runs import gpu_setup, run_setup
from fedloom.runs.gpu_setup import VISIBLE, environment_of, gpus_of
from fedloom.system.errors import UserError
from fedloom.system.manifest import read_sealed
from fedloom.wire.site_messages import SiteMessage

FEDERATED = {"scenario": {"clients": 4, "partition": "iid"}, "methods": ["fedavg", "scaffold"]}
FIRST = torch.device("cuda", 0)


def test_a_run_on_two_gpus_has_the_numbers_of_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process trains and answers; this one loads the model once, and puts nothing on the second GPU."""
    expected = outcome(experiment(tiny_model, **FEDERATED), tmp_path / "one")
    asked, placed, loaded = list[str](), Counter[str](), list[int]()
    ask, start, load = GpuProcesses.ask, gpu_setup.site_processes, run_setup.load_base

    def noted(self: GpuProcesses, number: int, request: SiteMessage) -> Any:
        asked.append(request.kind)
        return ask(self, number, request)

    def on_cpu(there: Experiment, *rest: Any) -> GpuProcesses:
        assert there.model.device == "cuda"
        return start(
            there.model_copy(update={"model": there.model.model_copy(update={"device": "cpu"})}), *rest
        )

    def counted(*arguments: Any) -> Any:
        loaded.append(1)
        return load(*arguments)

    monkeypatch.setattr(GpuProcesses, "ask", noted)
    monkeypatch.setattr(gpu_setup, "site_processes", on_cpu)
    monkeypatch.setattr(run_setup, "load_base", counted)
    with simulated_accelerator(devices=2) as state:
        put = state.live.put

        def counting(value: torch.Tensor, device: torch.device) -> None:
            placed[str(device)] += 1
            put(value, device)

        state.live.put = counting
        found = outcome(experiment(tiny_model, engine={"workers": 2}, **FEDERATED), tmp_path / "two")
    assert found == expected
    assert {"train", "answer"} <= set(asked)
    assert placed["cuda:0"] and not placed["cuda:1"]
    assert loaded == [1]


def test_a_run_with_layers_in_the_memory_of_the_host_has_the_numbers_of_one_device(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GPU that is smaller than the model; layers are then recomputed, too."""
    values = {"train": {"rounds": 1}, "strategy": {"dropout": 0.1}}
    expected = outcome(experiment(tiny_model, **values), tmp_path / "one")
    about = SimpleNamespace(name="Small", total_memory=1000, multi_processor_count=1)
    models: dict[str, Any] = {}
    with simulated_accelerator(), monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "get_device_properties", lambda device=None: about)
        here = experiment(tiny_model, model={"device_map": "auto"}, **values)
        found = outcome(here, tmp_path / "host", models)
    (vlm,) = models.values()
    assert all(value.device.type == "meta" for value in layers_of(vlm)[0].parameters())
    assert read_sealed(tmp_path / "host/machine.json")["choice"]["recompute"]
    assert found[1].keys() == expected[1].keys()
    for name, values in found[1].items():
        torch.testing.assert_close(
            torch.tensor(values), torch.tensor(expected[1][name]), rtol=1e-3, atol=1e-5
        )


def gpus(
    path: Path, engine: dict[str, Any], *, count: int = 3, device: torch.device = FIRST
) -> GpuProcesses | None:
    """Return the processes of a run on a machine with some GPUs; none of them starts."""
    with simulated_accelerator(devices=count), ExitStack() as live:
        return gpus_of(experiment(path, engine=engine), path, device, live)


def test_several_gpus_are_used_only_on_request(tiny_model: Path) -> None:
    for engine in ({"workers": "auto"}, {"workers": 1}, {"workers": 2, "backend": "ray"}):
        assert gpus(tiny_model, engine) is None
    assert gpus(tiny_model, {"workers": 2}, device=torch.device("cpu")) is None
    for count in (2, 3):
        found = gpus(tiny_model, {"workers": count})
        assert found is not None and len(found) == count - 1


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"workers": 4}, "workers is 4, but the GPUs here are 3; set it to at most 3"),
        ({"workers": "auto", "backend": "workers"}, "set engine.workers to the number of GPUs, at most 3"),
    ],
)
def test_gpus_that_are_not_there_are_refused(engine: dict[str, Any], message: str, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=message):
        gpus(tiny_model, engine)


@pytest.mark.parametrize(("visible", "gpus"), [(None, "012"), ("", "012"), ("5", "5"), ("2, 7,4", "274")])
def test_a_process_sees_the_gpu_of_its_number_only(
    visible: str | None, gpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    assert [environment_of(number) for number in range(len(gpus))] == [{VISIBLE: one} for one in gpus]
    assert os.environ.get(VISIBLE) == visible
