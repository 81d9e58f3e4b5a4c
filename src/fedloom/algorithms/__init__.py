"""Federated algorithms: one paper, one page, and a dict of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from inspect import signature
from math import isfinite
from typing import Any, TypeVar

from fedloom.algorithms.base import FederatedAlgorithm
from fedloom.algorithms.fedavg import fedavg
from fedloom.algorithms.fedavgm import fedavgm
from fedloom.algorithms.fedmean import fedmean
from fedloom.algorithms.fednova import fednova
from fedloom.algorithms.fedopt import fedadagrad, fedadam, fedyogi
from fedloom.algorithms.fedprox import fedprox
from fedloom.algorithms.scaffold import scaffold
from fedloom.algorithms.yoco import yoco
from fedloom.types import UserError

T = TypeVar("T")

ALGORITHMS: dict[str, Callable[..., FederatedAlgorithm]] = {
    "fedavg": fedavg,
    "fedmean": fedmean,
    "fedprox": fedprox,
    "fedavgm": fedavgm,
    "fedadagrad": fedadagrad,
    "fedyogi": fedyogi,
    "fedadam": fedadam,
    "scaffold": scaffold,
    "fednova": fednova,
    "yoco": yoco,
}


def make(name: str, clients: int, arguments: Mapping[str, Any] | None = None) -> FederatedAlgorithm:
    """Make an algorithm from its name and what an experiment says about it.

    Args:
        name: A key of `ALGORITHMS`.
        clients: Number of all clients; only some algorithms need it.
        arguments: The factory's keyword arguments, e.g. {"lr": 0.01}.

    Raises:
        UserError: The name or an argument is unknown, or a value is of the wrong type or out of range.

    Example:
        >>> make("fedadm", 5)
        Traceback (most recent call last):
            ...
        fedloom.types.UserError: algorithms: there is no 'fedadm'; did you mean 'fedadam'? \
Known are fedavg, fedmean, fedprox, fedavgm, fedadagrad, fedyogi, fedadam, scaffold, fednova, yoco
    """
    if name not in ALGORITHMS:
        raise UserError(_unknown("algorithms", name, list(ALGORITHMS)))
    factory = ALGORITHMS[name]
    given = {"clients": clients} if "clients" in signature(factory).parameters else {}
    return configured(f"algorithms.{name}", factory, arguments or {}, **given)


def configured(where: str, factory: Callable[..., T], arguments: Mapping[str, Any], **given: Any) -> T:
    """Call a factory with a user's arguments, checked against its keyword defaults.

    Args:
        where: Where the arguments stand in the experiment, e.g. "algorithms.adaptive".
        factory: Its arguments with a number or a truth value as default can be set.
        arguments: What the user says.
        given: What the program adds.

    Raises:
        UserError: An argument is unknown, of the wrong type, or refused by the factory.
    """
    settable = {
        key: parameter.default
        for key, parameter in signature(factory).parameters.items()
        if isinstance(parameter.default, bool | int | float)
    }
    for key, value in arguments.items():
        if key not in settable:
            raise UserError(_unknown(where, key, list(settable)))
        kind, fits = _fits(settable[key], value)
        if not fits:
            raise UserError(f"{where}.{key} is {value!r}; it must be {kind}, for example {settable[key]}")
    try:
        return factory(**given, **arguments)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _fits(default: bool | int | float, value: Any) -> tuple[str, bool]:
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    if isinstance(default, int):
        return "a whole number", isinstance(value, int) and not isinstance(value, bool)
    return "a number", isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _unknown(where: str, name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"{where}: there is no {name!r}{guess} Known are {', '.join(known)}"
