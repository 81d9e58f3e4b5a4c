"""Paired comparisons as arithmetic: hand-worked cases, agreement with SciPy, and laws."""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fedloom.report.significance import (
    Estimate,
    Observation,
    Pair,
    PairedResult,
    compare_pairs,
    estimate,
    holm_significant,
    interval_half_width,
    match_pairs,
)

Scores = Mapping[tuple[str, str, int], float | None]
"""(value of "how", value of "where", seed) → score."""

SEEDS = (0, 1, 2)
NUMBERS = st.floats(0, 1)


def observations_of(scores: Scores, how: str) -> list[Observation]:
    return [
        Observation(f"{how}, {where}, {seed}", {"how": how, "where": where}, seed, value)
        for (its, where, seed), value in scores.items()
        if its == how
    ]


def paired(scores: Scores, first: str = "new", second: str = "old", *, lower: bool = False) -> PairedResult:
    return compare_pairs(
        match_pairs(observations_of(scores, first), observations_of(scores, second), "how"), lower=lower
    )


def full(values: list[float]) -> dict[tuple[str, str, int], float | None]:
    keys = [(how, where, seed) for how in ("old", "new") for where in ("here", "there") for seed in SEEDS]
    return dict(zip(keys, values, strict=True))


GRIDS = st.lists(NUMBERS, min_size=12, max_size=12).map(full)


def near(result: Estimate | None) -> tuple[object, object, int]:
    assert result is not None
    half = None if result.half is None else pytest.approx(result.half, abs=1e-9)
    return pytest.approx(result.mean, abs=1e-9), half, result.seeds


def test_a_grid_by_hand() -> None:
    """Differences are 1 and 3, 2 and 4, 3 and 5, so the seeds' means 2, 3, 4: mean 3, s = 1, 4.303 / √3 = 2.484."""
    new = {("new", "here", 0): 1.0, ("new", "here", 1): 3.0, ("new", "here", 2): 3.0}
    new |= {("new", "there", 0): 8.0, ("new", "there", 1): 4.0, ("new", "there", 2): 15.0}
    old = {("old", "here", 0): 0.0, ("old", "here", 1): 1.0, ("old", "here", 2): 0.0}
    old |= {("old", "there", 0): 5.0, ("old", "there", 1): 0.0, ("old", "there", 2): 10.0}
    result = paired({**new, **old})
    assert result.estimate == Estimate(3.0, pytest.approx(2.484, abs=1e-3), 3)
    assert (result.better, result.same, result.worse, result.missing) == (6, 0, 0, ())
    assert result.verdict == "better"


def test_a_missing_score_drops_its_pair_and_is_named() -> None:
    scores: dict[tuple[str, str, int], float | None] = {
        ("old", "here", 0): 0.5, ("new", "here", 0): 0.5, ("old", "here", 1): 0.25, ("new", "here", 1): None,
        ("old", "there", 0): 0.5, ("new", "there", 0): 0.75, ("old", "there", 1): 0.5,
    }  # fmt: skip
    result = paired(scores)
    assert result.estimate == Estimate(0.125, None, 1)
    assert (result.better, result.same, result.worse) == (1, 1, 0)
    assert result.missing == (
        "new, here, 1",
        "old, there, 1",
    )  # its own name; else that of the one left alone
    assert result.verdict == "one seed"


def test_without_pairs_the_verdict_gives_the_reason() -> None:
    assert compare_pairs([]) == PairedResult(None, 0, 0, 0)
    assert compare_pairs([]).verdict == "no pairs"
    assert compare_pairs([Pair({}, 0, None, "there")]).missing == ("there",)


def test_duplicate_observations_are_refused() -> None:
    twice = observations_of({("old", "here", 0): 0.5}, "old") * 2
    with pytest.raises(ValueError, match="old, here, 0"):
        match_pairs(twice, [], "how")


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1] * 5, "not significant"),  # the exact sign test: p = 1/16
        ([0.1] * 6, "better"),  # p = 1/32
        ([-0.1] * 6, "worse"),
        ([0.0, 0.0, 0.0], "not significant"),
        ([1e-12, 1e-12, 1e-12], "not significant"),  # what rounding adds
        ([0.0, 0.1, 0.2], "not significant"),  # 0.1 ± 0.248
        ([0.1, 0.12, 0.14], "better"),  # 0.12 ± 0.050
        ([0.1], "one seed"),
    ],
)
def test_a_difference_is_significant_if_its_interval_excludes_zero(
    differences: list[float], verdict: str
) -> None:
    pairs = [Pair({}, seed, value) for seed, value in enumerate(differences)]
    assert compare_pairs(pairs).verdict == verdict
    other = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert compare_pairs(pairs, lower=True).verdict == other


@pytest.mark.parametrize("seeds", [2, 3, 6, 40])
def test_differences_that_are_all_the_same_are_tested_by_their_signs(seeds: int) -> None:
    """Two methods that are equally good often differ by the same few questions on two seeds."""
    one = estimate([-0.05] * seeds)
    assert one is not None and one.p == pytest.approx(binomtest(0, seeds).pvalue)
    assert one.significant == (seeds >= 6)
    assert holm_significant([one, one]) == [seeds > 6] * 2  # 1/32 twice is 1/16
    zero = estimate([0.0] * seeds)
    assert zero is not None and zero.p == 1.0 and not zero.significant


@given(GRIDS, st.booleans())
def test_swapping_the_sides_changes_the_sign(scores: Scores, lower: bool) -> None:
    there, back = paired(scores, lower=lower), paired(scores, "old", "new", lower=lower)
    assert there.estimate is not None and back.estimate is not None
    assert near(back.estimate) == (-there.estimate.mean, there.estimate.half, 3)
    assert (there.better, there.same, there.worse) == (back.worse, back.same, back.better)
    other = {"better": "worse", "worse": "better"}
    assert back.verdict == other.get(there.verdict, there.verdict)


@given(GRIDS)
def test_if_lower_is_better_the_pair_counts_swap_and_the_mean_stays(scores: Scores) -> None:
    more, less = paired(scores), paired(scores, lower=True)
    assert more.estimate == less.estimate
    assert (more.better, more.same, more.worse) == (less.worse, less.same, less.better)


@given(GRIDS, st.sampled_from([-2.0, -0.25, 0.5, 4.0]))
def test_a_constant_added_to_all_changes_nothing(scores: Scores, more: float) -> None:
    moved = {key: value + more for key, value in scores.items() if value is not None}
    assert near(paired(moved).estimate) == paired(scores).estimate


@given(GRIDS, st.lists(NUMBERS, min_size=6, max_size=6))
def test_what_both_sides_share_cancels_out(scores: Scores, added: list[float]) -> None:
    shared = {
        (where, seed): added[3 * place + seed]
        for place, where in enumerate(("here", "there"))
        for seed in SEEDS
    }
    moved = {key: value + shared[key[1:]] for key, value in scores.items() if value is not None}
    assert near(paired(moved).estimate) == paired(scores).estimate


@given(GRIDS, st.randoms(use_true_random=False), st.sets(st.integers(0, 11), max_size=12))
def test_the_order_of_cells_does_not_matter(scores: Scores, draw: random.Random, gone: set[int]) -> None:
    kept = {key: None if place in gone else value for place, (key, value) in enumerate(scores.items())}
    items = list(kept.items())
    draw.shuffle(items)
    one, other = paired(kept), paired(dict(items))
    assert one._replace(missing=()) == other._replace(missing=())
    assert sorted(one.missing) == sorted(other.missing)


@given(GRIDS, st.sets(st.integers(0, 11), max_size=12))
def test_every_pair_is_counted_or_named(scores: Scores, gone: set[int]) -> None:
    kept = {key: None if place in gone else value for place, (key, value) in enumerate(scores.items())}
    result = paired(kept)
    assert len(result.missing) == len({place % 6 for place in gone})
    assert result.better + result.same + result.worse + len(result.missing) == 6
    left = {key[2] for place, key in enumerate(scores) if {place % 6, place % 6 + 6}.isdisjoint(gone)}
    assert (result.estimate.seeds if result.estimate else 0) == len(left)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=31))
def test_intervals_are_those_of_scipys_paired_test(rows: list[tuple[float, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores: dict[tuple[str, str, int], float | None] = {}
    for seed, (new, old) in enumerate(rows):
        scores |= {("new", "here", seed): new, ("old", "here", seed): old}
    result = paired(scores).estimate
    assert result is not None and result.half is not None
    if max(new - old for new, old in rows) - min(new - old for new, old in rows) < 1e-6:
        assert result.half == pytest.approx(0, abs=1e-4)  # where SciPy has no interval, for want of spread
        return
    low, high = stats.ttest_rel(*zip(*rows, strict=True)).confidence_interval(0.95)
    assert result.mean == pytest.approx((low + high) / 2, abs=1e-9)
    assert result.half == pytest.approx((high - low) / 2, rel=1e-3)


def test_the_half_width_of_an_interval_is_in_standard_deviations() -> None:
    """Of 0, 1, 2 the standard deviation is 1; of 0 and √2 too."""
    for values in ([0.0, 1.0, 2.0], [0.0, sqrt(2)]):
        result = estimate(values)
        assert result is not None and result.half == pytest.approx(interval_half_width(len(values)))
