"""The (ε, δ) of Gaussian noise that was added to several releases of the same data: exact, without subsampling.

A release is a sum of contributions, each of norm at most C, to which noise N(0, (zC)² I) was added. Removing one contribution
changes the sum by at most C, so one release is the Gaussian mechanism with μ = 1/z. T releases, each of which may depend on
those before, compose exactly to one Gaussian mechanism:

    μ = √T / z
    δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)

with Φ the distribution function of the standard normal distribution. What is computed from the releases alone spends nothing.

References: J. Dong, A. Roth, W. J. Su, "Gaussian Differential Privacy", arXiv 1905.02383, Corollaries 2.13 and 3.3;
B. Balle, Y.-X. Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal
Denoising", arXiv 1805.06530, Theorem 8.
"""

from __future__ import annotations

from math import erfc, exp, inf, pi, sqrt

_LARGE = 25.0
"""From here on, the continued fraction of Mills' ratio has converged to the last bit with few terms."""


def composed(noise: float, releases: int) -> float:
    """Return the parameter μ of the one Gaussian mechanism to which several releases compose.

    Args:
        noise: Noise multiplier z ≥ 0: the standard deviation of the noise in units of the bound C; without noise μ is infinite.
        releases: Number of releases T ≥ 0.

    Example:
        >>> composed(2.0, 16), composed(1.0, 0)
        (2.0, 0.0)
    """
    if not releases:
        return 0.0
    return sqrt(releases) / noise if noise > 0 else inf


def delta_of(mu: float, epsilon: float) -> float:
    """Return the smallest δ for which a Gaussian mechanism is (ε, δ)-differentially private.

    Args:
        mu: The mechanism's parameter μ ≥ 0; infinite without noise.
        epsilon: ε ≥ 0.
    """
    if mu == 0:
        return 0.0
    if mu == inf:
        return 1.0
    above, below = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    # e^ε φ(below) = φ(above), so no factor overflows; for above > 0, both terms are multiples of φ(above).
    density = exp(-above * above / 2) / sqrt(2 * pi)
    first = density * _mills(above) if above > 0 else erfc(above / sqrt(2)) / 2
    return max(first - density * _mills(below), 0.0)


def epsilon_of(mu: float, delta: float) -> float:
    """Return the smallest ε ≥ 0 for which a Gaussian mechanism is (ε, δ)-differentially private; infinite without noise.

    Args:
        mu: The mechanism's parameter μ ≥ 0; infinite without noise.
        delta: δ, in (0, 1).

    Raises:
        ValueError: δ is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it must lie between 0 and 1")
    if mu == inf:
        return inf
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(mu, high) > delta:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if delta_of(mu, middle) > delta else (low, middle)
    return high


def _mills(x: float) -> float:
    """Return Mills' ratio Φ(−x) / φ(x) for x ≥ 0, without underflow."""
    if x < _LARGE:
        return erfc(x / sqrt(2)) / 2 * exp(x * x / 2) * sqrt(2 * pi)
    ratio = x
    for term in range(20, 0, -1):
        ratio = x + term / ratio
    return 1 / ratio
