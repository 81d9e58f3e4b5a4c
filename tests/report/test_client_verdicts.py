"""Verdicts for single clients, worked by hand and against scipy and statsmodels' definitions."""

from __future__ import annotations

from math import hypot

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedloom.report.client_verdicts import bottom_fifth, verdict_on, verdicts
from fedloom.report.confidence_intervals import difference_interval, difference_p, holm, interval, t_p
from fedloom.report.verdict_tables import client_gain_tables, verdict_tables

SHARES = st.integers(0, 50).map(lambda right: right / 50)


def result_of(alone, ours, questions=None, task="choice"):
    def scores(values):
        by_task = [{} if value is None else {task: value} for value in values]
        return {"tasks": {task: {}}, "clients": list(values), "client_tasks": by_task}

    value = {"scores": {"local": scores(alone), "fedavg": scores(ours)}}
    if questions is not None:
        of_clients = [{task: questions} for _ in alone]
        value["independent_questions"] = {
            "test": {task: questions},
            "own": {task: questions},
            "clients": of_clients,
        }
    return value


def test_a_verdict_by_hand():
    """Gains .2, -.1, 0 and .3 of four clients: mean .1; a fifth of four clients is one, which loses .1."""
    verdict = verdict_on(result_of([0.5, 0.5, 0.5, 0.5, 0.5], [0.7, 0.4, 0.5, 0.8, None]), "fedavg")
    assert verdict is not None
    assert verdict.mean == pytest.approx(0.1)
    assert verdict.counts == (2, 1, 1, 1)
    assert verdict.bottom_fifth == pytest.approx(-0.1) == verdict.worst.points
    assert verdict.worst.client == 1
    assert verdict.interval is None and verdict.gained is None


@pytest.mark.parametrize("noise", [1e-12, -1e-12, 0.0004, -0.0004])
def test_a_gain_that_is_written_as_zero_neither_helps_nor_hurts(noise):
    verdict = verdict_on(result_of([0.5], [0.5 + noise]), "fedavg")
    assert verdict is not None and verdict.counts == (0, 1, 0, 0)


def test_a_gain_that_is_not_written_as_zero_counts():
    verdict = verdict_on(result_of([0.5, 0.5], [0.5006, 0.4994]), "fedavg")
    assert verdict is not None and verdict.counts[:3] == (1, 0, 1)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_the_bottom_fifth_is_between_the_worst_and_the_mean(gains):
    rounding = 1e-9
    assert min(gains) - rounding <= bottom_fifth(gains) <= sum(gains) / len(gains) + rounding


def test_two_perfect_models_have_an_interval_of_positive_width_and_no_significant_gain():
    verdict = verdict_on(result_of([1.0, 1.0], [1.0, 1.0], 16.0), "fedavg")
    assert verdict is not None and verdict.interval is not None
    low, high = verdict.interval
    assert low < 0 < high and verdict.gained == () == verdict.lost


def test_significance_is_corrected_for_the_number_of_clients():
    """A difference with p = .02 is significant for a client alone and not for each of three."""
    alone, ours = 0.5, 0.66
    assert 0.017 < difference_p(ours, alone, 100) < 0.05
    one = verdict_on(result_of([alone], [ours], 100.0), "fedavg")
    three = verdict_on(result_of([alone] * 3, [ours, alone, alone], 100.0), "fedavg")
    assert one is not None and one.gained == (0,)
    assert three is not None and three.gained == ()
    assert three.gains[0].interval == one.gains[0].interval  # intervals are those of one client


def test_captions_have_no_interval_of_a_share():
    (verdict,) = verdicts(result_of([0.5, 0.5], [0.7, 1.4], 100.0, "caption"), "caption")
    assert verdict.interval is None and verdict.gained is None and verdict.mean == pytest.approx(0.55)


def test_tables_show_both_scores_and_mark_what_is_significant():
    result = result_of([0.5, 0.5], [0.9, 0.5], 100.0)
    ((_, table),) = verdict_tables(result, ["Oslo", "Rome"])
    shown = dict(zip(table.columns, table.rows[1], strict=True))
    assert (shown["Own data"], shown["Better"], shown["Same"], shown["Worse"]) == ("70.0", "1", "1", "0")
    assert shown["Worst client"] == "0.0 (Rome)" and shown["Significant"] == "1 / 0"
    ((_, clients),) = client_gain_tables(result, ["Oslo", "Rome"])
    assert clients.rows[0][:3] == ("Oslo", "100", "50.0") and clients.rows[0][3].endswith("*")
    assert not clients.rows[1][3].endswith("*")


# ---- intervals and p-values --------------------------------------------------------------------------


def test_the_interval_of_a_difference_is_newcombes():
    """Method 10 of his Table II for equal counts, from Wilson's limits as scipy computes them."""
    first, second = (stats.binomtest(right, 80).proportion_ci(0.95, method="wilson") for right in (56, 48))
    low = 0.1 - hypot(0.7 - first.low, second.high - 0.6)
    high = 0.1 + hypot(first.high - 0.7, 0.6 - second.low)
    assert difference_interval(0.7, 0.6, 80) == pytest.approx((low, high), abs=1e-6)


@given(SHARES, SHARES)
def test_a_p_value_and_an_interval_agree(first, second):
    low, high = difference_interval(first, second, 50)
    p = difference_p(first, second, 50)
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (low > 0 or high < 0)
    assert difference_p(second, first, 50) == p


@given(st.floats(-50, 50), st.integers(1, 60))
def test_t_is_scipys(t, freedom):
    assert t_p(t, freedom) == pytest.approx(
        2 * stats.t.sf(abs(t), freedom), abs=1e-9
    )  # scipy's own is only as exact as that near 0


def test_holm_by_hand():
    """Holm's steps for .01, .04, .03: 3 x .01, 2 x .03, and .04, which may not be below the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.7, 0.7]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_no_correction_and_bonferronis(values):
    for raw, adjusted in zip(values, holm(values), strict=True):
        assert raw <= adjusted <= min(len(values) * raw, 1.0) + 1e-12


@given(SHARES, st.integers(1, 500))
def test_a_higher_level_of_confidence_gives_a_wider_interval(share, count):
    (low, high), (lower, higher) = interval(share, count), interval(share, count, 2.576)
    assert lower <= low + 1e-12 and high <= higher + 1e-12
