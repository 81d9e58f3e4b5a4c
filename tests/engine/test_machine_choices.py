"""The machine's choices follow from the work and the kind of machine, stay within memory, and are the same each time."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.clients import tune

from fedloom.algorithms.local_rule import PLAIN
from fedloom.client.local_job import Job
from fedloom.client.local_training import train
from fedloom.config.schema import Train
from fedloom.data.drawn_shapes import MAKERS
from fedloom.engine import machine_choices as module
from fedloom.engine.in_process import WINDOW
from fedloom.engine.machine_choices import MOST, Choice, Machine, choose, saved_bytes, this_machine
from fedloom.models import logits
from fedloom.models.batches import Batch, answer_losses, collate
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategies import LoRA, stage
from fedloom.types import Broadcast, Presence
from fedloom.wire.messages import Assignment


def jobs(tuned: Tuned, count: int, batch_size: int = 2) -> list[Job]:
    examples = [MAKERS["vqa"](stream(2, "t", step=k), str(k)) for k in range(4)]
    conversations = [TASKS["vqa"].render(one, Presence(True, True), answer_form="text") for one in examples]
    how = Train(batch_size=batch_size)
    return [
        Job(
            Assignment("fedavg", 0, 0, k, tuned.start),
            Broadcast(tuned.start),
            tuned.start,
            PLAIN,
            {},
            conversations,
            how,
            seed=0,
        )
        for k in range(count)
    ]


def first_only(job: Job) -> Job:
    return replace(job, conversations=job.conversations[:1])


LAPTOP = Machine("cpu", "a processor", threads=2, memory=2**34, copies=True)


def test_one_client_trains_alone(tuned: Tuned) -> None:
    assert choose(tuned, jobs(tuned, 1), 1, LAPTOP) == Choice()


def test_neither_clock_nor_load_nor_free_memory_decides(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clock and load jump at every reading."""
    before = choose(tuned, jobs(tuned, 8), 8, LAPTOP)

    moments = itertools.cycle([0.0, 1e9, 3.0, 2e9, 5.0])
    for name in ("perf_counter", "monotonic", "process_time", "time"):
        monkeypatch.setattr(time, name, lambda: next(moments))
    monkeypatch.setattr(os, "getloadavg", lambda: (next(moments),) * 3)
    for _ in range(5):
        assert choose(tuned, jobs(tuned, 8), 8, LAPTOP) == before
    here = this_machine(torch.device("cpu"))
    held = bytearray(2**27)  # memory that is not free now
    assert this_machine(torch.device("cpu")) == here
    del held


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_memory_of_a_machine_is_that_of_the_models_device(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = SimpleNamespace(name="a card", total_memory=12345)
    for name in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, name), "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12345)
    machine = this_machine(torch.device(kind))
    assert (machine.device, machine.memory, machine.copies) == (kind, 12345, False)


@given(
    cohort=st.integers(2, 500),
    threads=st.integers(1, 64),
    memory=st.one_of(st.none(), st.integers(0, 2**36)),
    copies=st.booleans(),
    device=st.sampled_from(["cpu", "cuda"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_choice_fits_cohort_threads_and_memory(
    tuned: Tuned, cohort: int, threads: int, memory: int | None, copies: bool, device: str
) -> None:
    machine = Machine(device, "any", threads, memory, copies)
    some = jobs(tuned, min(cohort, 4))
    choice = choose(tuned, some, cohort, machine)
    assert 1 <= choice.rows <= min(MOST, cohort)
    assert 1 <= choice.workers <= min(threads, cohort)
    assert choice.workers == 1 or copies
    assert (choice.rows - 1) * choice.workers < cohort  # no row of any process would always stand idle
    if memory is not None and choice.rows * choice.workers > 1:
        values = 4 * tuned.layout.size
        saved = some[0].settings.batch_size * saved_bytes(tuned, first_only(some[0]))
        needed = choice.rows * choice.workers * (2 * saved + (4 + 2 * WINDOW) * values)
        assert needed <= memory / 2
    assert choose(tuned, some, cohort, machine) == choice


def test_larger_batches_never_get_more_rows(tuned: Tuned) -> None:
    alone = replace(LAPTOP, copies=False)
    rows = [choose(tuned, jobs(tuned, 4, size), 40, alone).rows for size in (1, 2, 4)]
    assert rows == sorted(rows, reverse=True)


def test_processes_are_for_long_rounds(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    for copying, count in ((10**18, 1), (0, 2)):
        monkeypatch.setattr(module, "COPY", copying)
        assert choose(tuned, jobs(tuned, 4), 4, LAPTOP).workers == count


def test_a_model_that_does_not_stack_has_one_row(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tuned), "stackable", property(lambda _: False))
    assert choose(tuned, jobs(tuned, 4), 4, LAPTOP).rows == 1


def test_larger_batches_save_more_bytes(tuned: Tuned) -> None:
    small, large = (saved_bytes(tuned, jobs(tuned, 1, size)[0]) for size in (1, 4))
    assert 3 * small < large < 6 * small


def test_choosing_changes_nothing(tuned: Tuned) -> None:
    before = train(tuned, jobs(tuned, 1))[0].end
    choose(tuned, jobs(tuned, 4), 4, LAPTOP)
    assert torch.equal(train(tuned, jobs(tuned, 1))[0].end, before)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_gives_the_same_bits_and_keeps_less(dropout: float, tiny_model: Path) -> None:
    tuned = tune(tiny_model, dropout=dropout)
    (job,) = jobs(tuned, 1)
    plain, kept = train(tuned, [job])[0].end, saved_bytes(tuned, job)
    with gradient_checkpointing(tuned.vlm):
        assert torch.equal(train(tuned, [job])[0].end, plain)
        assert saved_bytes(tuned, job) < 0.7 * kept  # the rest is logits over the whole vocabulary
    assert saved_bytes(tuned, job) == kept
    with gradient_checkpointing(tuned.vlm, enabled=False):
        assert saved_bytes(tuned, job) == kept


def test_dropout_masks_count_among_saved_bytes(tiny_model: Path) -> None:
    plain, dropped = (
        prepare(load_vlm(str(tiny_model)), stage("lora", LoRA(rank=2, dropout=share)), seed=0)
        for share in (0.0, 0.3)
    )
    assert saved_bytes(plain, jobs(plain, 1)[0]) < saved_bytes(dropped, jobs(dropped, 1)[0])


def test_layers_are_recomputed_where_a_step_would_take_more_than_half(tuned: Tuned) -> None:
    (job,) = jobs(tuned, 1)
    held = sum(value.numel() * value.element_size() for value in tuned.vlm.model.state_dict().values())
    step = 2 * job.settings.batch_size * saved_bytes(tuned, first_only(job))
    for spare, wanted in ((step, True), (2 * step + 2, False)):
        assert choose(tuned, [job], 1, replace(LAPTOP, memory=held + spare)).recompute is wanted


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] can't allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("cohort", [1, 4])
def test_counting_needs_the_memory_of_one_example_and_layers_are_recomputed_where_that_lacks(
    cohort: int, error: Exception, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, machine = jobs(tuned, cohort), replace(LAPTOP, device="cuda", copies=False)
    expected = choose(tuned, some, cohort, machine)
    assert not expected.recompute
    for fits, wanted in ((1, expected), (0, Choice(recompute=True))):

        def short(vlm: Vlm, batch: Batch, *given: Any, fits: int = fits) -> torch.Tensor:
            if len(batch.lengths) > fits:
                raise error
            return answer_losses(vlm, batch, *given)

        monkeypatch.setattr(module, "answer_losses", short)
        assert choose(tuned, some, cohort, machine) == wanted


def test_an_accelerator_without_memory_for_inputs_ends_the_choice(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_multiplications", short)
    with pytest.raises(torch.OutOfMemoryError):
        choose(tuned, jobs(tuned, 3), 3, replace(LAPTOP, device="cuda", copies=False))


def test_a_head_in_pieces_gives_the_same_losses_and_gradients(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = jobs(tuned, 1)
    batch = collate(tuned.vlm, [next(job.batches())])
    results = []
    for most in (logits.MAX_LOGITS, tuned.vlm.model.get_input_embeddings().num_embeddings * 2):
        monkeypatch.setattr(logits, "MAX_LOGITS", most)
        tuned.grads.zero_()
        losses = answer_losses(tuned.vlm, batch)
        losses.sum().backward()
        results.append((losses.detach().clone(), tuned.grads.clone()))
    assert len(batch.row) > 2  # so that there are pieces
    for left, right in zip(*results, strict=True):
        assert float((left - right).norm()) <= 1e-5 * float(right.norm())


def test_a_client_that_cannot_work_decides_nothing(tuned: Tuned) -> None:
    """It will be missing, with the reason; the choice is that of the others, or that for one client after the other."""
    good = jobs(tuned, 3)
    broken = [cast("Any", None)] * 99
    bad = replace(good[1], conversations=broken)
    assert bad.steps > good[0].steps
    assert choose(tuned, [good[0], bad, good[2]], 3, LAPTOP) == choose(tuned, [good[0], good[2]], 3, LAPTOP)
    assert choose(tuned, [bad], 3, LAPTOP) == Choice()
