"""Clients in several processes give the updates that they give in one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clients import asked_about, assigned, named, real_site
from tests.shares import share

from fedloom.algorithms import SERVERS
from fedloom.client.answer_questions import answer_rows
from fedloom.client.client_memory import Files
from fedloom.config.schema import Evaluate
from fedloom.data.drawn_shapes import MAKERS
from fedloom.engine import worker_processes as module
from fedloom.engine.in_process import InProcess
from fedloom.engine.worker_processes import Workers, deal
from fedloom.seeds import stream
from fedloom.system.errors import UserError
from fedloom.system.processes import can_fork
from fedloom.system.timing import Clock
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned
from fedloom.types import Conversation, Presence
from fedloom.wire.messages import Answer, Missing, Update

NAMES = (
    *SERVERS,
    *(f"fedavg+{part}" for part in ("sam", "dp-sgd", "pfedme", "keep-last", "ditto")),
    "scaffold+sam",
    "scaffold+ditto",
)

copying = pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")


def assert_same_bits(actual: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert isinstance(mine, Update)
        assert isinstance(theirs, Update)
        assert (mine.client, mine.weight, mine.up, mine.keeps) == (
            theirs.client, theirs.weight, theirs.up, theirs.keeps
        )  # fmt: skip
        assert {**mine.metrics, "seconds": 0} == {**theirs.metrics, "seconds": 0}
        assert mine.delta.layout == theirs.delta.layout
        assert torch.equal(mine.delta.flat, theirs.delta.flat)
        assert mine.extras.keys() == theirs.extras.keys()
        assert all(torch.equal(value, theirs.extras[key]) for key, value in mine.extras.items())


def kept(folder: Path) -> dict[str, bytes]:
    """Return what clients keep, by file."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*.safetensors")}


@copying
@pytest.mark.parametrize("name", share(NAMES, every=3))
def test_every_algorithm_has_the_updates_of_one_process(name: str, tuned: Tuned, tmp_path: Path) -> None:
    """What clients keep is the same, too."""
    todo, result = assigned(tuned, name), {}
    for count in (1, 2):
        (folder := tmp_path / str(count)).mkdir()
        alone = InProcess(real_site(tuned, name, memory=Files(folder)))
        backend = alone if count == 1 else Workers(alone, count)
        result[count] = list(backend.train(todo, Clock()))
    assert_same_bits(result[2], result[1])
    assert kept(tmp_path / "2") == kept(tmp_path / "1")
    assert bool(kept(tmp_path / "1")) is (name.startswith("scaffold") or named(name).personal)


@copying
def test_what_a_copy_cannot_keep_is_refused(tuned: Tuned) -> None:
    with pytest.raises(ValueError, match="keep it in files"):
        list(Workers(InProcess(real_site(tuned, "scaffold")), 2).train(assigned(tuned, "scaffold"), Clock()))


@copying
@pytest.mark.parametrize(("count", "rows"), [(2, 2), (3, 1), (9, 1)])
def test_any_number_of_workers_and_rows(count: int, rows: int, tuned: Tuned) -> None:
    todo, site = assigned(tuned), real_site(tuned)
    expected = list(InProcess(site).train(todo, Clock()))
    actual = list(Workers(InProcess(site, rows), count).train(iter(todo), Clock()))
    if rows == 1:
        assert_same_bits(actual, expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert isinstance(mine, Update)
        assert isinstance(theirs, Update)
        assert float((mine.delta.flat - theirs.delta.flat).norm()) <= 1e-2 * float(theirs.delta.flat.norm())


@copying
def test_a_large_cohort_is_trained_in_pieces(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENTS_PER_COPY", 2)
    todo, asked, seen = assigned(tuned, clients=9), [], []

    def coming():
        for one in todo:
            asked.append(one.client)
            yield one

    backend = Workers(InProcess(real_site(tuned, clients=9), 1, lambda update: seen.append(update.client)), 2)
    results = backend.train(coming(), Clock())
    assert [update.client for update in islice(results, 1)] == [0]
    assert asked == [0, 1, 2, 3]
    assert [update.client for update in results] == list(range(1, 9))
    assert sorted(seen) == list(range(9))


@copying
def test_time_is_counted_by_the_work_of_each_worker(tuned: Tuned) -> None:
    """Where trainings share a round, each counts the time of its own clients, in all no more than passed."""
    clock, begun = Clock(), time.perf_counter()
    results = Workers(InProcess(real_site(tuned), 2), 2).train(assigned(tuned), clock)
    taken = []
    for count in (2, 3):
        assert len(list(islice(results, count))) == count
        taken.append(clock.take())
    for seconds in taken:
        assert {"forward", "backward", "step"} <= seconds.keys()
    assert sum(sum(seconds.values()) for seconds in taken) <= time.perf_counter() - begun


@copying
def test_a_client_with_a_damaged_image_is_missing_as_in_one_process(tuned: Tuned) -> None:
    broken = TASKS["vqa"].render(MAKERS["vqa"](stream(0, "t"), "x"), Presence(True, True), answer_form="text")

    def shown(client: int) -> list[Conversation]:
        return [replace(broken, picture=Damaged())] if client == 3 else asked_about(client)

    site = real_site(tuned, conversations=shown)
    for backend in (InProcess(site), Workers(InProcess(site), 2)):
        answers = [one for one in backend.train(assigned(tuned), Clock()) if isinstance(one, Missing)]
        assert answers == [Missing(3, "the image is gone")]


class Damaged:
    key = "nowhere"

    def pixels(self):
        raise UserError("the image is gone")


@copying
@pytest.mark.parametrize("scoring", ["likelihood", "generate"])
def test_several_processes_answer_as_one(scoring: str, tuned: Tuned) -> None:
    examples = [
        MAKERS[task](stream(3, "t", step=k), str(k)) for task in ("vqa", "classification") for k in range(20)
    ]
    presence, settings = [Presence(True, True)] * 40, Evaluate(scoring=scoring)
    alone, together = (
        answer_rows(tuned.vlm, [tuned.vlm.connect], examples, presence, settings, workers=count)[0]
        for count in (1, 3)
    )
    assert together.answers == alone.answers
    assert together.replies == alone.replies
    for left, right in zip(together.probabilities, alone.probabilities, strict=True):
        assert (left is None and right is None) or (left == right).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 9))
def test_work_is_divided_once_and_evenly(sizes: list[int], count: int) -> None:
    shares = deal(sizes, count)
    assert sorted(k for share in shares for k in share) == list(range(len(sizes)))
    assert all(share == sorted(share) and share for share in shares)
    most = max(sum(sizes[k] for k in share) for share in shares)
    # Graham's bound for the largest first (SIAM J. Appl. Math. 17, 1969), with the mean for the optimum.
    assert most <= max(max(sizes), sum(sizes) / len(shares) + max(sizes))
