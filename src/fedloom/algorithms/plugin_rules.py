"""Check what the functions of a plug-in are given and return: local rules here, and the state of a server."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor

from fedloom.algorithms.algorithm import ServerState
from fedloom.algorithms.local_rule import PLAIN, LocalRule
from fedloom.system.errors import UserError
from fedloom.types import Broadcast

TENSOR, TENSORS = "a tensor", "a dict from names to tensors"
"""What a function of a rule may return, in words."""

IN_PLACE = (
    "changes a tensor that it is given in place, such as by add_ or +=; make a new one, such as by x + y"
)
"""What a function that changes its arguments does, for messages."""

RETURNED: Mapping[str, tuple[str, ...]] = {
    "begin": (TENSORS,),
    "correct": (TENSOR, TENSORS),
    "penalize": (TENSOR, TENSORS),
    "finish": (TENSORS, TENSORS),
    "gradient": (TENSOR, TENSOR, TENSORS),
    "start": (TENSOR,),
    "own": (TENSOR,),
}
"""Function of a `LocalRule` → what it returns."""

MAY_CHANGE: Mapping[str, int] = {"correct": 1, "penalize": 1}
"""Function of a `LocalRule` → number of its first arguments that it may change in place: the gradient."""


def guarded_rule(name: str, rule: LocalRule) -> LocalRule:
    """Return a rule of a plug-in, whose client is missing with a clear reason where a function returns something else.

    A function that changes what it is given in place is refused too: the parameters that were sent belong to all clients.
    """
    own = {part: act for part in RETURNED if (act := getattr(rule, part)) is not getattr(PLAIN, part)}
    return rule._replace(**{part: _checked(name, part, act) for part, act in own.items()})


def _checked(name: str, part: str, act: Callable[..., Any]) -> Callable[..., Any]:
    right = RETURNED[part]

    @functools.wraps(act)
    def checked(*args: Any) -> Any:
        memory = args[1].values() if part in ("begin", "start") else ()
        before = versions((*args[MAY_CHANGE.get(part, 0) :], *memory))
        result = act(*args)
        if has_changed(before):
            raise UserError(f"{name}: its {part} {IN_PLACE}")
        several = len(right) > 1
        values = cast("tuple[Any, ...]", result) if several else (result,)
        fine = isinstance(result, tuple) or not several
        if not fine or len(values) != len(right) or not all(map(_is, values, right)):
            raise UserError(f"{name}: its {part} must return {' and '.join(right)}, not {_shown(result)}")
        return cast(Any, result)

    return checked


def versions(args: tuple[Any, ...]) -> list[tuple[Tensor, int]]:
    """Return the tensors in arguments of a function, and the number of changes in place of each; carries may change."""
    return [(tensor, _version(tensor)) for one in args for tensor in _tensors(one)]


def has_changed(before: list[tuple[Tensor, int]]) -> bool:
    """Return whether a tensor has been changed in place since `versions` was called."""
    return any(_version(tensor) != version for tensor, version in before)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Broadcast):
        yield from (value.params.flat, *value.extras.values())
    elif isinstance(value, ServerState):
        yield from (value.params.flat, *value.slots.values())


def _is(value: Any, right: str) -> bool:
    if right == TENSOR:
        return isinstance(value, Tensor)
    named = isinstance(value, Mapping) and cast("Mapping[Any, Any]", value).items()
    return named is not False and all(isinstance(key, str) and isinstance(one, Tensor) for key, one in named)


def _shown(value: Any) -> str:
    """Return a value's type in words, with those of its parts."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, cast('tuple[Any, ...]', value)))})"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        return f"{{{', '.join(f'{key!r}: {type(one).__name__}' for key, one in pairs)}}}"
    return "None" if value is None else type(value).__name__
