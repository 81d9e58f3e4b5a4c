"""95 % confidence intervals of shares of right answers, and of their differences."""

from __future__ import annotations

from math import hypot, sqrt

Z = 1.959964
"""97.5 % point of the standard normal distribution."""


def interval(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % Wilson confidence interval of a share.

    Unlike mean ± z·s, it has a width even if all or none of the trials succeed.

    Args:
        share: Observed share of successes, in [0, 1].
        count: Number of trials, > 0.

    Reference: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22 (1927).

    Example:
        >>> [round(end, 3) for end in interval(1.0, 100)], [round(end, 3) for end in interval(0.5, 100)]
        ([0.963, 1.0], [0.404, 0.596])
    """
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * sqrt(max(share * (1 - share), 0.0) / count + Z * Z / (4 * count * count))
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
