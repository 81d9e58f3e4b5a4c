"""Compose an algorithm and its parts by name, with the arguments that an experiment sets for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from math import isfinite
from typing import Any, cast

import torch

from fedloom.algorithms import ENTRIES, SERVERS
from fedloom.algorithms.algorithm import (
    EVERYTHING,
    Budget,
    FederatedAlgorithm,
    TooFew,
    with_aggregate,
    with_rule,
)
from fedloom.algorithms.entry import Entry
from fedloom.config.validation_errors import unknown_name
from fedloom.params import Layout, Params
from fedloom.system.errors import UserError
from fedloom.wire.messages import Update


@cache
def any_layout(rank: int | None) -> Layout:
    """Return a layout with which arguments can be checked before a model is loaded.

    Args:
        rank: Rank of the LoRA factors, ≥ 1; None where only the connector is trained.

    Example:
        >>> any_layout(2).size, any_layout(None).names
        (1024, ('connector/w',))
    """
    if rank is None:
        return Layout.of({"connector/w": (1,)})
    shapes = {"lora_a": (rank, 1), "lora_b": (1, rank)}
    return Layout.of(
        {f"llm/layers.{layer}.q:{name}": shape for layer in range(256) for name, shape in shapes.items()}
    )


ANY_LAYOUT = any_layout(8)

CONFLICTS: Sequence[tuple[str, str, str]] = (
    ("own aggregate", "kind aggregate", "the aggregate of {one} belongs to it and cannot be replaced"),
    ("gradient", "gradient", "each makes the gradient in its own way"),
    ("own model", "own model", "each leaves clients with another model of their own"),
    ("extras", "noise", "what clients of {one} send besides their delta would carry no noise"),
    ("extras", "mixes", "what clients of {one} send besides their delta would not be mixed with it"),
    (
        "a mean",
        "kind aggregate",
        "the noise of {one} fits the largest change of a mean, not of what {other} makes",
    ),
    (
        "a mean",
        "own aggregate",
        "the noise of {one} fits the largest change of a mean, not of what {other} makes",
    ),
    ("a mean", "mixes", "the noise of {one} fits a mean of the clients' own changes, and {other} mixes them"),
    (
        "whole vectors",
        "kind part",
        "{one} needs every client to report the full vector, but with {other} clients report only part of it",
    ),
    ("no values", "kind aggregate", "{one} sends no parameter deltas, so there is nothing to aggregate"),
    ("no values", "kind wrapper", "{one} sends no parameter deltas, so there is nothing to change"),
    (
        "no values",
        "kind rule",
        "clients of {one} step along drawn directions, which leaves no room for another rule",
    ),
    ("no values", "kind pass", "clients of {one} never have a gradient"),
    ("no values", "kind part", "with {one} all values move together along drawn directions"),
    ("no values", "kind personal", "with {one} all values move together along drawn directions"),
)
"""(trait of one entry, trait or kind of another, why they cannot be combined); `{one}` and `{other}` are their names."""


@dataclass(frozen=True)
class Given:
    """Values that fedloom supplies to a factory that has parameters of these names.

    Attributes:
        clients: Number of all clients.
        cohort: Number of clients in a round.
        seed: The experiment's seed.
        stage: Number of the strategy's stage.
        layout: Names and shapes of what is trained.
    """

    clients: int
    cohort: int | None = None
    seed: int = 0
    stage: int = 0
    layout: Layout = ANY_LAYOUT

    def named(self) -> dict[str, Any]:
        """Return all values by name."""
        return {
            "clients": self.clients,
            "cohort": self.clients if self.cohort is None else self.cohort,
            "seed": self.seed,
            "stage": self.stage,
            "layout": self.layout,
        }


def make(
    name: str,
    given: Given | int,
    arguments: Mapping[str, Any] | None = None,
    entries: Mapping[str, Entry] = ENTRIES,
) -> Any:
    """Make an algorithm, or a part of one, from its name and its arguments.

    Args:
        name: A key of `entries`.
        given: The values that the program passes; a number is that of all clients.
        arguments: Keyword arguments, e.g. {"lr": 0.01}.
        entries: Name → entry.

    Raises:
        UserError: The name or an argument is unknown, or a value is of the wrong type or out of range.

    Example:
        >>> make("fedadm", 5)
        Traceback (most recent call last):
            ...
        fedloom.system.errors.UserError: algorithms: "fedadm" is not a known algorithm or part. Did you mean fedadam? \
Allowed: fedavg, fedmean, fedprox, fedavgm, fedadagrad, fedyogi, fedadam, scaffold, fednova, yoco, fedkseed
    """
    if name not in entries:
        choices = SERVERS if entries is ENTRIES else list(entries)
        raise UserError(f"algorithms: {unknown_name('algorithm or part', name, choices)}")
    values = (Given(given) if isinstance(given, int) else given).named()
    parameters = signature(entries[name].make).parameters
    needed = {
        key: values[key]
        for key, parameter in parameters.items()
        if parameter.default is Parameter.empty and key in values
    }
    return configured(f"algorithms.{name}", entries[name].make, arguments or {}, **needed)


def _no_arguments(name: str) -> Mapping[str, Any]:
    return {}


def compose(
    names: Sequence[str],
    given: Given,
    arguments: Callable[[str], Mapping[str, Any]] = _no_arguments,
    entries: Mapping[str, Entry] = ENTRIES,
) -> FederatedAlgorithm:
    """Return the algorithm composed from its name and the names of the parts that are added to it.

    An aggregate replaces the algorithm's own; wrappers are put around it in their order, the inner one first; rules follow the
    algorithm's own in their order.

    Args:
        names: The algorithm first.
        given: The values that the program passes.
        arguments: Name → its arguments in the experiment.
        entries: Name → entry.

    Raises:
        UserError: A name or an argument is refused, or two parts cannot be combined.

    Example:
        >>> compose(["fedadam", "proximal"], Given(5)).local.correct is compose(["fedadam"], Given(5)).local.correct
        False
    """
    for reason in conflicts(names, entries):
        raise UserError(reason)
    base, *parts = names
    algorithm: FederatedAlgorithm = make(base, given, arguments(base), entries)
    values = [(entries[name].kind, make(name, given, arguments(name), entries)) for name in parts]
    for kind, value in values:
        if kind == "aggregate":
            algorithm = algorithm._replace(aggregate=value)
    for kind, value in values:
        if kind == "wrapper":
            algorithm = with_aggregate(algorithm, value)
        elif kind == "rule":
            algorithm = with_rule(algorithm, value)
        elif kind == "pass":
            algorithm = algorithm._replace(second=value)
    return algorithm


def make_parts(
    names: Sequence[str],
    kind: str,
    given: Given,
    arguments: Callable[[str], Mapping[str, Any]] = _no_arguments,
    entries: Mapping[str, Entry] = ENTRIES,
) -> Iterator[Any]:
    """Yield the parts of one kind among a method's names, in their order; see `compose` for the other arguments."""
    for name in names:
        if entries[name].kind == kind:
            yield make(name, given, arguments(name), entries)


def budgets(
    names: Sequence[str],
    given: Given,
    arguments: Callable[[str], Mapping[str, Any]] = _no_arguments,
    entries: Mapping[str, Entry] = ENTRIES,
) -> Budget:
    """Return what each client of a method holds, trains and reports; see `compose` for the arguments."""
    budget = EVERYTHING
    for one in make_parts(names, "part", given, arguments, entries):
        budget &= one
    return budget


def check_method(
    names: Sequence[str],
    given: Given,
    arguments: Callable[[str], Mapping[str, Any]] = _no_arguments,
    entries: Mapping[str, Entry] = ENTRIES,
) -> None:
    """Check a method before it runs: make all its parts, and aggregate a round of artificial updates if clients report parts.

    See `compose` for the arguments.

    Raises:
        UserError: A name or an argument is refused, two parts cannot be combined, or some value is reported by fewer
            clients than the aggregate needs, even if all clients take part.

    Example:
        >>> check_method(["fedavg", "median", "layers"], Given(3), {"median": {}, "layers": {"budgets": [1, 2, 2]}}.get)
        Traceback (most recent call last):
            ...
        fedloom.system.errors.UserError: layers and median do not go together here: the median of a value that not all clients report, \
with f = 1 needs at least 2f + 1 = 3 clients in a round, and there are 2
    """
    algorithm, budget = compose(names, given, arguments, entries), budgets(names, given, arguments, entries)
    kinds = {kind: [name for name in names if entries[name].kind == kind] for kind in ("part", "aggregate")}
    if not (kinds["part"] and kinds["aggregate"]):
        return
    ones = Params(given.layout, torch.ones(given.layout.size))
    updates = [Update(client, ones, 1.0, up=budget.up(client)) for client in range(given.clients)]
    try:
        algorithm.aggregate(updates, algorithm.init(ones))
    except TooFew as error:
        both = " and ".join([*kinds["part"], *kinds["aggregate"]])
        raise UserError(f"{both} do not go together here: {error}") from error


def conflicts(names: Sequence[str], entries: Mapping[str, Entry] = ENTRIES) -> Iterator[str]:
    """Yield a sentence for each pair of parts of a method that cannot be combined.

    Example:
        >>> list(conflicts(["scaffold", "proximal"])), len(list(conflicts(["fedavg", "adaptive"])))
        ([], 0)
    """
    for k, name in enumerate(names):
        for other in names[k + 1 :]:
            if reason := _conflict(name, other, entries):
                yield f"{name} and {other} do not go together, since {reason}"


def _conflict(name: str, other: str, entries: Mapping[str, Entry]) -> str | None:
    """Return why two entries cannot be combined, or None."""
    kind = entries[name].kind
    if kind == entries[other].kind and kind in ("server", "aggregate", "pass", "stage", "mix", "prompt"):
        return f"a method has one {kind}"
    facts = {one: {*entries[one].traits, f"kind {entries[one].kind}"} for one in (name, other)}
    for left, right, reason in CONFLICTS:
        for one, two in ((name, other), (other, name)):
            if left in facts[one] and right in facts[two]:
                return reason.format(one=one, other=two)
    return None


def configured(where: str, factory: Callable[..., Any], arguments: Mapping[str, Any], **given: Any) -> Any:
    """Call a factory with a user's arguments, checked against its keyword defaults.

    Args:
        where: The key of the arguments in the experiment, e.g. "algorithms.adaptive".
        factory: The factory; its arguments with a number, a Boolean, a text or a tuple as default can be set.
        arguments: The user's arguments, by name.
        given: The program's arguments.

    Raises:
        UserError: An argument is unknown, of the wrong type, or refused by the factory.
    """
    settable = settable_arguments(factory)
    for key, value in arguments.items():
        if key not in settable:
            raise UserError(f"{where}: {unknown_name('argument', key, list(settable))}")
        kind, fits = _fits(settable[key], value)
        if not fits:
            default = settable[key]
            example = "" if default == () else f", for example {_shown(default)}"
            raise UserError(f"{where}.{key} is {_shown(value)!r}; it must be {kind}{example}")
    try:
        return factory(**given, **{key: _frozen(value) for key, value in arguments.items()})
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def settable_arguments(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of the arguments that an experiment may set, by name."""
    kinds: tuple[type, ...] = (bool, int, float, str, tuple)
    defaults: dict[str, Any] = {key: one.default for key, one in signature(factory).parameters.items()}
    return {key: default for key, default in defaults.items() if isinstance(default, kinds)}


def _fits(default: Any, value: Any) -> tuple[str, bool]:
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    if isinstance(default, int):
        return "a whole number", isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float):
        return "a number", isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if isinstance(default, str):
        return "text", isinstance(value, str)
    if not isinstance(value, list | tuple):
        return "a list", False
    entries = cast("Sequence[Any]", value)
    if not default:
        return "a list", True
    return f"a list, each entry {_fits(default[0], 0)[0]}", all(_fits(default[0], one)[1] for one in entries)


def _frozen(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def _shown(value: Any) -> Any:
    """Return a value as a recipe writes it."""
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value
