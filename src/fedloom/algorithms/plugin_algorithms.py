"""Algorithms of plug-ins, and parts of algorithms: they become entries whose mistakes are reported with file and line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import Budget, Extra, FederatedAlgorithm, ServerState, TooFew
from fedloom.algorithms.entry import GIVEN, Entry
from fedloom.algorithms.local_rule import Final, LocalRule, Second
from fedloom.algorithms.prompt_wording import VARIANTS as PROMPT_VARIANTS
from fedloom.system.errors import UserError, client_failure
from fedloom.types import Broadcast

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
        except (Exception, SystemExit) as error:
            raise UserError(f"{name} cannot be made: {client_failure(error)}") from error
        wanted = MADE.get(entry.kind)
        if not (callable(made) if wanted is None else isinstance(made, wanted)):
            right = "a function" if wanted is None else f"a {wanted.__name__}"
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
                **{key: _reported(name, getattr(made, key), check, key) for key, check in checks.items()}
            )
        if entry.kind == "aggregate":
            return _reported(name, made, _no_aggregate)
        return _reported(name, made, then=_no_aggregate) if entry.kind == "wrapper" else made

    return replace(entry, make=make)


Check = Callable[..., str | None]
"""(what a function returned, its arguments) → what is wrong with it, or None."""


def _reported(
    name: str, act: Callable[..., Any], check: Check | None = None, part: str = "", then: Check | None = None
) -> Callable[..., Any]:
    """Return a function whose exceptions, and whose wrong results, become one message.

    Args:
        name: What it belongs to.
        act: The function.
        check: What is wrong with what it returns.
        part: The function's name in the message.
        then: The same for what the function raises and returns that it returns.
    """

    @functools.wraps(act)
    def checked(*args: Any) -> Any:
        try:
            found = act(*args)
        except (UserError, TooFew):
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{name} fails: {client_failure(error)}") from error
        if then is not None:
            if not callable(found):
                raise UserError(f"{name} must return an aggregate, not a {type(found).__name__}")
            return _reported(name, found, then)
        if check is not None and (reason := check(found, *args)):
            raise UserError(f"{name}: {f'its {part} ' if part else 'it '}{reason}")
        return found

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


def _no_state(found: Any, *_: Any) -> str | None:
    if not isinstance(found, ServerState):
        return f"must return a ServerState, not a {type(found).__name__}"
    strange = [
        name for name, slot in cast("Mapping[str, Any]", found.slots).items() if not isinstance(slot, Tensor)
    ]
    return f"returns a state whose slot {strange[0]!r} is no tensor" if strange else None


def _no_broadcast(found: Any, *_: Any) -> str | None:
    if not isinstance(found, Broadcast):
        return f"must return a Broadcast, not a {type(found).__name__}"
    strange = [
        name for name, one in cast("Mapping[str, Any]", found.extras).items() if not isinstance(one, Tensor)
    ]
    return f"sends {strange[0]!r}, which is no tensor" if strange else None


def _no_step(found: Any, before: ServerState, *_: Any) -> str | None:
    if not isinstance(found, tuple) or len(cast("tuple[Any, ...]", found)) != 2:
        return "must return two values, the next state and figures"
    state, figures = cast("tuple[Any, Any]", found)
    if reason := _no_state(state):
        return reason
    if state.params.layout != before.params.layout:
        return "returns parameters of other names or shapes than before"
    if state.round != before.round + 1:
        return f"returns a state whose round is {state.round}; after round {before.round} it must be {before.round + 1}"
    return _no_figures(figures)


def _no_aggregate(found: Any, updates: Any, state: ServerState) -> str | None:
    if not isinstance(found, tuple) or len(cast("tuple[Any, ...]", found)) != 2:
        return "must return two values, the delta and figures"
    delta, figures = cast("tuple[Any, Any]", found)
    if (
        not isinstance(delta, Tensor)
        or delta.shape != state.params.flat.shape
        or delta.dtype != torch.float32
    ):
        told = (
            f"{delta.dtype} of shape {list(delta.shape)}"
            if isinstance(delta, Tensor)
            else type(delta).__name__
        )
        return f"must return a delta of torch.float32 of shape {list(state.params.flat.shape)}, not {told}"
    return _no_figures(figures)


def _no_figures(figures: Any) -> str | None:
    if not isinstance(figures, Mapping):
        return f"must return figures as a dict from names to numbers, not a {type(figures).__name__}"
    for name, value in cast("Mapping[Any, Any]", figures).items():
        if not isinstance(name, str) or not isinstance(value, int | float):
            return f"returns {value!r:.40} as the figure {name!r}, which must be a number"
    return None


def _no_extras(found: Any, *_: Any) -> str | None:
    fine = isinstance(found, Mapping) and all(isinstance(one, Extra) for one in cast("Any", found).values())
    return None if fine else "must return a dict from names to Extra"
