"""Laws of the validation part, in data sets that small files can stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fedloom.data import load_data
from fedloom.data.same import twins
from fedloom.experiment import Scenario
from fedloom.scenarios.plan import Plan, build_plan
from fedloom.scenarios.validation import divided, keep_out
from fedloom.types import DataSet, Example, UserError

SHARE = 0.25


def of(plan, examples):
    """Return the ids that each client of a plan holds."""
    return [{examples[index].id for index in share.indices} for share in plan.clients]


@pytest.fixture(params=["emoji", "digits", "shapes", "hateful-memes", "vqa-rad", "flashcards"])
def loaded(request, tmp_path, encoded, trees, settings) -> DataSet:
    name = request.param
    writers = {
        "hateful-memes": lambda: trees.hateful_memes(tmp_path, encoded, train=12),
        "vqa-rad": lambda: trees.vqa_rad(tmp_path, encoded),
        "flashcards": lambda: trees.flashcards(tmp_path, cards=16),
    }
    root = writers[name]() if name in writers else None
    return load_data(settings(name=name, root=root, limit=None if root else 120), 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_whole_and_apart_from_the_test_part(loaded, seed) -> None:
    before = build_plan(loaded.train, Scenario(clients=2), seed)
    trained, kept = keep_out(before, loaded.train, SHARE, seed)
    for whole, own, out in zip(*(of(plan, loaded.train) for plan in (before, trained, kept)), strict=True):
        assert own | out == whole
        assert not own & out
        assert own
    assert not set().union(*of(kept, loaded.train)) & {one.id for one in loaded.test}
    again = keep_out(before, loaded.train, SHARE, seed)
    assert [plan.digest for plan in again] == [trained.digest, kept.digest]


def test_twins_stay_on_one_side_over_all_clients(loaded) -> None:
    before = build_plan(loaded.train, Scenario(clients=2), 0)
    marks = twins(loaded.train)
    sides = [
        {mark for index in plan.indices for mark in marks[index]}
        for plan in keep_out(before, loaded.train, SHARE, 0)
    ]
    assert not sides[0] & sides[1]


def example(number: int, answer: str = "a") -> Example:
    return Example(f"{number:03}", "?", answer, text=f"text {number}", options=("a", "b"), label=0)


@dataclass(frozen=True)
class Chosen:
    validation: float | str


def test_a_share_of_each_answer_is_kept_out() -> None:
    examples = [example(number, "ab"[number % 2]) for number in range(40)]
    _, kept = keep_out(build_plan(examples, Scenario(clients=1), 0), examples, 0.25, 0)
    answers = [examples[index].answer for index in kept.indices]
    assert (answers.count("a"), answers.count("b")) == (5, 5)


def test_a_small_client_keeps_all_and_a_client_draws_alone() -> None:
    examples = [example(number) for number in range(23)]
    one = build_plan(examples[:20], Scenario(clients=1), 0)
    whole = np.ones(23, bool)
    joined = Plan(np.concatenate([one.indices, [20, 21, 22]]), np.array([0, 20, 23]), whole, whole, "")
    alone, both = (keep_out(plan, examples, 0.1, 0)[1] for plan in (one, joined))
    assert both.clients[0].indices.tolist() == alone.clients[0].indices.tolist()
    assert [len(share) for share in both.clients] == [2, 0]


def test_clients_that_are_all_too_small_are_refused() -> None:
    examples = tuple(example(number) for number in range(6))
    with pytest.raises(UserError, match=r"data\.validation is 0\.1, but no client"):
        divided(DataSet("folder", examples, examples), Chosen(0.1), Scenario(clients=2), 0)


def test_the_owners_part_is_neither_trained_nor_tested_on(tmp_path, encoded, trees, settings) -> None:
    root = trees.hateful_memes(tmp_path, encoded)
    plain = load_data(settings(name="hateful-memes", root=root), 0)
    data = load_data(settings(name="hateful-memes", root=root, validation="published"), 0)
    assert (plain.train, plain.test, plain.validation) == (data.train, data.test, ())
    assert {one.id for one in data.validation} == {"100", "101"}
    plan, found = divided(data, Chosen("published"), Scenario(clients=2), 0)
    assert found is not None
    assert found.common
    assert len(plan.indices) == len(data.train)


def test_a_part_that_the_owners_ship_but_is_not_there_is_named(tmp_path, encoded, trees, settings) -> None:
    root = trees.hateful_memes(tmp_path, encoded)
    (root / "dev_seen.jsonl").unlink()
    with pytest.raises(UserError, match=r"data\.validation is published, but .* holds no dev\.jsonl"):
        load_data(settings(name="hateful-memes", root=root, validation="published"), 0)
