"""Clients in several processes get the updates they get in one."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.algorithms import ALGORITHMS, make
from fedloom.client.evaluate import judge_rows
from fedloom.client.train import Result, Work
from fedloom.data.shapes import MAKERS
from fedloom.engine import workers as module
from fedloom.engine.in_process import InProcess
from fedloom.engine.workers import Workers, dealt, packed, unpacked
from fedloom.messages import Missing, Update
from fedloom.models.load import load_vlm
from fedloom.params import Layout, Params
from fedloom.processes import can_fork
from fedloom.record import Clock
from fedloom.sections import Evaluate, Train
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare, replica
from fedloom.tuning.strategy import LoRA, stage
from fedloom.types import Conversation, Presence, Tensors, UserError

copying = pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")


@pytest.fixture
def tuned(tiny_model: Path) -> Tuned:
    return prepare(load_vlm(str(tiny_model)), stage("both", LoRA(rank=2)), seed=0)


def told(client: int) -> list[Conversation]:
    examples = [MAKERS["vqa"](stream(client, "t", step=k), str(k)) for k in range(1 + client % 3)]
    return [TASKS["vqa"].render(one, Presence(True, client % 2 == 0), answer_form="text") for one in examples]


def works(tuned: Tuned, name: str = "fedavg", count: int = 5) -> list[Work]:
    algorithm = make(name, count)
    broadcast = algorithm.broadcast(algorithm.init(tuned.start))
    settings = Train(batch_size=2)
    return [Work(k, 0, 0, algorithm.local, broadcast, {}, told(k), settings) for k in range(count)]


def assert_same_bits(found: list[Result], expected: list[Result]) -> None:
    assert len(found) == len(expected)
    for (mine, kept), (theirs, remembered) in zip(found, expected, strict=True):
        assert (mine.client, mine.weight) == (theirs.client, theirs.weight)
        assert {**mine.metrics, "seconds": 0} == {**theirs.metrics, "seconds": 0}
        assert mine.delta.layout == theirs.delta.layout
        assert torch.equal(mine.delta.flat, theirs.delta.flat)
        for left, right in ((mine.extras, theirs.extras), (kept, remembered)):
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left)


@copying
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_the_updates_of_one_process(name: str, tuned: Tuned) -> None:
    todo, alone = works(tuned, name), InProcess(tuned)
    expected = list(alone.map(todo, Clock()))
    assert_same_bits(list(Workers(alone, 2).map(todo, Clock())), expected)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_the_updates_of_one_device(name: str, tuned: Tuned) -> None:
    """Processors stand in for accelerators: each twin is a model of its own, trained in a thread of its own."""
    todo, alone, seen = works(tuned, name), InProcess(tuned), []
    expected = list(alone.map(todo, Clock()))
    twins = tuple(replica(tuned, torch.device("cpu")) for _ in range(2))
    backend = Workers(InProcess(tuned, 1, lambda update: seen.append(update.client)), 3, twins)
    assert_same_bits(list(backend.map(iter(todo), Clock())), expected)
    assert sorted(seen) == list(range(5))


def test_a_replica_shares_no_weights_and_follows_its_own_buffer(tuned: Tuned) -> None:
    twin = replica(tuned, torch.device("cpu"))
    mine, theirs = dict(tuned.vlm.model.named_parameters()), dict(twin.vlm.model.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name])
        assert value.data_ptr() != theirs[name].data_ptr()
    twin.flat.zero_()
    for name, spot in twin.spots.items():
        assert not getattr(twin.vlm.model.get_submodule(spot.module), spot.attribute).any(), name
    assert tuned.flat.any()


@copying
@pytest.mark.parametrize(("count", "rows"), [(2, 2), (3, 1), (9, 1)])
def test_any_number_of_workers_and_rows(count: int, rows: int, tuned: Tuned) -> None:
    todo, alone = works(tuned), InProcess(tuned)
    expected = list(alone.map(todo, Clock()))
    found = list(Workers(InProcess(tuned, rows), count).map(iter(todo), Clock()))
    if rows == 1:
        assert_same_bits(found, expected)
    for (mine, _), (theirs, _) in zip(found, expected, strict=True):
        assert float((mine.delta.flat - theirs.delta.flat).norm()) <= 1e-2 * float(theirs.delta.flat.norm())


@copying
def test_a_long_cohort_is_taken_up_piece_by_piece(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EACH", 2)
    todo, asked, seen = works(tuned, count=9), [], []

    def coming():
        for work in todo:
            asked.append(work.client)
            yield work

    backend = Workers(InProcess(tuned, 1, lambda update: seen.append(update.client)), 2)
    results = backend.map(coming(), Clock())
    assert [update.client for update, _ in islice(results, 1)] == [0]
    assert asked == [0, 1, 2, 3]
    assert [update.client for update, _ in results] == list(range(1, 9))
    assert sorted(seen) == list(range(9))


@copying
def test_time_is_told_by_what_workers_did(tuned: Tuned) -> None:
    """Also where several trainings share a round: each is told of its own clients, and of no more than passed."""
    clock, begun = Clock(), time.perf_counter()
    results = Workers(InProcess(tuned, 2), 2).map(works(tuned), clock)
    taken = []
    for count in (2, 3):
        assert len(list(islice(results, count))) == count
        taken.append(clock.take())
    for told in taken:
        assert {"forward", "backward", "step"} <= told.keys()
    assert sum(sum(told.values()) for told in taken) <= time.perf_counter() - begun


@copying
def test_a_client_with_a_damaged_image_is_missing_as_in_one_process(tuned: Tuned) -> None:
    broken = TASKS["vqa"].render(MAKERS["vqa"](stream(0, "t"), "x"), Presence(True, True), answer_form="text")
    todo = works(tuned)
    todo[3] = replace(todo[3], conversations=[replace(broken, picture=Damaged())])
    for backend in (InProcess(tuned), Workers(InProcess(tuned), 2)):
        found = [one for one in backend.map(todo, Clock()) if isinstance(one, Missing)]
        assert found == [Missing(3, "the picture is gone")]


class Damaged:
    key = "nowhere"

    def pixels(self):
        raise UserError("the picture is gone")


@copying
@pytest.mark.parametrize("scoring", ["likelihood", "generate"])
def test_several_processes_answer_as_one(scoring: str, tuned: Tuned) -> None:
    examples = [
        MAKERS[task](stream(3, "t", step=k), str(k)) for task in ("vqa", "classification") for k in range(20)
    ]
    presence, settings = [Presence(True, True)] * 40, Evaluate(scoring=scoring)
    alone, together = (
        judge_rows(tuned.vlm, [tuned.vlm.connect], examples, presence, settings, workers=count)[0]
        for count in (1, 3)
    )
    assert together.answers == alone.answers
    assert together.replies == alone.replies
    for left, right in zip(together.probabilities, alone.probabilities, strict=True):
        assert (left is None and right is None) or (left == right).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 9))
def test_works_are_dealt_out_once_and_evenly(sizes: list[int], count: int) -> None:
    shares = dealt(sizes, count)
    assert sorted(k for share in shares for k in share) == list(range(len(sizes)))
    assert all(share == sorted(share) and share for share in shares)
    most = max(sum(sizes[k] for k in share) for share in shares)
    # Graham's bound for the largest first (SIAM J. Appl. Math. 17, 1969), with the mean for the optimum.
    assert most <= max(max(sizes), sum(sizes) / len(shares) + max(sizes))


tensors = st.dictionaries(
    st.text("abc/", min_size=1, max_size=4),
    st.lists(st.floats(width=32), max_size=4).map(torch.tensor),
    max_size=3,
)


@given(
    st.integers(0, 2**40),
    st.floats(min_value=0.5, max_value=1e9),
    st.lists(st.floats(width=32), min_size=1, max_size=6),
    tensors,
    tensors,
)
def test_an_update_travels_unchanged(
    client: int, weight: float, values: list[float], extras: Tensors, kept: Tensors
) -> None:
    layout = Layout.of({"w": (len(values),)})
    update = Update(client, Params(layout, torch.tensor(values)), weight, extras, {"loss": weight / 3})
    found, memory = unpacked(packed((update, kept)), layout)
    assert (found.client, found.weight, found.metrics) == (client, weight, update.metrics)
    torch.testing.assert_close(found.delta.flat, update.delta.flat, rtol=0, atol=0, equal_nan=True)
    for left, right in ((found.extras, extras), (memory, kept)):
        assert left.keys() == right.keys()
        for key in left:
            torch.testing.assert_close(left[key], right[key], rtol=0, atol=0, equal_nan=True)


def test_tensors_that_share_memory_travel_too() -> None:
    layout, values = Layout.of({"w": (3,)}), torch.ones(3)
    update = Update(0, Params(layout, values), 1.0, {"same": values})
    found, kept = unpacked(packed((update, {"again": values})), layout)
    assert torch.equal(found.extras["same"], values)
    assert torch.equal(kept["again"], values)
