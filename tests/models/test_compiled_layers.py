"""Compiled layers: the same updates, and the model is as it was afterwards."""

from __future__ import annotations

import shutil

import pytest
import torch
from tests.clients import deltas, job_of

from fedloom.algorithms.local_rule import PLAIN
from fedloom.client.local_job import Job
from fedloom.config.schema import Train
from fedloom.data.drawn_shapes import MAKERS
from fedloom.models.compiled_layers import compiling
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.models.last_layer import layers_of
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned
from fedloom.types import Presence


def jobs(tuned: Tuned, count: int) -> list[Job]:
    """Clients of 5 examples in batches of two, so that batches have several shapes."""
    examples = [MAKERS["vqa"](stream(2, "t", step=k), str(k)) for k in range(8)]
    told = [TASKS["vqa"].render(one, Presence(True, True), answer_form="text") for one in examples]
    settings = Train(batch_size=2, optimizer="sgd", lr=0.1)
    return [job_of(tuned, PLAIN, told[k : k + 5], settings, client=k) for k in range(count)]


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("clients", "backend"), [(1, "aot_eager"), (2, "eager")])
def test_clients_learn_what_they_learn_in_plain_layers(
    tuned: Tuned, clients: int, backend: str, twice: bool
) -> None:
    plain = deltas(tuned, jobs(tuned, clients))
    with compiling(tuned.vlm, backend=backend), gradient_checkpointing(tuned.vlm, twice):
        compiled = deltas(tuned, jobs(tuned, clients))
    for one, other in zip(plain, compiled, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(one.norm())
    assert not any("forward" in vars(layer) for layer in layers_of(tuned.vlm))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
def test_code_made_by_the_compiler_learns_the_same(tuned: Tuned) -> None:
    plain = deltas(tuned, jobs(tuned, 1))[0]
    torch.compiler.reset()
    with compiling(tuned.vlm):
        compiled = deltas(tuned, jobs(tuned, 1))[0]
    assert float((plain - compiled).norm()) <= 1e-4 * float(plain.norm())


def test_not_wanted_changes_nothing(tuned: Tuned) -> None:
    with compiling(tuned.vlm, enabled=False):
        assert not any("forward" in vars(layer) for layer in layers_of(tuned.vlm))
