"""Weighted sums of updates in client-id order, so that arrival order cannot matter, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import Aggregate, ServerState
from fedloom.params import Part
from fedloom.wire.messages import Update

Term = Callable[[Update], tuple[float, Tensor]]
"""Update → (weight > 0, value): one entry of a weighted mean."""

HELD = 16
"""Number of updates that are summed at once."""

FOLD = 4 * HELD
"""Number of updates after which float32 sums are added to the float64 total."""

CHUNK = 2**18
"""Number of values of the total to which updates are added at a time: few enough to stay in the cache."""


@dataclass(frozen=True)
class Means:
    """Weighted means over a round.

    Attributes:
        clients: Number of updates.
        values: Each term's Σ weight · value / Σ weight, float32, in the shape of its values. In vectors as long as the
            layout, each value is averaged over the clients whose part has it (`Update.up`); one that no part has is 0.
    """

    clients: int
    values: tuple[Tensor, ...]


def means(updates: Iterable[Update], *terms: Term) -> Means:
    """Return several weighted means from one pass over a stream, in its order, holding few updates at a time.

    Sums run in float32 over `FOLD` updates and in float64 over those, so a million clients lose no
    accuracy. Memory is that of `HELD` updates and a few vectors, whatever the number of clients.

    Args:
        updates: At least one update, in client-id order.
        terms: The terms that are averaged.
    """
    running = _Running(terms)
    for update in updates:
        running.add(update)
    return running.means()


def means_alongside(updates: Iterable[Update], *terms: Term) -> tuple[Iterator[Update], Callable[[], Means]]:
    """Compute weighted means of a stream while something else reads it.

    Returns:
        The same stream, and a function that returns the means over the updates that have been read.
    """
    running = _Running(terms)

    def passing() -> Iterator[Update]:
        for update in updates:
            running.add(update)
            yield update

    return passing(), running.means


class _Running:
    """Several weighted means over the updates that were added."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms, self._clients = terms, 0
        self._sums = [_Sum() for _ in terms]
        # Weights are multiples of the first, so that equal weights multiply nothing.
        self._first: list[float] = []
        self._weights: list[dict[Part | None, float]] = [{} for _ in terms]

    def add(self, update: Update) -> None:
        terms = [term(update) for term in self._terms]
        self._first = self._first or [weight for weight, _ in terms]
        for k, (weight, value) in enumerate(terms):
            share = weight / self._first[k]
            self._sums[k].add(share, value)
            part = update.up if value.shape == update.delta.flat.shape else None
            self._weights[k][part] = self._weights[k].get(part, 0.0) + share
        self._clients += 1

    def means(self) -> Means:
        values = (
            _divided(one.total(), weight) for one, weight in zip(self._sums, self._weights, strict=True)
        )
        return Means(self._clients, tuple(values))


def _divided(total: Tensor, weights: Mapping[Part | None, float]) -> Tensor:
    """Return a weighted sum divided by the weights of its parts, as a new float32 tensor."""
    if len(weights) == 1:
        return total.div_(*weights.values()).float()
    whole = torch.zeros(total.shape, dtype=torch.float64)
    for part, weight in weights.items():
        if part is None:
            whole += weight
        else:
            whole[part.mask] += weight
    return torch.where(whole > 0, total / whole, 0.0).float()


class _Sum:
    """A weighted sum of the values that were added; they must not change until they are summed."""

    def __init__(self) -> None:
        self._held: list[tuple[float, Tensor]] = []
        self._short: Tensor | None = None  # float32, of the last updates
        self._long: Tensor | None = None  # float64, of those before
        self._count = 0

    def add(self, weight: float, value: Tensor) -> None:
        self._held.append((weight, value))
        self._count += 1
        if len(self._held) == HELD or self._count % FOLD == 0:
            self._flush()
        if self._count % FOLD == 0 and self._short is not None:
            self._long = self._short.double() if self._long is None else self._long.add_(self._short)
            self._short = None

    def total(self) -> Tensor:
        self._flush()
        if self._long is None:
            assert self._short is not None
            return self._short
        return self._long if self._short is None else self._long + self._short

    def _flush(self) -> None:
        if not self._held:
            return
        values = [value for _, value in self._held]
        weights = [weight for weight, _ in self._held]
        if self._short is None:
            self._short = torch.empty_like(values[0], memory_format=torch.contiguous_format)
            _accumulate(self._short.view(-1), values, weights, afresh=True)
        else:
            _accumulate(self._short.view(-1), values, weights)
        self._held.clear()


def _accumulate(
    total: Tensor, values: Sequence[Tensor], weights: Sequence[float], *, afresh: bool = False
) -> None:
    """Add Σ weight · value of tensors of one shape to a flat total, or write it there."""
    rows = _as_rows(values)
    if rows is not None:
        total.addmv_(rows.T, torch.tensor(weights, dtype=rows.dtype), beta=0 if afresh else 1)
        return
    flat = [value.reshape(-1) for value in values]
    for start in range(0, total.shape[0], CHUNK):
        part = total[start : start + CHUNK]
        if afresh:
            part.zero_()
        for value, weight in zip(flat, weights, strict=True):
            part.add_(value[start : start + CHUNK], alpha=weight)


def _as_rows(values: Sequence[Tensor]) -> Tensor | None:
    """Return vectors that lie evenly spaced in one buffer as the rows of a matrix, without a copy; otherwise None."""
    first = values[0]
    if len(values) < 2 or first.dim() != 1 or first.stride() != (1,):
        return None
    step = values[1].storage_offset() - first.storage_offset()
    storage = first.untyped_storage().data_ptr()
    for k, value in enumerate(values):
        same = value.untyped_storage().data_ptr() == storage and value.stride() == (1,)
        if not same or value.storage_offset() - first.storage_offset() != k * step:
            return None
    return first.as_strided((len(values), first.shape[0]), (step, 1)) if step >= first.shape[0] else None


def extra(update: Update, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor that a client sent besides its delta.

    Raises:
        ValueError: The tensor was not sent, has another shape, or holds values that are not finite.
    """
    value = update.extras.get(name)
    if value is None:
        raise ValueError(f"client {update.client} did not send {name!r}, which this algorithm needs")
    if tuple(value.shape) != shape or not torch.isfinite(value).all():
        raise ValueError(
            f"client {update.client} sent {name!r} with another shape or with values that are not finite"
        )
    return value


def by_size(update: Update, *, uniform: bool = False) -> float:
    """Return the weight of an update: its number of examples, or 1 if `uniform`."""
    return 1.0 if uniform else update.weight


def mean_delta(updates: Iterable[Update], *, uniform: bool = False) -> Tensor:
    """Return the mean of the deltas, weighted by number of examples unless `uniform`."""
    return means(updates, lambda update: (by_size(update, uniform=uniform), update.delta.flat)).values[0]


def mean(*, uniform: bool = False) -> Aggregate:
    """Return the weighted mean of the deltas as an aggregate.

    Args:
        uniform: Weigh all clients alike instead of by number of examples.
    """

    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Mapping[str, float]]:
        return mean_delta(updates, uniform=uniform), {}

    return aggregate
