"""What a grid says: every value of an axis against the first one, everything else equal.

Methods are an axis too, and so is each modifier, with a method that has it against the same method without it.
Each task has its own score, and scores of different tasks are never averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.algorithms import COMPARED
from fedloom.report.paired_tests import Pair, Paired, Reading, compare, pairs
from fedloom.report.sweeps.paired_scores import Measure, readings_of
from fedloom.report.sweeps.sweep_results import SweepRun
from fedloom.report.tables import federated

WITH, WITHOUT = "with", "without"


@dataclass(frozen=True)
class Factor:
    """Something that varies in a sweep while all else stays equal.

    Attributes:
        name: Its name; no axis but itself has it.
        kind: "axis", "method" or "modifier".
        values: All its values.
        reference: The one that the others are compared with.
        others: The factors by whose values its comparisons are also told.
        methods: The name that methods have as a factor.
        readings: What is measured → readings; the factor is one of what they depend on.
    """

    name: str
    kind: str
    values: tuple[str, ...]
    reference: str
    others: tuple[str, ...]
    methods: str
    readings: Mapping[Measure, Sequence[Reading]]


@dataclass(frozen=True)
class Comparison:
    """A value of a factor against the reference.

    Attributes:
        factor: What is compared.
        value: Its value.
        measure: By which score.
        by: Another factor and the one value of it that is looked at; None where all are.
        found: What the pairs say; differences are value minus reference.
    """

    factor: Factor
    value: str
    measure: Measure
    by: tuple[str, str] | None
    found: Paired


def comparisons(sweep: SweepRun) -> list[Comparison]:
    """Compare along every axis but the seed, along methods, and along modifiers.

    Along an axis, only federated methods are looked at, where there are any: what an axis does to training
    alone is another question. A factor whose values have no score in common, as different tasks, has none.
    """
    return [one for factor in factors(sweep) for one in _of_factor(factor)]


def factors(sweep: SweepRun) -> list[Factor]:
    """Return the axes with several values, then methods, then modifiers."""
    method, settings = _free("method", sweep), _varying(sweep)
    readings = readings_of(sweep, method)
    names = [name for name in sweep.methods if federated(name)]
    looked_at = names or sweep.methods
    by_method = (method,) if len(looked_at) > 1 else ()
    kept = {  # the clients of one value of an axis need not be those of another
        measure: [one._replace(clients=()) for one in several if one.factors[method] in looked_at]
        for measure, several in readings.items()
    }
    found = list[Factor]()
    for axis in settings:
        labels = tuple(dict.fromkeys(map(str, sweep.axes[axis])))
        others = tuple(other for other in settings if other != axis)
        found.append(Factor(axis, "axis", labels, labels[0], others + by_method, method, kept))
    if names and len(sweep.methods) > 1:
        reference = COMPARED if COMPARED in names else names[0]
        found.append(Factor(method, "method", tuple(sweep.methods), reference, settings, method, readings))
    for modifier in dict.fromkeys(part for name in sweep.methods for part in name.split("+")[1:]):
        plain = {name: _without(name, modifier) for name in sweep.methods}
        plain = {name: other for name, other in plain.items() if other != name and other in plain}
        if plain:
            name = _free(f"+{modifier}", sweep)
            varied = _vary(readings, name, method, plain)
            others = settings + ((method,) if len(plain) > 1 else ())
            found.append(Factor(name, "modifier", (WITHOUT, WITH), WITHOUT, others, method, varied))
    return found


def _varying(sweep: SweepRun) -> tuple[str, ...]:
    return tuple(axis for axis in sweep.settings if len(sweep.axes[axis]) > 1)


def _free(name: str, sweep: SweepRun) -> str:
    """Return a name that no axis has."""
    while name in sweep.axes:
        name += "_"
    return name


def _without(method: str, modifier: str) -> str:
    return "+".join(part for part in method.split("+") if part != modifier)


def _vary(
    readings: Mapping[Measure, Sequence[Reading]], name: str, method: str, plain: Mapping[str, str]
) -> dict[Measure, list[Reading]]:
    """Separate readings with a modifier from those without; both go by the method's name without it."""

    def varied(one: Reading, value: str) -> Reading:
        shared = {**one.factors, method: plain.get(one.factors[method], one.factors[method])}
        return one._replace(factors={**shared, name: value})

    return {
        measure: [
            varied(one, WITH if one.factors[method] in plain else WITHOUT)
            for one in several
            if one.factors[method] in {*plain, *plain.values()}
        ]
        for measure, several in readings.items()
    }


def _of_factor(factor: Factor) -> Iterator[Comparison]:
    for measure, readings in factor.readings.items():
        sides = {
            value: [one for one in readings if one.factors[factor.name] == value] for value in factor.values
        }
        theirs = sides.pop(factor.reference)
        for value, ours in sides.items():
            if ours and theirs:
                found = pairs(ours, theirs, factor.name)
                for by, some in _parts(found, factor.others):
                    told = compare(some, lower=measure.lower)
                    yield Comparison(factor, value, measure, by, told)


def _parts(
    found: Sequence[Pair], others: Iterable[str]
) -> Iterator[tuple[tuple[str, str] | None, Sequence[Pair]]]:
    """Yield all pairs, then those with each value of each other factor that has several."""
    yield None, found
    for other in others:
        values = list(dict.fromkeys(pair.factors[other] for pair in found))
        for value in values if len(values) > 1 else ():
            yield (other, value), [pair for pair in found if pair.factors[other] == value]


def as_json(one: Comparison) -> dict[str, Any]:
    """Return a comparison for `result.json`; "mean" and "half" are fractions as all scores there."""
    paired = one.found
    mean, half, seeds = paired.estimate or (None, None, 0)
    return {
        "factor": one.factor.name,
        "value": one.value,
        "reference": one.factor.reference,
        "task": one.measure.task,
        "metric": one.measure.metric,
        "by": None if one.by is None else {"factor": one.by[0], "value": one.by[1]},
        "mean": mean,
        "half": half,
        "seeds": seeds,
        "better": paired.better,
        "same": paired.same,
        "worse": paired.worse,
        "clients": paired.clients._asdict() if paired.clients else None,
        "verdict": paired.verdict,
        "missing": list(paired.missing),
    }
