"""Drawn shapes with several kinds of task: the group is the kind, so that clients can have one each."""

from __future__ import annotations

import pytest

from fedloom.data import load_data
from fedloom.scenarios.plan import build_plan
from fedloom.sections import Data, Scenario


@pytest.mark.parametrize("seed", [0, 1])
def test_by_group_gives_each_of_four_clients_one_kind_of_task(seed: int) -> None:
    train = load_data(Data(name="shapes", task="all", limit=40), seed).train
    plan = build_plan(train, Scenario(clients=4, partition="by_group"), seed)
    held = [{train[index].task for index in share.indices} for share in plan.clients]
    assert [len(tasks) for tasks in held] == [1, 1, 1, 1]
    assert set.union(*held) == {"choice", "vqa", "caption", "grounding"}


def test_with_one_kind_of_task_the_group_is_what_is_asked_about() -> None:
    train = load_data(Data(name="shapes", task="vqa", limit=60), 0).train
    assert {example.group for example in train} <= {"color", "shape", "size", "count", "where", "exist"}
    assert len({example.group for example in train}) > 1
