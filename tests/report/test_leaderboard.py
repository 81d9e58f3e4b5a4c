"""A leaderboard groups runs that answer the same question, and names differences that may be due to chance."""

from __future__ import annotations

import csv
import io

import pytest

from fedloom.report.confidence_intervals import difference_p, interval
from fedloom.report.leaderboard import MethodResult, board_csv, boards
from fedloom.report.significance import ClientCounts, estimate


def result(
    method: str,
    seed: int,
    score: float | None,
    *,
    question: str = "q",
    contents: str = "c",
    questions: float | None = 100,
    lr: float = 0.1,
    clients: ClientCounts = ClientCounts(),
) -> MethodResult:
    entry = f"{method}{lr}"
    return MethodResult(
        f"runs/{entry}-{seed}", seed, method, question, contents, "about", {"train.lr": lr}, entry, "accuracy",
        score, questions, None, clients, 10.0,
    )  # fmt: skip


def test_entries_are_ranked_by_their_mean_over_seeds() -> None:
    (board,) = boards(
        [
            result("fedavg", 0, 0.5),
            result("fedavg", 1, 0.7),
            result("fedprox", 0, 0.9),
            result("fedadam", 0, None),
        ]
    )
    assert [entry.first.method for entry in board.entries] == ["fedprox", "fedavg", "fedadam"]
    mean = board.entries[1].estimate
    assert mean is not None
    # Mean 0.6, standard deviation 0.2 / √2, t = 12.706: half the width is 12.706 · 0.2 / 2.
    assert (mean.mean, mean.half) == pytest.approx((0.6, 1.2706))
    assert board.entries[1].interval == (0.0, 1.0)  # a share is nowhere else
    assert board.entries[0].interval == interval(0.9, 100)  # one seed: Wilson's, over the questions
    assert board.entries[2].interval is None


def test_settings_make_another_entry_and_seeds_do_not() -> None:
    (board,) = boards([result("fedavg", 0, 0.5), result("fedavg", 1, 0.5), result("fedavg", 0, 0.4, lr=0.2)])
    assert [(entry.first.settings["train.lr"], len(entry.scores)) for entry in board.entries] == [
        (0.1, 2),
        (0.2, 1),
    ]
    assert "train.lr 0.1" in board.table().note


def test_other_questions_are_other_boards() -> None:
    assert len(boards([result("fedavg", 0, 0.5), result("fedavg", 0, 0.5, question="other")])) == 2


def test_data_may_depend_on_the_seed_but_not_on_anything_else() -> None:
    drawn = [result("fedavg", seed, 0.5, contents=f"drawn with {seed}") for seed in (0, 1)]
    assert len(boards(drawn)) == 1
    assert len(boards([*drawn, result("fedprox", 0, 0.5, contents="other images")])) == 3


def test_a_repeated_run_counts_once() -> None:
    (board,) = boards([result("fedavg", 0, 0.5), result("fedavg", 0, 0.5)])
    assert len(board.entries[0].results) == 1


def test_neighbors_are_compared_over_common_seeds_with_holms_correction() -> None:
    first, second, third = ([0.9, 0.91, 0.92, 0.91], [0.8, 0.82, 0.81, 0.8], [0.79, 0.8, 0.81, 0.79])
    (board,) = boards(
        [
            result(method, seed, score)
            for method, scores in (("a", first), ("b", second), ("c", third))
            for seed, score in enumerate(scores)
        ]
    )
    p = [
        difference.p
        for ours, theirs in ((first, second), (second, third))
        if (difference := estimate([one - other for one, other in zip(ours, theirs, strict=True)]))
        is not None
    ]
    small, large = sorted(one for one in p if one is not None)
    assert [lead.seeds for lead in board.leads] == [4, 4]
    assert sorted(lead.p or 0.0 for lead in board.leads) == pytest.approx([2 * small, max(2 * small, large)])
    assert board.leads[0].significant and not board.leads[1].significant
    assert [row[-1] for row in board.table().rows] == ["ahead", "n.s.", ""]


def test_seeds_that_agree_are_no_proof() -> None:
    """Two methods that differ by the same four questions on both seeds."""
    (board,) = boards(
        [result(name, seed, score) for seed in (0, 1) for name, score in (("a", 0.84), ("b", 0.8))]
    )
    assert board.leads[0].p == pytest.approx(0.5) and board.table().rows[0][-1] == "n.s."
    assert board.entries[0].interval == interval(0.84, 100)
    assert "seeds that all gave the same score" in board.table().note


def test_one_common_seed_is_tested_over_the_questions() -> None:
    (board,) = boards([result("a", 0, 0.7), result("b", 0, 0.5)])
    assert board.leads[0].p == pytest.approx(difference_p(0.7, 0.5, 100))
    (board,) = boards([result("a", 0, 0.7, questions=None), result("b", 0, 0.5, questions=None)])
    assert (board.leads[0].p, board.table().rows[0][-1]) == (None, "?")
    (board,) = boards([result("a", 0, 0.7), result("b", 1, 0.5)])
    assert (board.leads[0].difference, board.leads[0].significant) == (None, None)


def test_clients_are_counted_over_seeds() -> None:
    (board,) = boards([result("a", seed, 0.5, clients=ClientCounts(2, 0, 1)) for seed in (0, 1)])
    assert (board.entries[0].clients.better, board.entries[0].clients.worse) == (4, 2)


def test_csv_has_a_row_for_each_entry_with_plain_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(board_csv(boards([result("a", 0, 0.75), result("b", 0, None)])))))
    assert [(row["method"], row["score"], row["bytes"]) for row in rows] == [
        ("a", "0.75", "10.0"),
        ("b", "", "10.0"),
    ]
