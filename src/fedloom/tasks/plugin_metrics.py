"""Turn a plug-in's function of example and answer, or its `Metric`, into a metric whose mistakes are reported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite
from typing import Any

from fedloom.system.errors import UserError, client_failure
from fedloom.tasks import TASKS
from fedloom.tasks.metrics import collect, graded_row, mean
from fedloom.tasks.task import Answer, Metric, Rows, Scores
from fedloom.types import Example

RESERVED = (
    "tasks",
    "slices",
    "clients",
    "client_tasks",
    "best",
    "worst",
    "untrained",
    "unjudged",
    "accuracy_judged",
)
"""Names that a metric cannot have, since results use them for other values."""

Grade = Callable[[Example, Answer], float]


@cache
def reserved_names() -> frozenset[str]:
    """Return the names that fedloom's own scores and results use."""
    metrics = [metric for task in TASKS.values() for metric in (task.metrics, task.published.metrics)]
    names = {name for metric in metrics for name in (*metric.result(metric.zero), *metric.each(metric.zero))}
    return frozenset(names) | frozenset(RESERVED)


def plugin_metric(name: str, value: Any) -> Metric:
    """Return a metric that reports exceptions and impossible values as mistakes of the plug-in.

    Args:
        name: The score's name; it does not end in "_published".
        value: A function (example, answer) → 0..1, which is called for every parsed answer (an unparsed one gets 0), and
            whose mean is the score; or a `Metric` whose result has the score under this name.

    Raises:
        ValueError: The value is neither, or the name cannot be used.
    """
    if name.endswith("_published"):
        raise ValueError(
            'must have another name: names that end in "_published" belong to scores of published code'
        )
    if isinstance(value, Metric):
        try:
            empty: Any = value.result(value.zero)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"must have a result of no answers too, such as {{{name!r}: None}}; it fails: {client_failure(error)}"
            ) from error
        if not isinstance(empty, Mapping) or name not in empty:
            raise ValueError(f"must have a score named {name!r} in its result, also of no answers")
        return value._replace(add=_checked_add(name, value), result=_checked_result(name, value.result))
    if not callable(value):
        raise ValueError(
            f"must be a function (example, answer) that returns a number from 0 to 1, or a Metric, not a value of type "
            f"{type(value).__name__}"
        )
    try:
        inspect.signature(value).bind(None, None)
    except TypeError:
        raise ValueError("must take two arguments, the example and the answer") from None
    grade = graded_row(_checked_grade(name, value))

    def each(state: Rows) -> dict[str, list[float]]:
        return {name: [0.0 if row is None else row[0] for row in state]}

    return collect(grade, lambda state: {name: mean(each(state)[name])}, each, name)


def _checked_add(name: str, metric: Metric) -> Callable[..., Rows]:
    def checked(state: Rows, example: Example, *answer: Any) -> Rows:
        try:
            return metric.add(state, example, *answer)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"metric {name}: it fails for example {example.id!r}: {client_failure(error)}"
            ) from error

    return checked


def _checked_grade(name: str, grade: Callable[..., Any]) -> Grade:
    def checked(example: Example, answer: Answer) -> float:
        try:
            value = grade(example, answer)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"metric {name}: it fails for example {example.id!r}: {client_failure(error)}"
            ) from error
        return _fraction(value, f"metric {name}: for example {example.id!r}")

    return checked


def _checked_result(name: str, result: Callable[[Rows], Scores]) -> Callable[[Rows], Scores]:
    def checked(state: Rows) -> Scores:
        try:
            value = result(state)[name]
        except (Exception, SystemExit) as error:
            raise UserError(f"metric {name}: its result fails: {client_failure(error)}") from error
        return {name: None if value is None else _fraction(value, f"metric {name}")}

    return checked


def _fraction(value: Any, where: str) -> float:
    """Return a number from 0 to 1 as a float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where} it is {value!r}; it must be a number from 0 to 1") from None
    if not (isfinite(number) and 0 <= number <= 1):
        raise UserError(f"{where} it is {value!r}; it must be a number from 0 to 1")
    return number
