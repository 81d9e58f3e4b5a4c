"""Drawn shapes with several kinds of task: the group is the kind, so that clients can have one each."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.config.schema import Data, Scenario
from fedloom.data import load_data, variants
from fedloom.data.drawn_shapes import COLORS, SHAPES, SIZES, STYLES, Scene, Thing
from fedloom.experiment.experiment import Experiment
from fedloom.scenarios.plan import build_plan


@pytest.mark.parametrize("seed", [0, 1])
def test_by_group_gives_each_of_four_clients_one_kind_of_task(seed: int) -> None:
    train = load_data(Data(name="shapes", task="all", limit=40), seed).train
    plan = build_plan(train, Scenario(clients=4, partition="by_group"), seed)
    held = [{train[index].task for index in share.indices} for share in plan.clients]
    assert [len(tasks) for tasks in held] == [1, 1, 1, 1]
    assert set.union(*held) == {"choice", "vqa", "caption", "grounding"}


def test_with_a_single_task_the_group_is_the_subject_of_the_question() -> None:
    train = load_data(Data(name="shapes", task="vqa", limit=60), 0).train
    assert {example.group for example in train} <= {"color", "shape", "size", "count", "where", "exist"}
    assert len({example.group for example in train}) > 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("style", STYLES)
def test_a_box_holds_its_thing_and_nothing_less(style: str, shape: str, size: str) -> None:
    for color in COLORS:
        thing = Thing(30, 31, shape, color, size)
        drawn = (Scene((thing,), style).pixels() != STYLES[style]).any(axis=2)
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        x0, y0, x1, y1 = thing.box
        assert x0 <= columns[0] <= x0 + 1 and x1 - 1 <= columns[-1] <= x1
        assert y0 <= rows[0] <= y0 + 1 and y1 - 2 <= rows[-1] <= y1


@pytest.mark.parametrize("task", ["classification", "vqa", "captioning", "grounding", "all"])
def test_variants_show_the_same_things_in_another_look(task: str) -> None:
    filled, outlined = (
        load_data(Data(name="shapes", task=task, limit=12, variant=style), 0) for style in variants("shapes")
    )
    for one, other in zip(filled.train, outlined.train, strict=True):
        assert (one.question, one.answer, one.group) == (other.question, other.answer, other.group)
        assert one.image is not None and other.image is not None
        assert one.image.key != other.image.key
        assert (one.image.pixels() != other.image.pixels()).any()


def test_filled_is_the_default_and_an_unknown_style_is_refused() -> None:
    assert load_data(Data(name="shapes", limit=3), 0) == load_data(
        Data(name="shapes", limit=3, variant="filled"), 0
    )
    with pytest.raises(ValueError, match=r"data.variant is dotted, .* it must be one of filled, outlined"):
        Experiment(data={"name": "shapes", "variant": "dotted"})
