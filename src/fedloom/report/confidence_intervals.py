"""Confidence intervals of shares of right answers and of their differences, p-values, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, cos, hypot, pi, sin, sqrt
from statistics import NormalDist

Z = 1.959964
"""97.5 % point of the standard normal distribution."""


def interval(share: float, count: float, z: float = Z) -> tuple[float, float]:
    """Return the Wilson confidence interval of a share; by default that of 95 %.

    Unlike mean ± z·s, it has a width even if all or none of the trials succeed.

    Args:
        share: Observed share of successes, in [0, 1].
        count: Number of trials, > 0.
        z: The point of the standard normal distribution that sets the level of confidence, > 0.

    Reference: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22 (1927).

    Example:
        >>> [round(end, 3) for end in interval(1.0, 100)], [round(end, 3) for end in interval(0.5, 100)]
        ([0.963, 1.0], [0.404, 0.596])
    """
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(max(share * (1 - share), 0.0) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def margin(first: float, second: float, count: float) -> float:
    """Return the smallest difference of two shares that is significant at the 5 % level.

    A difference is significant if Newcombe's interval excludes zero: a − b > √((a − l)² + (u − b)²), where l is the
    lower Wilson limit of the larger share a and u the upper Wilson limit of the smaller share b. The shares are taken as
    independent. Methods that answer the same questions agree more often than that, so the margin is conservative.

    Args:
        first: A share, in [0, 1].
        second: Another share, in [0, 1].
        count: Number of trials of each share, > 0.

    Reference: R. G. Newcombe, "Interval Estimation for the Difference between Independent Proportions: Comparison of
    Eleven Methods", Statistics in Medicine 17 (1998), method 10.

    Example:
        >>> round(margin(1.0, 1.0, 262), 3), round(margin(0.75, 0.75, 262), 3)
        (0.014, 0.074)
    """
    high, low = max(first, second), min(first, second)
    return hypot(high - interval(high, count)[0], interval(low, count)[1] - low)


def difference_interval(
    first: float, second: float, count: float, z: float = Z, correlation: float = 0.0
) -> tuple[float, float]:
    """Return Newcombe's confidence interval of the difference `first` − `second` of two shares; by default that of 95 %.

    Args:
        first: A share, in [0, 1].
        second: Another share, in [0, 1].
        count: Number of trials of each share, > 0.
        z: The point of the standard normal distribution that sets the level of confidence, > 0.
        correlation: The correlation of the two outcomes of a trial, in [−1, 1]; 0 for independent shares.

    Reference: R. G. Newcombe, "Improved Confidence Intervals for the Difference between Binomial Proportions Based on
    Paired Data", Statistics in Medicine 17 (1998), method 10 without the continuity correction of the correlation; with a
    correlation of 0 it is the interval for independent shares of `margin`.

    Example:
        >>> [round(end, 3) for end in difference_interval(1.0, 1.0, 16)]
        [-0.194, 0.194]
    """
    (low, high), (other_low, other_high) = interval(first, count, z), interval(second, count, z)
    difference = first - second
    below = _combined(first - low, other_high - second, correlation)
    return difference - below, difference + _combined(high - first, second - other_low, correlation)


def _combined(one: float, other: float, correlation: float) -> float:
    return sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))


def difference_p(first: float, second: float, count: float, correlation: float = 0.0) -> float:
    """Return the two-sided p-value of a difference of two shares.

    It is the smallest level 1 − c such that Newcombe's interval with confidence c excludes zero, found by bisection. The
    arguments are those of `difference_interval`.

    Example:
        >>> difference_p(0.5, 0.5, 100), round(difference_p(0.7, 0.5, 100), 3)
        (1.0, 0.004)
    """
    if first == second:
        return 1.0
    high, low = max(first, second), min(first, second)
    least, most = 0.0, 40.0
    for _ in range(60):
        middle = (least + most) / 2
        if difference_interval(high, low, count, middle, correlation)[0] > 0:
            least = middle
        else:
            most = middle
    return 2 * NormalDist().cdf(-least)


def t_p(t: float, freedom: int) -> float:
    """Return the two-sided p-value of Student's t with a whole number of degrees of freedom ≥ 1.

    Reference: M. Abramowitz and I. A. Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4.

    Example:
        >>> round(t_p(12.706, 1), 4), round(t_p(2.571, 5), 4), t_p(0.0, 3)
        (0.05, 0.05, 1.0)
    """
    angle = atan(abs(t) / sqrt(freedom))
    odd = freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for order in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (order - 1) / order
    inside = 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
    return min(max(1 - inside, 0.0), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order of the arguments.

    If those that are at most 0.05 are called significant, the chance of any false call among all of them is at most 5 %.

    Reference: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6
    (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min((len(order) - rank) * p_values[index], 1.0))
        adjusted[index] = largest
    return adjusted
