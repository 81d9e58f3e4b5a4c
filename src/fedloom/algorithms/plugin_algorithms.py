"""Entries for the algorithms of plug-ins and for parts of algorithms, whose errors are reported with file and line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import (
    Budget,
    Extra,
    FederatedAlgorithm,
    OnePass,
    ServerState,
    TooFew,
)
from fedloom.algorithms.entry import GIVEN, Entry
from fedloom.algorithms.local_rule import Final, LocalRule, Second
from fedloom.algorithms.own_answers import Interpolation, OwnAnswers
from fedloom.algorithms.personal_values import PersonalValues
from fedloom.algorithms.plugin_rules import IN_PLACE, guarded_rule, has_changed, versions
from fedloom.algorithms.prompt_part import VARIANTS as PROMPT_VARIANTS
from fedloom.system.errors import UserError, client_failure
from fedloom.types import Broadcast

MADE: dict[str, type] = {
    "server": FederatedAlgorithm,
    "rule": LocalRule,
    "pass": Second,
    "stage": Final,
    "part": Budget,
    "personal": PersonalValues,
    "mix": Interpolation,
    "answers": OwnAnswers,
    "prompt": str,
}
"""Kind → the type that its factory returns; the factories of other kinds return a function."""


def as_entry(name: str, value: Any) -> Entry:
    """Return the entry of a plug-in's value.

    Args:
        name: Its name.
        value: An entry; a function that makes an algorithm, whose docstring begins with what it does; or an algorithm.

    Raises:
        ValueError: The value is none of these, or a factory has an argument without a default that is not one of `GIVEN`.
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
    """Raise ValueError if a factory has an argument for which there is no value."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        raise ValueError("must be a Python function whose arguments are known") from None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY or parameter.name not in GIVEN:
            raise ValueError(
                f"has the argument {parameter.name!r} without a default; only {', '.join(GIVEN)} may have none"
            )


def guarded(name: str, entry: Entry) -> Entry:
    """Return an entry whose exceptions become one message, with the file and line at which they were raised.

    The engine handles exceptions of a local rule at a client: the client is then missing in that round.
    """

    @functools.wraps(entry.make)
    def make(*args: Any, **arguments: Any) -> Any:
        try:
            made = entry.make(*args, **arguments)
        except (UserError, ValueError):  # a refused argument
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{name} cannot be made: {client_failure(error)}") from error
        kind = MADE.get(entry.kind)
        if not (callable(made) if kind is None else isinstance(made, kind)):
            right = "a function" if kind is None else f"a {kind.__name__}"
            raise UserError(f"{name} is a {entry.kind}, so it must make {right}, not a {type(made).__name__}")
        if reason := _unfit(entry.kind, made):
            raise UserError(f"{name} is a {entry.kind}, {reason}")
        if entry.kind == "server":
            checks = {
                "init": _no_state,
                "broadcast": _no_broadcast,
                "combine": _no_step,
                "extras": _no_extras,
            }
            return made._replace(
                aggregate=_reported(name, made.aggregate),
                local=guarded_rule(name, made.local),
                second=made.second and _with_guarded_rule(name, made.second),
                **{key: _reported(name, getattr(made, key), check, key) for key, check in checks.items()},
            )
        if entry.kind == "rule":
            return guarded_rule(name, made)
        if entry.kind == "pass":
            return _with_guarded_rule(name, made)
        if entry.kind == "aggregate":
            return _reported(name, made, _no_aggregate)
        return _reported(name, made, then=_no_aggregate) if entry.kind == "wrapper" else made

    return replace(entry, make=make)


def _with_guarded_rule(name: str, second: Second) -> Second:
    return second._replace(rule=guarded_rule(name, second.rule))


Check = Callable[..., str | None]
"""(what a function returned, its arguments) → what is wrong with it, or None."""


def _reported(
    name: str, act: Callable[..., Any], check: Check | None = None, part: str = "", then: Check | None = None
) -> Callable[..., Any]:
    """Return a function whose exceptions, wrong results, and second passes over updates become one message.

    Args:
        name: The entry's name.
        act: The function.
        check: The check of its results.
        part: The function's name in the message.
        then: If the function returns a function: the check of that function's results.
    """

    @functools.wraps(act)
    def checked(*args: Any) -> Any:
        before = versions(args)
        try:
            result = act(
                *(OnePass(cast("Iterator[Any]", one)) if isinstance(one, Iterator) else one for one in args)
            )
        except (UserError, TooFew):
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{name} fails: {client_failure(error)}") from error
        if has_changed(before):
            raise UserError(f"{name}: {f'its {part}' if part else 'it'} {IN_PLACE}")
        if then is not None:
            if not callable(result):
                raise UserError(f"{name} must return an aggregate, not a {type(result).__name__}")
            return _reported(name, result, then)
        if check is not None and (reason := check(result, *args)):
            raise UserError(f"{name}: {f'its {part} ' if part else 'it '}{reason}")
        return result

    return checked


def _unfit(kind: str, made: Any) -> str | None:
    """Return why a value of the right type cannot be used as an entry of its kind, or None."""
    if kind in ("pass", "stage"):
        epochs, rate = made.epochs, made.rate
        if not (epochs is None and kind == "pass") and not (type(epochs) is int and epochs >= 1):
            return f"so that its epochs must be a whole number of at least 1, not {epochs!r}"
        if not isinstance(rate, int | float) or not (isfinite(rate) and rate > 0):
            return f"so that its rate must be a positive number, not {rate!r}"
    if kind == "prompt" and made not in PROMPT_VARIANTS:
        return f"so that it must make one of {', '.join(PROMPT_VARIANTS)}, not {made!r}"
    return None


def _no_state(result: Any, *_: Any) -> str | None:
    if not isinstance(result, ServerState):
        return f"must return a ServerState, not a {type(result).__name__}"
    strange = [
        name for name, slot in cast("Mapping[str, Any]", result.slots).items() if not isinstance(slot, Tensor)
    ]
    return f"returns a state whose slot {strange[0]!r} is no tensor" if strange else None


def _no_broadcast(result: Any, *_: Any) -> str | None:
    if not isinstance(result, Broadcast):
        return f"must return a Broadcast, not a {type(result).__name__}"
    strange = [
        name for name, one in cast("Mapping[str, Any]", result.extras).items() if not isinstance(one, Tensor)
    ]
    return f"sends {strange[0]!r}, which is no tensor" if strange else None


def _no_step(result: Any, before: ServerState, *_: Any) -> str | None:
    if not isinstance(result, tuple) or len(cast("tuple[Any, ...]", result)) != 2:
        return "must return two values, the next state and figures"
    state, figures = cast("tuple[Any, Any]", result)
    if reason := _no_state(state):
        return reason
    if state.params.layout != before.params.layout:
        return "returns parameters of other names or shapes than before"
    if state.round != before.round + 1:
        return f"returns a state whose round is {state.round}; after round {before.round} it must be {before.round + 1}"
    return _no_figures(figures)


def _no_aggregate(result: Any, updates: Any, state: ServerState) -> str | None:
    if not isinstance(result, tuple) or len(cast("tuple[Any, ...]", result)) != 2:
        return "must return two values, the delta and figures"
    delta, figures = cast("tuple[Any, Any]", result)
    if (
        not isinstance(delta, Tensor)
        or delta.shape != state.params.flat.shape
        or delta.dtype != torch.float32
    ):
        actual = (
            f"{delta.dtype} of shape {list(delta.shape)}"
            if isinstance(delta, Tensor)
            else type(delta).__name__
        )
        return f"must return a delta of torch.float32 of shape {list(state.params.flat.shape)}, not {actual}"
    return _no_figures(figures)


def _no_figures(figures: Any) -> str | None:
    if not isinstance(figures, Mapping):
        return f"must return figures as a dict from names to numbers, not a {type(figures).__name__}"
    for name, value in cast("Mapping[Any, Any]", figures).items():
        if not isinstance(name, str) or not isinstance(value, int | float):
            return f"returns {value!r:.40} as the figure {name!r}, which must be a number, such as float(x)"
    return None


def _no_extras(result: Any, *_: Any) -> str | None:
    fine = isinstance(result, Mapping) and all(isinstance(one, Extra) for one in cast("Any", result).values())
    return None if fine else "must return a dict from names to Extra"
