"""The heterogeneity card: hand-worked cases, and agreement with scipy-free definitions on any plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.scenarios import Plan
from fedloom.scenarios.heterogeneity_card import card, client_rows, distances, shared_with_others, survey
from fedloom.types import Example

OPTIONS = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Blank:
    key: str = "blank"

    def pixels(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


def example(number: int, label: int, text: str | None = "two words") -> Example:
    return Example(
        str(number), "Which?", OPTIONS[label], image=Blank(), text=text, label=label, options=OPTIONS
    )


def plan_of(labels: list[list[int]], image: bool = True, text: bool = True) -> tuple[Plan, list[Example]]:
    flat = [label for part in labels for label in part]
    offsets = np.cumsum([0, *map(len, labels)])
    seen = [np.full(len(flat), flag) for flag in (image, text)]
    plan = Plan(np.arange(len(flat)), offsets, *seen, "0" * 64)
    return plan, [example(number, label) for number, label in enumerate(flat)]


def test_alike_clients_have_distance_zero():
    summary = card(survey(*plan_of([[0, 1], [0, 1], [0, 1, 0, 1]])))
    assert summary["labels"]["total_variation"] == 0
    assert summary["labels"]["jensen_shannon"] == pytest.approx(0, abs=1e-7)
    assert summary["labels"]["effective"] == summary["labels"]["effective_per_client"] == pytest.approx(2)


def test_two_clients_with_a_label_each():
    # p = (1, 0), q = (½, ½): TV ½; JSD = ½ log₂(4/3) + ½ (½ log₂(2/3) + ½ log₂ 2) = ¾ log₂(4/3) …
    summary = card(survey(*plan_of([[0, 0], [1, 1]])))
    assert summary["labels"]["total_variation"] == pytest.approx(0.5)
    divergence = 0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5 * 1)
    assert summary["labels"]["jensen_shannon"] == pytest.approx(np.sqrt(divergence))
    assert summary["labels"]["effective_per_client"] == pytest.approx(1)
    assert summary["labels"]["effective"] == pytest.approx(2)


def test_the_card_has_the_means_of_its_rows_distances():
    result = survey(*plan_of([[0, 0, 1], [1, 1], [2]]))
    summary, labels = client_rows(result), card(result)["labels"]
    for name in ("total_variation", "jensen_shannon"):
        assert np.mean([row[name] for row in summary]) == pytest.approx(labels[name])
    # The third client has a label that is one of six in the pool: half of |0 − ⅓| + |0 − ½| + |1 − ⅙|.
    assert summary[2]["total_variation"] == pytest.approx(5 / 6)
    assert [row["total_variation"] for row in client_rows(result, 2)] == [
        row["total_variation"] for row in summary[:2]
    ]


def test_sizes():
    summary = card(survey(*plan_of([[0], [0] * 3, [0] * 4])))["sizes"]
    assert summary == {
        "smallest": 1, "median": 3.0, "largest": 4, "largest_share": 0.5,
        "effective_clients": pytest.approx(64 / 26),
    }  # fmt: skip


def test_modalities_of_clients_and_examples():
    plan = Plan(
        np.arange(6), [0, 2, 4, 6], [True, True, False, True, False, False], [True, False, True, False] + [False] * 2, ""
    )  # fmt: skip
    examples = [example(number, 0, "one two three" if number == 0 else "one") for number in range(6)]
    summary = card(survey(plan, examples))
    assert summary["modalities"]["clients"] == {"IT": 2, "I": 0, "T": 0, "": 1}
    assert summary["modalities"]["examples"] == {"both": 1, "image_only": 2, "text_only": 1, "none": 2}
    assert summary["words"] == {"mean": 2.0, "least": 1.0, "most": 3.0}
    assert [row["words"] for row in client_rows(survey(plan, examples))] == [3.0, 1.0, None]


def test_a_plan_without_texts_has_no_words():
    assert card(survey(*plan_of([[0], [1]], text=False)))["words"] is None


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6))
def test_distances_are_those_of_the_definition(labels):
    plan, examples = plan_of(labels)
    variation, divergence, effective = distances(survey(plan, examples))
    counts = np.array([np.bincount(part, minlength=4) for part in labels], float)
    q = counts.sum(axis=0) / counts.sum()
    for client, row in enumerate(counts):
        p = row / row.sum()
        assert variation[client] == pytest.approx(np.abs(p - q).sum() / 2)
        middle = (p + q) / 2
        both = [sum(x * np.log2(x / m) for x, m in zip(side, middle, strict=True) if x) for side in (p, q)]
        assert divergence[client] ** 2 == pytest.approx(sum(both) / 2, abs=1e-9)
        assert np.log2(effective[client]) == pytest.approx(-sum(x * np.log2(x) for x in p if x), abs=1e-9)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6), st.randoms())
def test_the_card_does_not_depend_on_the_order_of_clients(labels, shuffle):
    shuffled = list(labels)
    shuffle.shuffle(shuffled)
    first, second = (
        card(survey(*plan_of(labels))),
        card(survey(*plan_of(shuffled))),
    )
    assert first["sizes"] == second["sizes"] and first["modalities"] == second["modalities"]
    assert first["labels"] == pytest.approx(second["labels"])


def test_examples_that_another_client_shares_are_counted() -> None:
    """Client 0 holds examples 0, 1 and 2, client 1 holds 3 and 4; 1 and 3 share a key, 0 and 2 within a client."""
    plan, _ = plan_of([[0, 0, 0], [1, 1]])
    keys = [("a",), ("b", "c"), ("a",), ("c",), ()]
    assert shared_with_others(plan, keys) == 2
    assert shared_with_others(plan, [()] * 5) == 0
    assert shared_with_others(plan, [("same",)] * 5) == 5
