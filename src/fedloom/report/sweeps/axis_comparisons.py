"""Paired comparisons of a sweep: each value of an axis with the first one, with everything else equal.

Methods are compared in the same way, and so is each part: a method with the part against the same method without it.
Each task has its own score, and scores of different tasks are never averaged. A shared model is compared with a shared model, on the
global test set; a client's own model with what the same client has otherwise, on data like its own. Both comparisons stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedloom.algorithms import COMPARED
from fedloom.report.confidence_intervals import holm
from fedloom.report.significance import Observation, Pair, PairedResult, compare_pairs, match_pairs
from fedloom.report.sweeps.observations import Measure, observations_of
from fedloom.report.sweeps.sweep_results import SweepRun
from fedloom.report.tables import is_federated

WITH, WITHOUT = "with", "without"


@dataclass(frozen=True)
class Factor:
    """A factor of a sweep: an axis, the methods, or a part of methods.

    Attributes:
        name: Its name, which no other axis has.
        kind: "axis", "method" or "part".
        values: All its values.
        reference: The value that the others are compared with.
        others: The factors by whose values its comparisons are also split.
        method_factor: The name of the factor that holds the method.
        observations: Measure → observations, with this factor among their factors.
    """

    name: str
    kind: str
    values: tuple[str, ...]
    reference: str
    others: tuple[str, ...]
    method_factor: str
    observations: Mapping[Measure, Sequence[Observation]]


@dataclass(frozen=True)
class Comparison:
    """A comparison of a factor's value with its reference.

    Attributes:
        factor: The factor.
        value: The value that is compared.
        measure: The score that is compared.
        by: Another factor and its value to which the pairs are restricted; None for all pairs.
        result: The result; differences are value minus reference.
        p: The p-value of the difference, adjusted for all comparisons of its table: those of the factor over all pairs, or
            those split by the same other factor. None for one seed.
    """

    factor: Factor
    value: str
    measure: Measure
    by: tuple[str, str] | None
    result: PairedResult
    p: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at 5 % after Holm's correction."""
        return self.p is not None and self.p <= 0.05

    @property
    def verdict(self) -> str:
        """The verdict of the result; "not significant" if it does not withstand the correction."""
        verdict = self.result.verdict
        return "not significant" if verdict in ("better", "worse") and not self.significant else verdict


def comparisons(sweep: SweepRun) -> list[Comparison]:
    """Compare the values of every axis but the seed, the methods, and methods with and without each part.

    Along an axis only federated methods are compared, if there are any. A factor whose values have no score in common,
    such as different tasks, has no comparisons.
    """
    return [
        comparison for factor in factors(sweep) for comparison in _corrected(list(_compare_factor(factor)))
    ]


def _corrected(compared: Sequence[Comparison]) -> list[Comparison]:
    """Adjust the p-values of a factor's comparisons, those of each of its tables together."""
    table_of = [None if comparison.by is None else comparison.by[0] for comparison in compared]
    raw = [comparison.result.estimate and comparison.result.estimate.p for comparison in compared]
    result = list(compared)
    for table in dict.fromkeys(table_of):
        places = [k for k, own in enumerate(table_of) if own == table and raw[k] is not None]
        adjusted = holm([value for k in places if (value := raw[k]) is not None])
        for k, p in zip(places, adjusted, strict=True):
            result[k] = replace(compared[k], p=p)
    return result


def factors(sweep: SweepRun) -> list[Factor]:
    """Return the axes with several values, then the methods, then the parts."""
    method, settings = _free("method", sweep), _varying(sweep)
    observations = observations_of(sweep, method)
    names = [name for name in sweep.methods if is_federated(name)]
    compared_methods = names or sweep.methods
    by_method = (method,) if len(compared_methods) > 1 else ()
    compared = {  # clients are left out: those of one value of an axis need not be those of another
        measure: [
            observation._replace(clients=())
            for observation in group
            if observation.factors[method] in compared_methods
        ]
        for measure, group in observations.items()
    }
    result = list[Factor]()
    for axis in settings:
        labels = tuple(dict.fromkeys(map(str, sweep.axes[axis])))
        others = tuple(other for other in settings if other != axis)
        result.append(Factor(axis, "axis", labels, labels[0], others + by_method, method, compared))
    if names and len(sweep.methods) > 1:
        reference = COMPARED if COMPARED in names else names[0]
        result.append(
            Factor(method, "method", tuple(sweep.methods), reference, settings, method, observations)
        )
    for part in dict.fromkeys(piece for name in sweep.methods for piece in name.split("+")[1:]):
        plain = {name: _without(name, part) for name in sweep.methods}
        plain = {name: other for name, other in plain.items() if other != name and other in plain}
        if plain:
            name = _free(f"+{part}", sweep)
            varied = _vary(observations, name, method, plain)
            others = settings + ((method,) if len(plain) > 1 else ())
            result.append(Factor(name, "part", (WITHOUT, WITH), WITHOUT, others, method, varied))
    return result


def _varying(sweep: SweepRun) -> tuple[str, ...]:
    return tuple(axis for axis in sweep.settings if len(sweep.axes[axis]) > 1)


def _free(name: str, sweep: SweepRun) -> str:
    """Append underscores to a name until no axis has it."""
    while name in sweep.axes:
        name += "_"
    return name


def _without(method: str, dropped: str) -> str:
    return "+".join(part for part in method.split("+") if part != dropped)


def _vary(
    observations: Mapping[Measure, Sequence[Observation]], name: str, method: str, plain: Mapping[str, str]
) -> dict[Measure, list[Observation]]:
    """Add a factor for a part to observations, whose method is then named without the part."""

    def varied(observation: Observation, value: str) -> Observation:
        shared = {
            **observation.factors,
            method: plain.get(observation.factors[method], observation.factors[method]),
        }
        return observation._replace(factors={**shared, name: value})

    return {
        measure: [
            varied(observation, WITH if observation.factors[method] in plain else WITHOUT)
            for observation in group
            if observation.factors[method] in {*plain, *plain.values()}
        ]
        for measure, group in observations.items()
    }


def _compare_factor(factor: Factor) -> Iterator[Comparison]:
    for measure, observations in factor.observations.items():
        sides = {
            value: [observation for observation in observations if observation.factors[factor.name] == value]
            for value in factor.values
        }
        theirs = sides.pop(factor.reference)
        for value, ours in sides.items():
            if ours and theirs:
                pairs = match_pairs(ours, theirs, factor.name)
                for by, subset in _splits(pairs, factor.others):
                    result = compare_pairs(subset, lower=measure.lower)
                    yield Comparison(factor, value, measure, by, result)


def _splits(
    pairs: Sequence[Pair], others: Iterable[str]
) -> Iterator[tuple[tuple[str, str] | None, Sequence[Pair]]]:
    """Yield all pairs, then the pairs with each value of each other factor that has several values."""
    yield None, pairs
    for other in others:
        values = list(dict.fromkeys(pair.factors[other] for pair in pairs))
        for value in values if len(values) > 1 else ():
            yield (other, value), [pair for pair in pairs if pair.factors[other] == value]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison for `result.json`; "mean" and "half" are fractions."""
    paired = comparison.result
    mean, half, seeds = paired.estimate or (None, None, 0)
    return {
        "factor": comparison.factor.name,
        "value": comparison.value,
        "reference": comparison.factor.reference,
        "task": comparison.measure.task,
        "metric": comparison.measure.metric,
        "on": "own data" if comparison.measure.own else "global test",
        "by": None if comparison.by is None else {"factor": comparison.by[0], "value": comparison.by[1]},
        "mean": mean,
        "half": half,
        "seeds": seeds,
        "better": paired.better,
        "same": paired.same,
        "worse": paired.worse,
        "clients": paired.clients._asdict() if paired.clients else None,
        "p": comparison.p,
        "verdict": comparison.verdict,
        "missing": list(paired.missing),
    }
