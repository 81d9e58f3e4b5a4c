"""Paired comparisons of two values of a factor, with all other factors and the seed equal.

An observation is a score with the factors and the seed that it depends on. Two observations with the same seed that
differ in one factor only are a pair. Effects that both share cancel in their difference. Differences are averaged over
the pairs of a seed first, so that the interval shows the variation between seeds and nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from fedloom.report.confidence_intervals import holm, t_p

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % points of Student's t distribution with 1, 2, … 30 degrees of freedom."""

ROUNDING = 1e-9
"""Differences of scores up to this one are rounding errors and count as zero."""


SAME = 0.0005
"""A client whose scores differ by less than this, 0.05 points, is equally well off; tables write it as 0.0."""


class ClientCounts(NamedTuple):
    """Numbers of clients that are better off or worse off with one model than with another, each on data like its own.

    Attributes:
        better: Clients that are better off.
        same: Clients that are equally well off: their scores differ by less than `SAME`.
        worse: Clients that are worse off.
        unknown: Clients without a score to compare.
    """

    better: int = 0
    same: int = 0
    worse: int = 0
    unknown: int = 0

    @property
    def known(self) -> int:
        """Number of clients that can be compared."""
        return self.better + self.same + self.worse

    def __bool__(self) -> bool:
        return self.known > 0

    def plus(self, other: ClientCounts) -> ClientCounts:
        """Add the counts of another comparison."""
        return ClientCounts(*(one + more for one, more in zip(self, other, strict=True)))


def count_by_sign(differences: Iterable[float | None], same: float = SAME) -> ClientCounts:
    """Count clients by the sign of their differences; a difference below `same` has none.

    Example:
        >>> count_by_sign([0.5, -0.25, 1e-12, None])
        ClientCounts(better=1, same=1, worse=1, unknown=1)
    """
    values = list(differences)
    known = [value for value in values if value is not None]
    above, below = sum(value >= same for value in known), sum(value <= -same for value in known)
    return ClientCounts(above, len(known) - above - below, below, len(values) - len(known))


class Estimate(NamedTuple):
    """A mean over seeds, half the width of its 95 % interval (None for one seed), and the number of seeds."""

    mean: float
    half: float | None
    seeds: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero; if all seeds gave the same value, whether `p` is at most 5 %."""
        if self.half is None or (self.all_equal and (self.p or 0.0) > 0.05):
            return False
        return abs(self.mean) > self.half + ROUNDING

    @property
    def all_equal(self) -> bool:
        """Whether all of several seeds gave the same value, so that the interval has zero width."""
        return self.half is not None and self.half <= ROUNDING

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of the interval of a score: at least 0 and, of a mean up to 1, at most 1, since only CIDEr may exceed it.

        None for one seed, and for seeds that all gave the same value.
        """
        if self.half is None or self.all_equal:
            return None
        most = 1.0 if self.mean <= 1 else float("inf")
        return max(self.mean - self.half, 0.0), min(self.mean + self.half, most)

    @property
    def p(self) -> float | None:
        """The two-sided p-value of the t-test that the mean is zero; None for one seed.

        Values that are all the same have no spread that a t-test could use, and on a small test set that often is chance. Of
        them, it is the p-value of the exact sign test, 2^(1 − n) for n seeds.
        """
        if self.half is None:
            return None
        if self.all_equal:
            return 1.0 if abs(self.mean) <= ROUNDING else 2.0 ** (1 - self.seeds)
        error = self.half / T_975[min(self.seeds - 1, len(T_975)) - 1]
        return t_p(self.mean / error, self.seeds - 1)


def holm_significant(estimates: Sequence[Estimate | None]) -> list[bool]:
    """Return which estimates are significant at 5 % after Holm's correction over all of them."""
    known = [k for k, value in enumerate(estimates) if value is not None and value.p is not None]
    adjusted = holm([p for k in known if (value := estimates[k]) is not None and (p := value.p) is not None])
    clear = {k for k, p in zip(known, adjusted, strict=True) if p <= 0.05}
    return [k in clear for k in range(len(estimates))]


class Observation(NamedTuple):
    """A score with the factors and the seed that it depends on.

    Attributes:
        name: The source of the score, for messages.
        factors: Factor → value, without the seed.
        seed: The seed; None if there is only one.
        value: The score, or None if it is missing.
        clients: The same score for each client on data like its own; empty if unknown.
    """

    name: str
    factors: Mapping[str, str]
    seed: Hashable
    value: float | None
    clients: tuple[float | None, ...] = ()


class Pair(NamedTuple):
    """Two observations that differ in one factor only.

    Attributes:
        factors: The factors that they have in common.
        seed: The seed that they have in common.
        difference: The first score minus the second; None if one is missing.
        missing: The source of the missing score, or None.
        clients: Numbers of clients that are better off and worse off with the first, on data like their own.
    """

    factors: Mapping[str, str]
    seed: Hashable
    difference: float | None
    missing: str | None = None
    clients: ClientCounts = ClientCounts()


class PairedResult(NamedTuple):
    """The result of a paired comparison.

    Attributes:
        estimate: Mean difference with its interval over seeds; None without any pair.
        better: Number of pairs in which the first observation is better.
        same: Number of pairs in which both are equal, up to rounding.
        worse: Number of pairs in which the second observation is better.
        missing: The source of the missing score, for each pair that was left out.
        lower: Whether a lower score is better.
        clients: Numbers of clients that are better off and worse off with the first observation, each on data like its
            own; a client counts once for each pair.
    """

    estimate: Estimate | None
    better: int
    same: int
    worse: int
    missing: tuple[str, ...] = ()
    lower: bool = False
    clients: ClientCounts = ClientCounts()

    @property
    def verdict(self) -> str:
        """The word "better" or "worse" if the difference is significant, else the reason why it is not."""
        if self.estimate is None:
            return "no pairs"
        if self.estimate.half is None:
            return "one seed"
        if not self.estimate.significant:
            return "not significant"
        return "better" if (self.estimate.mean > 0) != self.lower else "worse"


def interval_half_width(seeds: int) -> float:
    """Return half the width of a 95 % t-interval of `seeds` (≥ 2) values, in units of their standard deviation.

    For more than 31 values the t point is that of 30 degrees of freedom, so the interval is slightly too wide.

    Example:
        >>> round(interval_half_width(2), 1), round(interval_half_width(3), 1), round(interval_half_width(10), 1)
        (9.0, 2.5, 0.7)
    """
    return T_975[min(seeds - 1, len(T_975)) - 1] / sqrt(seeds)


def estimate(values: Iterable[float]) -> Estimate | None:
    """Return the mean and t-interval of independent values; None without values.

    The interval is mean ± t · s / √n with the sample standard deviation s and the 97.5 % point t of Student's
    distribution with n − 1 degrees of freedom.

    Reference: Student, "The Probable Error of a Mean", Biometrika 6 (1908).

    Example:
        >>> print(estimate([0.5]), estimate([]))
        Estimate(mean=0.5, half=None, seeds=1) None
    """
    known = list(values)
    if not known:
        return None
    half = interval_half_width(len(known)) * stdev(known) if len(known) > 1 else None
    return Estimate(fmean(known), half, len(known))


def match_pairs(ours: Iterable[Observation], theirs: Iterable[Observation], factor: str) -> list[Pair]:
    """Match observations that differ in one factor only.

    Args:
        ours: Observations with one value of the factor.
        theirs: Observations with another value of it.
        factor: The name of the factor.

    Returns:
        The pairs in the order of `ours`, then those of `theirs` alone. An observation without a counterpart gives a pair
        with a missing score, named after the observation.

    Raises:
        ValueError: Two observations of one side have the same factors and seed.
    """
    first, second = _by_other_factors(ours, factor), _by_other_factors(theirs, factor)
    result = list[Pair]()
    for key in dict.fromkeys([*first, *second]):
        sides = [side[key] for side in (first, second) if key in side]
        factors = {name: value for name, value in sides[0].factors.items() if name != factor}
        values = [side.value for side in sides if side.value is not None]
        if len(values) == 2:
            result.append(
                Pair(factors, sides[0].seed, values[0] - values[1], clients=_compare_clients(*sides))
            )
        else:
            missing = next((side.name for side in sides if side.value is None), sides[0].name)
            result.append(Pair(factors, sides[0].seed, None, missing))
    return result


def _compare_clients(ours: Observation, theirs: Observation) -> ClientCounts:
    if len(ours.clients) != len(theirs.clients):
        return ClientCounts()
    together = zip(ours.clients, theirs.clients, strict=True)
    return count_by_sign(None if one is None or other is None else one - other for one, other in together)


def _by_other_factors(observations: Iterable[Observation], factor: str) -> dict[Hashable, Observation]:
    result = dict[Hashable, Observation]()
    for observation in observations:
        factors = frozenset(item for item in observation.factors.items() if item[0] != factor)
        if (factors, observation.seed) in result:
            raise ValueError(
                f"{observation.name}: there is another observation with the same factors and seed"
            )
        result[factors, observation.seed] = observation
    return result


def compare_pairs(pairs: Iterable[Pair], *, lower: bool = False) -> PairedResult:
    """Average the differences of pairs, over the pairs of each seed and then over seeds.

    Args:
        pairs: The pairs. Those with a missing score are left out and listed in `missing`.
        lower: Whether a lower score is better. It does not change the sign of the mean.

    Example:
        >>> result = compare_pairs([Pair({}, 0, 0.25), Pair({}, 1, 0.75)])
        >>> result.estimate.mean, result.better, result.verdict
        (0.5, 2, 'not significant')
    """
    by_seed, missing, clients = dict[Hashable, list[float]](), list[str](), ClientCounts()
    for pair in pairs:
        clients = clients.plus(pair.clients)
        if pair.difference is None:
            missing.append(str(pair.missing))
        else:
            by_seed.setdefault(pair.seed, []).append(pair.difference)
    known = [value for values in by_seed.values() for value in values]
    above, below = sum(value > ROUNDING for value in known), sum(value < -ROUNDING for value in known)
    better, worse = (below, above) if lower else (above, below)
    same = len(known) - above - below
    mean = estimate(fmean(values) for values in by_seed.values())
    return PairedResult(mean, better, same, worse, tuple(missing), lower, clients)
