"""Weighted sums of updates, in client-id order and float64, so that arrival order cannot matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isfinite

import torch
from torch import Tensor

from fedloom.params import Layout
from fedloom.types import ClientUpdate


def ordered(updates: Iterable[ClientUpdate], layout: Layout) -> list[ClientUpdate]:
    """Check updates against the layout and sort them by client id.

    Raises:
        ValueError: No updates, a repeated client, another layout, or a bad weight; the client is named.
    """
    found = sorted(updates, key=lambda update: update.client)
    if not found:
        raise ValueError("a round needs at least one client update")
    for before, update in zip([None, *found], found, strict=False):
        if before is not None and before.client == update.client:
            raise ValueError(f"client {update.client} sent two updates")
        if update.delta.layout != layout:
            raise ValueError(
                f"client {update.client} sent names or shapes that differ from the global model's"
            )
        if not (isfinite(update.weight) and update.weight > 0):
            raise ValueError(
                f"client {update.client} has weight {update.weight}; a weight is finite and positive"
            )
    return found


def shares(updates: Sequence[ClientUpdate], *, uniform: bool = False) -> list[float]:
    """Return each update's share of the sum: by number of examples, or equal; they add up to one."""
    weights = [1.0 if uniform else update.weight for update in updates]
    total = sum(weights)
    return [weight / total for weight in weights]


def weighted_sum(
    updates: Sequence[ClientUpdate], weights: Sequence[float], value: Callable[[ClientUpdate], Tensor]
) -> Tensor:
    """Sum `weight · value(update)` in the given order; float64 inside, float32 result, shape [P]."""
    total = torch.zeros(value(updates[0]).shape, dtype=torch.float64)
    for update, weight in zip(updates, weights, strict=True):
        total.add_(value(update), alpha=weight)
    return total.float()


def extra(update: ClientUpdate, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return what a client sent besides its delta.

    Raises:
        ValueError: It was not sent, has another shape, or holds values that are not finite.
    """
    value = update.extras.get(name)
    if value is None:
        raise ValueError(f"client {update.client} did not send {name!r}, which this algorithm needs")
    if tuple(value.shape) != shape or not torch.isfinite(value).all():
        raise ValueError(
            f"client {update.client} sent {name!r} with another shape or with values that are not finite"
        )
    return value


def mean_delta(updates: Sequence[ClientUpdate], *, uniform: bool = False) -> Tensor:
    """Average the deltas, weighted by number of examples unless `uniform`."""
    return weighted_sum(updates, shares(updates, uniform=uniform), lambda update: update.delta.flat)
