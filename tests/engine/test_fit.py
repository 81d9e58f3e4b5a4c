"""How many clients train side by side: bounded by memory, measured once, remembered."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.algorithms.base import PLAIN
from fedloom.client.train import Work, train
from fedloom.data.shapes import MAKERS
from fedloom.engine import fit as module
from fedloom.engine.fit import MOST, Fit, doubled, fit, remembered, saved_bytes, short_of_memory
from fedloom.engine.in_process import WINDOW
from fedloom.models import batch as batches
from fedloom.models.batch import answer_losses, collate
from fedloom.models.load import load_vlm
from fedloom.models.recompute import recomputing
from fedloom.processes import can_fork
from fedloom.sections import Train
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategy import LoRA, stage
from fedloom.types import Broadcast, Presence


@pytest.fixture
def tuned(tiny_model: Path) -> Tuned:
    return prepare(load_vlm(str(tiny_model)), stage("both", LoRA(rank=2)), seed=0)


def works(tuned: Tuned, count: int, batch_size: int = 2) -> list[Work]:
    examples = [MAKERS["vqa"](stream(2, "t", step=k), str(k)) for k in range(4)]
    told = [TASKS["vqa"].render(one, Presence(True, True), answer_form="text") for one in examples]
    settings = Train(batch_size=batch_size)
    return [Work(k, 0, 0, PLAIN, Broadcast(tuned.start), {}, told, settings) for k in range(count)]


def test_one_client_needs_no_measurement(tuned: Tuned) -> None:
    assert fit(tuned, works(tuned, 1)) == Fit(1)


def test_what_was_tried_fits_memory_and_cohort(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", lambda _, some: 1.0)  # however many there are
    kept, values = saved_bytes(tuned, works(tuned, 1)[0]), 4 * tuned.layout.size
    assert fit(tuned, works(tuned, 3), free=10**12).tried == 3
    assert fit(tuned, works(tuned, 20), free=10**12).tried == 20
    assert fit(tuned, works(tuned, 32), cohort=100, free=10**12).tried == 25  # in four passes
    assert fit(tuned, works(tuned, MOST), cohort=10 * MOST, free=10**12).tried == MOST
    tight = fit(tuned, works(tuned, 20), free=3 * (2 * kept + (4 + 2 * WINDOW) * values))
    assert (tight.room, tight.tried) == (3, 3)
    assert fit(tuned, works(tuned, 20), free=kept) == Fit(1, room=1)


def test_rows_are_doubled_as_long_as_that_is_faster(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of 4 rows and more costs what its clients would cost one by one; fewer cost less."""
    asked: list[int] = []
    costs = {1: 1.0, 2: 1.4, 4: 4.0}
    monkeypatch.setattr(
        module, "_seconds", lambda _, some: asked.append(len(some)) or costs.get(len(some), 99)
    )
    found = fit(tuned, works(tuned, 32), free=10**12)
    assert (found.rows, found.tried) == (2, 8)
    assert asked == [1, *[1, 2, 4, 8] * 2]


@given(st.integers(1, 5000), st.integers(1, 64))
def test_rows_to_try_leave_few_idle(clients: int, most: int) -> None:
    rows = doubled(clients, most)
    assert rows[0] == 1
    assert rows[-1] <= min(most, clients)
    assert all(less < more <= 2 * less for less, more in pairwise(rows))
    passes = -(-clients // most)
    assert rows[-1] * passes - clients < passes  # as few passes as can be, each but one row full


@pytest.mark.parametrize(("seconds", "rows"), [(1.0, 4), (3.9, 1), (8.0, 1)])
def test_side_by_side_only_where_it_is_faster(
    seconds: float, rows: int, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_seconds", lambda _, some: 1.0 if len(some) == 1 else seconds)
    found = fit(tuned, works(tuned, 4), free=10**12)
    assert (found.rows, found.gain) == (rows, round(4 / seconds, 3) if rows > 1 else 1.0)


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({(1, 1): 1.0, (1, 2): 0.95, (1, 4): 0.9, (2, 1): 0.6, (2, 2): 0.5}, (2, 2)),
        ({(1, 1): 1.0, (1, 2): 0.7, (1, 4): 0.4, (2, 1): 0.6, (2, 2): 0.5}, (1, 4)),
        ({(1, 1): 1.0, (1, 2): 1.1, (1, 4): 0.4, (2, 1): 0.6, (2, 2): 0.5}, (1, 4)),
        ({(1, 1): 1.0, (1, 2): 1.1, (1, 4): 1.2, (2, 1): 0.6, (2, 2): 0.59}, (2, 1)),
        ({(1, 1): 1.0, (1, 2): 0.99, (1, 4): 0.99, (2, 1): 0.97, (2, 2): 1.1}, (1, 1)),
    ],
)
def test_of_processes_and_rows_the_fastest_way_is_taken(
    times: dict, chosen: tuple[int, int], tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_round", lambda _, some, workers, cohort: times[workers, len(some)])
    monkeypatch.setattr(module, "_worth_copying", lambda alone, count: True)
    found = fit(tuned, works(tuned, 4), workers=2, free=10**12)
    assert (found.workers, found.rows) == chosen


@pytest.mark.parametrize(("copying", "tried"), [(0.3, True), (0.4, False)])
def test_copies_are_not_tried_where_making_them_takes_too_long(
    copying: float, tried: bool, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round takes 1 s, so two copies take half a second at best; 1.2 times as fast is 0.83 s."""
    asked: list[int] = []
    now = [0.0]

    def forked(parts: list, threads: int) -> list:
        now[0] += copying
        return []

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "forked", forked)
    monkeypatch.setattr(module, "_seconds", lambda _, some: 1.0)
    monkeypatch.setattr(module, "_round", lambda _, some, workers, cohort: asked.append(workers) or 1.0)
    fit(tuned, works(tuned, 4), workers=2, free=10**12)
    assert (2 in asked) is tried


@pytest.mark.parametrize(("cohort", "passes"), [(1, 2), (2, 2), (3, 4), (8, 8)])
def test_a_round_pays_once_for_copying_and_clients_left_over_fill_a_pass(
    cohort: int, passes: int, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies take 6 s for two passes, the second of which takes 1 s; clients take two steps."""
    seconds = iter([10.0, 16.0])
    monkeypatch.setattr(module, "forked", lambda parts, threads: [(k, b"1.0") for k in range(len(parts))])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(seconds))
    assert module._round(tuned, works(tuned, 1), 2, cohort) == pytest.approx(5 + (passes - 1) * 1)
    monkeypatch.setattr(module, "_seconds", lambda _, some: 3.0)
    assert module._round(tuned, works(tuned, 2), 1, cohort) == 3.0 * passes


def test_more_examples_keep_more_bytes(tuned: Tuned) -> None:
    small, large = (saved_bytes(tuned, works(tuned, 1, size)[0]) for size in (1, 4))
    assert 3 * small < large < 6 * small


def test_measuring_changes_nothing(tuned: Tuned) -> None:
    before = train(tuned, works(tuned, 1))[0][0].delta.flat
    fit(tuned, works(tuned, 4), free=10**12)
    assert torch.equal(train(tuned, works(tuned, 1))[0][0].delta.flat, before)


def test_a_choice_is_remembered_until_the_work_is_another(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(module, "fit", lambda _, some, *more: made.append(len(some)) or Fit(2, 1.5, 2))
    monkeypatch.setattr(module, "_busy", lambda: False)
    file = tmp_path / "choices.json"
    assert remembered(file, tuned, works(tuned, 3), 3, 1) == remembered(file, tuned, works(tuned, 3), 3, 1)
    assert made == [3]
    remembered(file, tuned, works(tuned, 3, batch_size=1), 3, 1)
    assert made == [3, 3]
    file.write_text("{")
    remembered(file, tuned, works(tuned, 3), 3, 1)
    assert made == [3, 3, 3]


@pytest.mark.parametrize(("load", "kept"), [(0.5, True), (100.0, False)])
def test_what_was_chosen_on_a_busy_machine_is_forgotten(
    load: float, kept: bool, tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", lambda *given: Fit(2, 1.5, 2))
    monkeypatch.setattr(module.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(module.os, "getloadavg", lambda: (load, load, load))
    assert remembered(tmp_path / "choices.json", tuned, works(tuned, 3), 3, 1) == Fit(2, 1.5, 2)
    assert (tmp_path / "choices.json").exists() is kept


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_gives_the_same_bits_and_keeps_less(dropout: float, tiny_model: Path) -> None:
    tuned = prepare(load_vlm(str(tiny_model)), stage("both", LoRA(rank=2, dropout=dropout)), seed=0)
    (work,) = works(tuned, 1)
    plain, kept = train(tuned, [work])[0][0].delta.flat, saved_bytes(tuned, work)
    with recomputing(tuned.vlm):
        assert torch.equal(train(tuned, [work])[0][0].delta.flat, plain)
        assert saved_bytes(tuned, work) < 0.7 * kept  # the rest is logits over the whole vocabulary
    assert saved_bytes(tuned, work) == kept
    with recomputing(tuned.vlm, wanted=False):
        assert saved_bytes(tuned, work) == kept


def test_masks_are_counted_among_what_is_kept(tiny_model: Path) -> None:
    plain, dropped = (
        prepare(load_vlm(str(tiny_model)), stage("lora", LoRA(rank=2, dropout=share)), seed=0)
        for share in (0.0, 0.3)
    )
    assert saved_bytes(plain, works(plain, 1)[0]) < saved_bytes(dropped, works(dropped, 1)[0])


def test_memory_is_short_when_a_step_would_take_more_than_half(tuned: Tuned) -> None:
    (work,) = works(tuned, 1)
    one = saved_bytes(tuned, replace(work, conversations=work.conversations[:1]))
    assert short_of_memory(tuned, work, free=one)
    assert not short_of_memory(tuned, work, free=100 * one)


def test_a_head_in_pieces_gives_the_same_losses_and_gradients(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work,) = works(tuned, 1)
    batch = collate(tuned.vlm, [next(work.batches())])
    found = []
    for logits in (batches.LOGITS, tuned.vlm.model.get_input_embeddings().num_embeddings * 2):
        monkeypatch.setattr(batches, "LOGITS", logits)
        tuned.grads.zero_()
        losses = answer_losses(tuned.vlm, batch)
        losses.sum().backward()
        found.append((losses.detach().clone(), tuned.grads.clone()))
    assert len(batch.row) > 2  # so that there are pieces
    for left, right in zip(*found, strict=True):
        assert float((left - right).norm()) <= 1e-5 * float(right.norm())
