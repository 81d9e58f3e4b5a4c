"""Paired comparisons: whether one value of a factor beats another, everything else equal.

A reading is one score with everything it depends on. Two readings that agree in all factors but one, and in the
seed, make a pair. What pairs share cancels out in their difference; what is left is averaged over the pairs of
a seed first, so that the interval tells how much another seed would change the mean, and nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % points of Student's t distribution with 1, 2, … 30 degrees of freedom."""

ROUNDING = 1e-9
"""Differences of scores up to this are what floating-point numbers add, and count as none."""


class Fares(NamedTuple):
    """How many clients a model serves better, as well as, and worse than another, each on data like its own.

    Attributes:
        better: Clients that it serves better.
        same: Clients that it serves equally well, but for rounding.
        worse: Clients that it serves worse.
        unknown: Clients without a score to compare.
    """

    better: int = 0
    same: int = 0
    worse: int = 0
    unknown: int = 0

    @property
    def known(self) -> int:
        """How many clients can be compared."""
        return self.better + self.same + self.worse

    def __bool__(self) -> bool:
        return self.known > 0

    def plus(self, other: Fares) -> Fares:
        """Add the counts of two."""
        return Fares(*(one + more for one, more in zip(self, other, strict=True)))


def fares_of(differences: Iterable[float | None]) -> Fares:
    """Count clients by the sign of a difference for each of them.

    Example:
        >>> fares_of([0.5, -0.25, 1e-12, None])
        Fares(better=1, same=1, worse=1, unknown=1)
    """
    found = list(differences)
    known = [value for value in found if value is not None]
    above, below = sum(value > ROUNDING for value in known), sum(value < -ROUNDING for value in known)
    return Fares(above, len(known) - above - below, below, len(found) - len(known))


class Estimate(NamedTuple):
    """A mean over seeds, half the width of its 95 % interval (None from one seed), and how many seeds."""

    mean: float
    half: float | None
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether there is an interval and it leaves out zero."""
        return self.half is not None and abs(self.mean) > self.half + ROUNDING

    @property
    def alike(self) -> bool:
        """Whether all of several seeds gave the same value, so that the interval has no width."""
        return self.half is not None and self.half <= ROUNDING


class Reading(NamedTuple):
    """A score and what it depends on.

    Attributes:
        name: Where it was read, for whoever has to look for it.
        factors: Factor → value, without the seed.
        seed: What is averaged over; None where there is only one.
        value: The score, or None where there is none.
        clients: The same score for each client on data like its own; empty where unknown.
    """

    name: str
    factors: Mapping[str, str]
    seed: Hashable
    value: float | None
    clients: tuple[float | None, ...] = ()


class Pair(NamedTuple):
    """Two readings that differ in one factor only.

    Attributes:
        factors: What they have in common.
        seed: Likewise.
        difference: The first score minus the second; None where one is missing.
        missing: Where it is missing, or None.
        clients: How many clients fare better, the same and worse with the first, on data like their own.
    """

    factors: Mapping[str, str]
    seed: Hashable
    difference: float | None
    missing: str | None = None
    clients: Fares = Fares()


class Paired(NamedTuple):
    """What pairs say together.

    Attributes:
        estimate: Mean difference with its interval over seeds; None without any pair.
        better: In how many pairs the first reading is better.
        same: In how many both are equal, but for rounding.
        worse: In how many the second is better.
        missing: For each pair that had to be left out, where its score is missing.
        lower: Whether a lower score is better.
        clients: How many clients fare better, the same and worse with the first reading, each on data like its own;
            a client counts once for each pair.
    """

    estimate: Estimate | None
    better: int
    same: int
    worse: int
    missing: tuple[str, ...] = ()
    lower: bool = False
    clients: Fares = Fares()

    @property
    def verdict(self) -> str:
        """What may be said: "better" or "worse" where the interval leaves out zero, else why not."""
        if self.estimate is None:
            return "no pairs"
        if self.estimate.half is None:
            return "one seed"
        if not self.estimate.sure:
            return "not significant"
        return "better" if (self.estimate.mean > 0) != self.lower else "worse"


def reach(seeds: int) -> float:
    """Return half the width of a 95 % t-interval of `seeds` (≥ 2) values, in their standard deviations.

    Above 31 values the t point is that of 30 degrees of freedom, which is a little too wide.

    Example:
        >>> round(reach(2), 1), round(reach(3), 1), round(reach(10), 1)
        (9.0, 2.5, 0.7)
    """
    return T_975[min(seeds - 1, len(T_975)) - 1] / sqrt(seeds)


def estimate(values: Iterable[float]) -> Estimate | None:
    """Return mean and t-interval of independent values; None of none.

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
    half = reach(len(known)) * stdev(known) if len(known) > 1 else None
    return Estimate(fmean(known), half, len(known))


def pairs(ours: Iterable[Reading], theirs: Iterable[Reading], factor: str) -> list[Pair]:
    """Put together what differs in one factor only.

    Args:
        ours: Readings with one value of the factor.
        theirs: Readings with another value of it.
        factor: Its name.

    Returns:
        Our pairs in our order, then what only they have. A reading without a counterpart makes a pair with a
        missing score, named by the reading.

    Raises:
        ValueError: Two readings of one side agree in everything, so that they are no pair's.
    """
    first, second = _by_rest(ours, factor), _by_rest(theirs, factor)
    found = list[Pair]()
    for key in dict.fromkeys([*first, *second]):
        sides = [side[key] for side in (first, second) if key in side]
        rest = {name: value for name, value in sides[0].factors.items() if name != factor}
        values = [side.value for side in sides if side.value is not None]
        if len(values) == 2:
            found.append(Pair(rest, sides[0].seed, values[0] - values[1], clients=_fares(*sides)))
        else:
            missing = next((side.name for side in sides if side.value is None), sides[0].name)
            found.append(Pair(rest, sides[0].seed, None, missing))
    return found


def _fares(ours: Reading, theirs: Reading) -> Fares:
    if len(ours.clients) != len(theirs.clients):
        return Fares()
    together = zip(ours.clients, theirs.clients, strict=True)
    return fares_of(None if one is None or other is None else one - other for one, other in together)


def _by_rest(readings: Iterable[Reading], factor: str) -> dict[Hashable, Reading]:
    found = dict[Hashable, Reading]()
    for reading in readings:
        rest = frozenset(item for item in reading.factors.items() if item[0] != factor)
        if (rest, reading.seed) in found:
            raise ValueError(f"{reading.name}: there is another reading with the same factors and seed")
        found[rest, reading.seed] = reading
    return found


def compare(found: Iterable[Pair], *, lower: bool = False) -> Paired:
    """Average the differences of pairs, over the pairs of each seed and then over seeds.

    Args:
        found: The pairs. Those with a missing score are left out, and named.
        lower: Whether a lower score is better. The sign of the mean is that of the scores all the same.

    Example:
        >>> one = compare([Pair({}, 0, 0.25), Pair({}, 1, 0.75)])
        >>> one.estimate.mean, one.better, one.verdict
        (0.5, 2, 'not significant')
    """
    by_seed, missing, clients = dict[Hashable, list[float]](), list[str](), Fares()
    for pair in found:
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
    return Paired(mean, better, same, worse, tuple(missing), lower, clients)
