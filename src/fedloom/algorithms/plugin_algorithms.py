"""Algorithms of plug-ins, and parts of algorithms: they become entries whose mistakes are reported with file and line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedloom.algorithms.base import Budget, FederatedAlgorithm, TooFew
from fedloom.algorithms.entry import GIVEN, Entry
from fedloom.algorithms.rule import Final, LocalRule, Second
from fedloom.failures import client_failure
from fedloom.types import UserError

MADE: dict[str, type] = {
    "server": FederatedAlgorithm,
    "rule": LocalRule,
    "pass": Second,
    "stage": Final,
    "part": Budget,
    "prompt": str,
}
"""Kind → what its factory returns; of kinds that are not here, a function."""


def as_entry(name: str, value: Any) -> Entry:
    """Make an entry of what a plug-in gives.

    Args:
        name: Its name.
        value: An entry; a function that makes an algorithm, whose docstring begins with what it does; or an algorithm.

    Raises:
        ValueError: It is none of these, or a factory has an argument without a default that is not one of `GIVEN`.
    """
    if isinstance(value, FederatedAlgorithm):
        return Entry(functools.partial(_itself, value), "server", name, "")
    entry = value if isinstance(value, Entry) else None
    if entry is None and callable(value):
        entry = Entry(value, "server", name, _first_line(value))
    if entry is None:
        raise ValueError(
            f"must be an Entry or a function that makes an algorithm, not a value of type {type(value).__name__}"
        )
    _check_factory(entry.make)
    return entry


def _itself(value: FederatedAlgorithm) -> FederatedAlgorithm:
    return value


def _first_line(value: Any) -> str:
    described = inspect.isroutine(value) or inspect.isclass(value)
    return (inspect.getdoc(value) or "").partition("\n")[0] if described else ""


def _check_factory(make: Any) -> None:
    """Raise ValueError where a factory has an argument that nobody gives it."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        raise ValueError("must be a Python function whose arguments are known") from None
    for one in parameters:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or one.default is not one.empty:
            continue
        if one.kind is one.POSITIONAL_ONLY or one.name not in GIVEN:
            raise ValueError(
                f"has the argument {one.name!r} without a default; only {', '.join(GIVEN)} may have none"
            )


def guarded(name: str, entry: Entry) -> Entry:
    """Return an entry whose exceptions become one message, with the file and line at which they were raised.

    Exceptions of a local rule at a client are left to the engine, which makes the client missing in that round.
    """

    @functools.wraps(entry.make)
    def make(*args: Any, **arguments: Any) -> Any:
        try:
            made = entry.make(*args, **arguments)
        except (UserError, ValueError):  # a refused argument
            raise
        except Exception as error:
            raise UserError(f"{name} cannot be made: {client_failure(error)}") from error
        wanted = MADE.get(entry.kind)
        if not (callable(made) if wanted is None else isinstance(made, wanted)):
            right = "a function" if wanted is None else f"a {wanted.__name__}"
            raise UserError(f"{name} is a {entry.kind}, so it must make {right}, not a {type(made).__name__}")
        if entry.kind == "server":
            return made._replace(combine=_reported(name, made.combine))
        if entry.kind == "aggregate":
            return _reported(name, made)
        return _reported(name, made, then=True) if entry.kind == "wrapper" else made

    return replace(entry, make=make)


def _reported(name: str, act: Callable[..., Any], *, then: bool = False) -> Callable[..., Any]:
    """Return a function whose exceptions become one message; with `then`, those of the function that it returns, too."""

    @functools.wraps(act)
    def checked(*args: Any) -> Any:
        try:
            found = act(*args)
            return _reported(name, found) if then else found
        except (UserError, TooFew):
            raise
        except Exception as error:
            raise UserError(f"{name} fails: {client_failure(error)}") from error

    return checked
