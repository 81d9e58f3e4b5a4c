"""How many independent questions a score is based on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedloom.config.schema import Scenario
from fedloom.runs.modality_slices import expected_score, independent_questions
from fedloom.scenarios.plan import build_plan
from fedloom.types import Example


class Image:
    """An image that is known by its key."""

    def __init__(self, key: str) -> None:
        self.key = key


def example(number: int, answer: str, image: str | None = None) -> Example:
    shown = None if image is None else Image(image)
    return Example(str(number), "?", answer, shown, "t", "ab".index(answer), None, ("a", "b"))  # type: ignore[arg-type]


def plan_of(train: list[Example], clients: int = 1):
    return build_plan(train, Scenario(clients=clients), 0)


def test_questions_about_different_images_all_count():
    test = [example(k, "a", f"i{k}") for k in range(10)]
    train = [example(k, "a", f"t{k}") for k in range(4)]
    found = independent_questions(train, test, plan_of(train))
    for value in (found["test"], found["own"], found["clients"][0]):
        assert value == {"choice": pytest.approx(10)}


def test_questions_about_one_image_count_as_one():
    """Two images with six and two questions: 8² / (6² + 2²) = 1.6."""
    test = [example(k, "a", "x" if k < 6 else "y") for k in range(8)]
    train = [example(0, "a", "t")]
    assert independent_questions(train, test, plan_of(train))["test"]["choice"] == pytest.approx(1.6)


def test_variants_of_one_thing_count_as_one():
    test = [replace(example(k, "a", f"i{k}"), base="hand") for k in range(5)]
    train = [example(0, "a", "t")]
    assert independent_questions(train, test, plan_of(train))["test"]["choice"] == pytest.approx(1)


def test_a_client_is_judged_by_the_questions_of_its_classes():
    """A client with one class of two, of 3 and 7 questions, has 3; one with both in equal parts 1 / (.25 / 3 + .25 / 7)."""
    test = [example(k, "a" if k < 3 else "b", f"i{k}") for k in range(10)]
    for answers, expected in (("aa", 3.0), ("ab", 1 / (0.25 / 3 + 0.25 / 7))):
        train = [example(k, answer, f"t{k}") for k, answer in enumerate(answers)]
        found = independent_questions(train, test, plan_of(train))
        assert found["clients"][0]["choice"] == pytest.approx(expected)


def test_a_client_without_a_tested_class_has_none():
    train = [example(0, "b", "t")]
    found = independent_questions(train, [example(1, "a", "i")], plan_of(train))
    assert found["clients"] == [{}] and found["own"] == {}


def test_the_variance_of_an_own_score_is_that_of_as_many_questions():
    """The variance of Σ w x with independent x of variance ¼ is ¼ Σ w², and n = 1 / Σ w²."""
    test = [example(k, "a" if k < 4 else "b", f"i{k}") for k in range(20)]
    train = [example(k, "aab"[k % 3], f"t{k}") for k in range(9)]
    plan = plan_of(train)
    count = independent_questions(train, test, plan)["clients"][0]["choice"]
    draw = np.random.default_rng(0)
    values = [
        expected_score(
            plan.clients[0],
            train,
            test,
            dict.fromkeys(("both", "image", "text"), draw.integers(0, 2, 20).astype(float)),
        )
        for _ in range(4000)
    ]
    assert np.var(values) == pytest.approx(0.25 / count, rel=0.1)
