"""The (ε, δ) of Gaussian noise: values worked out with other libraries, and laws of the exact account."""

from __future__ import annotations

from math import exp, inf, sqrt
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.algorithms.gaussian_privacy import composed, delta_of, epsilon_of

PHI = NormalDist().cdf


@pytest.mark.parametrize(
    ("noise", "releases", "delta", "epsilon"),
    [
        # dp-accounting 0.6.0: PLDAccountant(ADD_OR_REMOVE_ONE).compose(GaussianDpEvent(noise), releases), a pessimistic
        # estimate on a grid, whose error is below 1e-8.
        (1.0, 1, 1e-5, 4.37717810),
        (2.0, 1, 1e-5, 1.99309141),
        (1.0, 10, 1e-5, 17.85658683),
        (4.0, 100, 1e-6, 14.45077697),
        (0.5, 3, 1e-5, 20.12502355),
    ],
)
def test_epsilon_is_that_of_an_independent_accountant(
    noise: float, releases: int, delta: float, epsilon: float
) -> None:
    assert epsilon_of(composed(noise, releases), delta) == pytest.approx(epsilon, abs=2e-8)


@pytest.mark.parametrize(
    ("mu", "delta", "epsilon"),
    # The root of δ(ε) = δ with mpmath 1.4.1 at 60 digits; both terms of δ(ε) cancel or overflow in floating point here.
    [
        (0.01, 1e-12, 0.0607522106298),
        (0.1, 1e-8, 0.492850365355),
        (30.0, 1e-5, 577.011973688),
        (100.0, 1e-12, 5702.48201574),
    ],
)
def test_epsilon_is_exact_where_the_formula_cancels_or_overflows(
    mu: float, delta: float, epsilon: float
) -> None:
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-11)


@given(st.floats(0.2, 4), st.floats(0, 4))
def test_delta_is_balles_and_wangs_formula(mu: float, epsilon: float) -> None:
    plain = PHI(-epsilon / mu + mu / 2) - exp(epsilon) * PHI(-epsilon / mu - mu / 2)
    assert delta_of(mu, epsilon) == pytest.approx(plain, abs=1e-12)


@given(st.floats(0.05, 20), st.floats(1e-10, 0.5))
def test_epsilon_is_the_smallest_that_reaches_delta(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu, delta)
    assert delta_of(mu, epsilon) <= delta
    if epsilon > 0:
        assert delta_of(mu, epsilon * (1 - 1e-9)) > delta


@given(st.floats(0.1, 10), st.integers(1, 50), st.integers(1, 50))
def test_releases_compose_as_squares_add(noise: float, first: int, second: int) -> None:
    together = sqrt(composed(noise, first) ** 2 + composed(noise, second) ** 2)
    assert composed(noise, first + second) == pytest.approx(together)


def test_the_ends_of_the_scale() -> None:
    assert epsilon_of(composed(1.0, 0), 1e-5) == 0.0
    assert epsilon_of(composed(0.0, 1), 1e-5) == inf
    assert delta_of(inf, 3.0) == 1.0
    # At ε = 0, δ is the total variation distance of two normal distributions μ apart: 2 Φ(μ/2) − 1.
    assert delta_of(1.0, 0.0) == pytest.approx(2 * PHI(0.5) - 1)
    assert epsilon_of(1.0, 0.5) == 0.0
    for delta in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            epsilon_of(1.0, delta)
