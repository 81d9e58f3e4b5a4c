"""What a grid says: every value of an axis against the first one, everything else equal.

Methods are an axis too, and so is each modifier, with a method that has it against the same method without it.
Each task has its own score, and scores of different tasks are never averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedloom.report.gain import main_score, task_scores
from fedloom.report.paired import Pair, Paired, Reading, compare, pairs
from fedloom.report.records import number
from fedloom.report.sweeps import SEED, CellRun, SweepRun
from fedloom.report.tables import MODIFIERS, federated
from fedloom.tasks.scoring import HEADLINES

LOWER = frozenset({"unparsed", "dropped", "unjudged"})
"""Scores of which less is better."""

WITH, WITHOUT = "with", "without"


class Measure(NamedTuple):
    """What a score measures: the task ("" where it was not recorded), and the score's name."""

    task: str
    metric: str


Kind = tuple[str, Measure]
"""A method and what is measured of it."""


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
    readings = _readings(sweep, method)
    names = [name for name in sweep.methods if federated(name)]
    looked_at = names or sweep.methods
    by_method = (method,) if len(looked_at) > 1 else ()
    kept = {
        measure: [one for one in several if one.factors[method] in looked_at]
        for measure, several in readings.items()
    }
    found = list[Factor]()
    for axis in settings:
        labels = tuple(dict.fromkeys(map(str, sweep.axes[axis])))
        others = tuple(other for other in settings if other != axis)
        found.append(Factor(axis, "axis", labels, labels[0], others + by_method, method, kept))
    if names and len(sweep.methods) > 1:
        reference = "fedavg" if "fedavg" in names else names[0]
        found.append(Factor(method, "method", tuple(sweep.methods), reference, settings, method, readings))
    for modifier in MODIFIERS:
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
    """Tell what has a modifier from what has not; either goes by the method's name without it."""

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


def _readings(sweep: SweepRun, method: str) -> dict[Measure, list[Reading]]:
    """Return all scores; a cell that is not done has those that it would have, without a value."""
    scores = [_scores(cell) for cell in sweep.cells]
    expected = _expected(sweep, scores)
    found: dict[Measure, list[Reading]] = {}
    for cell, known in zip(sweep.cells, scores, strict=True):
        shared = {axis: str(cell.values[axis]) for axis in sweep.settings}
        values = known or dict.fromkeys(expected(cell))
        for (name, measure), value in values.items():
            one = Reading(cell.name, {**shared, method: name}, cell.values.get(SEED), value)
            found.setdefault(measure, []).append(one)
    return found


def _scores(cell: CellRun) -> dict[Kind, float | None]:
    """Return the headline scores of a cell: one of each method, or one of each task of it."""
    if cell.result is None:
        return {}
    by_task = task_scores(cell.result)
    tasks = list(next(iter(by_task.values()), {}))
    if len(tasks) > 1:
        return {
            (method, Measure(task, HEADLINES.get(task, "accuracy"))): value
            for method, found in by_task.items()
            for task, value in found.items()
        }
    measure = Measure("".join(tasks), main_score(cell.result))
    return {(method, measure): number(found, measure.metric) for method, found in cell.scores.items()}


def _expected(
    sweep: SweepRun, scores: Sequence[Mapping[Kind, float | None]]
) -> Callable[[CellRun], list[Kind]]:
    """Return what a cell that is not done would have: what others have, whichever value they share with it."""
    seen: dict[tuple[str, str], set[Kind]] = {}
    for cell, known in zip(sweep.cells, scores, strict=True):
        for axis, value in cell.values.items():
            seen.setdefault((axis, str(value)), set()).update(known)
    every = list(dict.fromkeys(kind for known in scores for kind in known))

    def expected(cell: CellRun) -> list[Kind]:
        shared = [seen[axis, str(value)] for axis, value in cell.values.items()]
        return [kind for kind in every if all(kind in kinds for kinds in shared if kinds)]

    return expected


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
                    told = compare(some, lower=measure.metric in LOWER)
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
        "verdict": paired.verdict,
        "missing": list(paired.missing),
    }
