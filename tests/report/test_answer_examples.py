"""Which examples a page of answers shows: by hand, and never by what they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedloom.report.answer_examples import (
    MOST_CLIENTS,
    SHOWN,
    Columns,
    Model,
    columns_of,
    comparisons_of,
    missing_reason,
    read_right,
    read_shown,
    slice_of,
)
from fedloom.report.answers_page import render_answers
from fedloom.report.run_results import read_run
from fedloom.tasks.predictions import Prediction
from fedloom.types import Example, Turn

COLUMNS = Columns("zero-shot", "local", "fedavg", None)
OPTIONS = ("cat", "dog")


def rows(method: str, client: int | None, right: str, part: str = "both") -> list[Prediction]:
    """Predictions of the examples e0, e1 …: right where the text has a 1."""
    return [
        Prediction(
            method, client, part, f"e{k}", "choice", OPTIONS[mark == "1"], "dog", mark == "1", float(mark),
            int(mark), OPTIONS, (1 - int(mark), int(mark)),
        )
        for k, mark in enumerate(right)
    ]  # fmt: skip


class Pixels:
    """An image of one color."""

    key = "pixels"

    def pixels(self):
        return np.full((40, 30, 3), 7, np.uint8)


def test_the_first_changes_in_order_by_hand():
    """Of seven examples 1, 2, 4 and 6 became right and 0 and 5 wrong; three and two of them are shown."""
    answers = [*rows("zero-shot", None, "1000010"), *rows("fedavg", None, "0110101")]
    (one,) = comparisons_of(read_right(answers, COLUMNS), COLUMNS, [])
    assert (one.before, one.after, one.questions) == (Model("zero-shot"), Model("fedavg"), 7)
    assert one.gained == ("e1", "e2", "e4", "e6") and one.lost == ("e0", "e5")
    assert SHOWN == 3 and one.shown == ("e1", "e2", "e4", "e0", "e5")


def test_clients_compare_the_model_that_they_trained_alone_with_the_one_that_serves_them():
    answers = [
        *rows("local", 0, "10"), *rows("local", 1, "01"), *rows("fedavg", None, "11"),
        *rows("local", 0, "00", "image"), *rows("local", 1, "10", "image"), *rows("fedavg", None, "01", "image"),
    ]  # fmt: skip
    clients = [{"both": 5, "image_only": 2, "text_only": 0}, {"both": 1, "image_only": 2, "text_only": 0}]
    first, second = comparisons_of(read_right(answers, COLUMNS), COLUMNS, clients)
    assert (first.slice, first.client, first.gained, first.lost) == ("both", 0, ("e1",), ())
    assert (second.slice, second.client, second.gained, second.lost) == ("image", 1, ("e1",), ("e0",))
    own = [*answers, *rows("fedavg", 0, "01")]
    first, second = comparisons_of(read_right(own, COLUMNS), COLUMNS, clients)
    assert first.after == Model("fedavg", 0) and first.lost == ("e0",)
    assert second.after == Model("fedavg")


def test_only_the_first_clients_have_comparisons():
    count = MOST_CLIENTS + 5
    answers = [row for client in range(count) for row in rows("local", client, "0")]
    answers += rows("fedavg", None, "1")
    found = comparisons_of(read_right(answers, COLUMNS), COLUMNS, [{"both": 1}] * count)
    assert [one.client for one in found] == list(range(MOST_CLIENTS))


@pytest.mark.parametrize(
    ("counts", "slices", "expected"),
    [
        ({"both": 3, "image_only": 9, "text_only": 1}, ["both", "image", "text"], "image"),
        ({"both": 0, "image_only": 0, "text_only": 2}, ["both", "image", "text"], "text"),
        ({"both": 0, "image_only": 9}, ["text"], "text"),
        ({}, ["both", "image"], "both"),
    ],
)
def test_a_client_is_shown_what_it_holds_most_of(counts, slices, expected):
    assert slice_of(counts, slices) == expected


def test_of_shown_examples_the_answers_of_the_clients_concerned_are_kept():
    answers = [
        *rows("zero-shot", None, "01"), *rows("local", 0, "01"), *rows("local", 1, "11"), *rows("fedavg", None, "11"),
    ]  # fmt: skip
    found = comparisons_of(read_right(answers, COLUMNS), COLUMNS, [{"both": 1}, {"both": 1}])
    shown = read_shown(answers, COLUMNS, found)
    assert set(shown) == {("both", "e0")}
    assert set(shown["both", "e0"]) == {
        Model("zero-shot"),
        Model("local", 0),
        Model("local", 1),
        Model("fedavg"),
    }


def test_what_cannot_be_compared_is_said():
    scores = {"accuracy": 0.5}
    assert columns_of({"scores": dict.fromkeys(["local", "centralized", "fedavg"], scores)}) == Columns(
        None, "local", "fedavg", "centralized"
    )
    assert missing_reason(COLUMNS) == ""
    assert "no federated method" in missing_reason(replace(COLUMNS, federated=None))
    assert "neither zero-shot nor local" in missing_reason(replace(COLUMNS, zero_shot=None, local=None))


HOSTILE = "</p><script>alert(1)</script>"


def page(run_folder, example: Example, **experiment) -> str:
    folder = run_folder(methods=["zero-shot", "local", "fedavg"], experiment=experiment)
    answers = [*rows("zero-shot", None, "0"), *rows("fedavg", None, "1")]
    found = comparisons_of(read_right(answers, COLUMNS), COLUMNS, [])
    examples = {example.id: example}
    shown = read_shown(answers, COLUMNS, found)
    return render_answers(read_run(folder), COLUMNS, found, shown, examples, "report.html")


def test_the_page_shows_the_example_and_escapes_it(run_folder):
    example = Example("e0", HOSTILE, "dog", Pixels(), f"a text {HOSTILE}", 1, None, OPTIONS)
    markup = page(run_folder, example)
    assert "<script" not in markup and markup.count("&lt;script&gt;") == 2
    assert markup.count('<img src="data:image/jpeg;base64,') == 1
    assert (
        "100%" in markup and "✓" in markup and 'class="wrong">cat' in markup and 'class="right">dog' in markup
    )


def test_images_can_be_kept_out(run_folder):
    example = Example("e0", "What is it?", "dog", Pixels(), None, 1, None, OPTIONS)
    markup = page(run_folder, example, report={"images": False})
    assert "<img" not in markup and "report.images: false" in markup and "What is it?" in markup


def test_an_example_that_is_not_the_one_that_was_answered_is_not_shown(run_folder):
    changed = Example("e0", "Another question", "cat", Pixels(), None, 0, None, OPTIONS)
    markup = page(run_folder, changed)
    assert "Another question" not in markup and "<img" not in markup
    assert "1 example is shown without question and image" in markup


class Noise:
    """An image that hardly compresses."""

    key = "noise"

    def pixels(self):
        return np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)


def test_the_largest_page_is_small(run_folder):
    """Ten clients, three slices, long texts of four bytes a letter, two images of noise, and many long options."""
    long, options = "\N{GRINNING FACE}" * 5000, tuple(f"{k}" + "\N{GRINNING FACE}" * 500 for k in range(9))
    names, right = range(12), {"zero-shot": "000000111111", "local": "000000111111", "fedavg": "111111000000"}

    def answered(method, client, part):
        return [
            replace(
                row, expected=options[0], options=options, scores=(1 / 9,) * 9, answer=options[1], reply=long
            )
            for row in rows(method, client, right[method], part)
        ]

    clients = list(range(MOST_CLIENTS))
    answers = [row for part in ("both", "image", "text") for row in answered("zero-shot", None, part)]
    answers += [row for k in clients for row in answered("local", k, "both")]
    answers += [row for part in ("both", "image", "text") for row in answered("fedavg", None, part)]
    found = comparisons_of(read_right(answers, COLUMNS), COLUMNS, [{"both": 1}] * len(clients))
    assert sum(len(one.shown) for one in found) == (3 + 10) * 2 * SHOWN
    noise = (Noise(), Noise())
    examples = {
        f"e{k}": Example(
            f"e{k}",
            long,
            options[0],
            noise[0],
            long,
            0,
            None,
            options,
            turns=(Turn(long, options[0], noise),),
        )
        for k in names
    }
    folder = run_folder(methods=["zero-shot", "local", "fedavg"])
    shown = read_shown(answers, COLUMNS, found)
    page = render_answers(read_run(folder), COLUMNS, found, shown, examples, "report.html")
    assert page.count("<img") == (2 + 10) * 2 * SHOWN * 2 and len(page.encode()) < 2_500_000
