"""Scores by client: the accuracy that a model would have on data such as the client's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedloom.runs.modality_slices import expected_score, slices_of
from fedloom.scenarios.plan import Share
from fedloom.types import Example


def example(answer: str, *, image: object = "x", text: str | None = "t") -> Example:
    return Example("", "?", answer, image, text, "ab".index(answer), None, ("a", "b"))  # type: ignore[arg-type]


TEST = [example(answer) for answer in "aabb"]
# Right on: both evidences a 1.0, b 0.5; image only a 0.5, b 0.0; text only a 0.0, b 1.0.
CORRECT = {
    "both": np.array([1, 1, 1, 0.0]),
    "image": np.array([1, 0, 0, 0.0]),
    "text": np.array([0, 0, 1, 1.0]),
}


@pytest.mark.parametrize(
    "answers, image, text, expected",
    [
        ("aa", [1, 1], [1, 1], 1.0),
        ("bb", [1, 1], [1, 1], 0.5),
        ("ab", [1, 1], [0, 0], 0.25),
        ("bb", [0, 1], [1, 1], 0.75),
        ("aab", [1, 0, 0], [0, 1, 1], (0.5 + 0.0 + 1.0) / 3),
    ],
)
def test_scores_weigh_classes_and_modalities_as_the_client_holds_them(
    answers: str, image: list[int], text: list[int], expected: float
) -> None:
    train = [example(answer) for answer in answers]
    share = Share(np.arange(len(train)), np.array(image, bool), np.array(text, bool))
    assert expected_score(share, train, TEST, CORRECT) == pytest.approx(expected)


def test_classes_that_are_not_tested_are_left_out() -> None:
    train = [example("a"), example("b")]
    share = Share(np.arange(2), np.ones(2, bool), np.ones(2, bool))
    only_a = {name: values[:2] for name, values in CORRECT.items()}
    assert expected_score(share, train, TEST[:2], only_a) == 1.0
    nothing = {name: values[:0] for name, values in CORRECT.items()}
    assert expected_score(share, train, [], nothing) is None


def test_slices_follow_what_the_data_have() -> None:
    assert slices_of([example("a")]) == ["both", "image", "text"]
    assert slices_of([example("a", text=None)]) == ["image"]
    assert slices_of([example("a", image=None)]) == ["text"]


def test_a_client_of_one_group_is_tested_on_its_group_alone() -> None:
    def of(group: str, answer: str) -> Example:
        return replace(example(answer), group=group)

    test = [of("Noto", "a"), of("Fluent", "a"), of("Noto", "b"), of("Fluent", "b")]
    right = {name: np.array([1, 0, 1, 0.0]) for name in CORRECT}
    for groups, expected in ((("Noto", "Noto"), 1.0), (("Fluent", "Fluent"), 0.0), (("Noto", "Fluent"), 0.5)):
        train = [of(groups[0], "a"), of(groups[1], "b")]
        share = Share(np.arange(2), np.ones(2, bool), np.ones(2, bool))
        assert expected_score(share, train, test, right) == expected
    other_task = replace(of("Fluent", "a"), task="caption")  # what it holds of another task does not matter
    share = Share(np.arange(2), np.ones(2, bool), np.ones(2, bool))
    assert expected_score(share, [of("Noto", "a"), other_task], test, right, "choice") == 1.0
    # Nor does it matter that another task is tested on the client's group.
    share = Share(np.arange(1), np.ones(1, bool), np.ones(1, bool))
    tested = [*test, replace(of("OpenMoji", "a"), task="caption")]
    shown = {name: np.array([1, 0, 1, 0, 0.0]) for name in CORRECT}
    assert expected_score(share, [of("OpenMoji", "a")], tested, shown, "choice") == 0.5
    elsewhere = Share(np.arange(1), np.ones(1, bool), np.ones(1, bool))
    assert expected_score(elsewhere, [of("OpenMoji", "a")], test, right) == 0.5  # no test example of its own
