"""Which cases of a long list the fast suite runs; the others are `slow`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import pytest


def fast_if(cases: Iterable[Any], chosen: Callable[[int, Any], bool]) -> list[Any]:
    """Return parameters of which the fast suite runs those that are chosen by place and value; a tuple is several."""
    return [
        pytest.param(
            *(one if type(one) is tuple else (one,)), marks=() if chosen(place, one) else pytest.mark.slow
        )
        for place, one in enumerate(cases)
    ]


def share(cases: Iterable[Any], every: int, first: int = 0) -> list[Any]:
    """Return parameters of which the fast suite runs each `every`-th, from place `first` on.

    Laws about one list begin at different places, so that many cases are in the fast suite under some law.
    """
    return fast_if(cases, lambda place, _: place % every == first % every)


def each_once(rows: Iterable[Any], columns: Sequence[Any]) -> list[Any]:
    """Return all pairs, of which the fast suite runs one of each row, with the columns in turn."""
    width = len(columns)
    return fast_if(product(rows, columns), lambda place, _: place // width % width == place % width)
