"""The gate in front of every aggregator: which updates are refused, and why."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from math import inf, isfinite
from statistics import median
from typing import Protocol

import torch

from fedloom.algorithms.base import Extra
from fedloom.engine.limits import Allowance, Expected, norm
from fedloom.params import Layout
from fedloom.types import ClientUpdate, Tensors

FIRST = 16
"""Updates of a round that have a say in what is usual."""

REMEMBERED = 1024
"""Accepted norms that are kept."""


class GateSettings(Protocol):
    """The `gate` section of an experiment."""

    @property
    def max_norm(self) -> float | None:
        """Largest norm of a delta; None derives it from the training settings, see `fedloom.engine.limits`."""
        ...

    @property
    def max_ratio(self) -> float:
        """Largest norm as a multiple of the usual norm; see `Gate`."""
        ...


def malformed(update: ClientUpdate, memory: Tensors, layout: Layout, allowed: Allowance) -> str | None:
    """Return what is wrong with an update but for its delta's values, and with what its client keeps, or None."""
    if update.delta.layout.names != layout.names:
        odd = sorted(set(update.delta.layout.names) ^ set(layout.names))
        return (
            f"names differ from the global model's, first {odd[0]!r}" if odd else "names are in another order"
        )
    if update.delta.layout.shapes != layout.shapes or update.delta.flat.shape != (layout.size,):
        return "shapes differ from the global model's"
    if not (_is_number(update.weight) and 1 <= update.weight <= allowed.examples):
        held = f"the number of examples, of which this client holds {allowed.examples}"
        return f"weight {update.weight} is not {held}"
    if not all(_is_number(value) for value in update.metrics.values()):
        return "a metric is not a number"
    for name, value in memory.items():
        if value.is_floating_point() and not isfinite(norm(value)):
            return f"what the client keeps as {name} holds values that are not finite"
    return _other_extras(update.extras, allowed.extras)


def _other_extras(extras: Tensors, announced: Mapping[str, Extra]) -> str | None:
    """Return how extras differ from what the algorithm announces, or None."""
    for name in sorted(extras.keys() ^ announced.keys()):
        return (
            f"{name} is missing" if name in announced else f"{name} is nothing that this algorithm asks for"
        )
    for name, wanted in announced.items():
        value = extras[name]
        if value.dtype != torch.float32 or tuple(value.shape) != wanted.shape:
            found = f"{str(value.dtype).removeprefix('torch.')} values of shape {list(value.shape)}"
            return f"{name} holds {found}, not float32 values of shape {list(wanted.shape)}"
        size = norm(value)
        if not isfinite(size):
            return f"{name} holds values that are not finite"
        if size > wanted.most:
            return f"{name} has norm {size:.4g}, above {wanted.most:.4g}, the most that honest work comes to"
        if wanted.least > -inf and float(value.amin()) < wanted.least:
            return f"{name} holds values below {wanted.least:.4g}"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


class Gate:
    """Decides which updates of one round are let through, while they stream by in client-id order.

    No update is longer than honest work can make it (`fedloom.engine.limits`), which needs no history. Nor is it many
    times as long as usual: the usual norm is the median over the updates accepted in earlier rounds and the well-formed
    ones among the first `FIRST` of this round, so the judgement needs no more than those in memory; for work that
    commonly comes to more than that median, it is what such work comes to.

    Args:
        layout: The global model's.
        expected: What the round's clients were asked for.
        norms: Norms of updates accepted in earlier rounds.
        settings: Limits on norms.

    Attributes:
        norms: Norms accepted last, this round's included; at most `REMEMBERED`.
    """

    def __init__(
        self, layout: Layout, expected: Expected, norms: Sequence[float], settings: GateSettings
    ) -> None:
        self._layout, self._expected, self._settings = layout, expected, settings
        self._norms: deque[float] = deque(norms, maxlen=REMEMBERED)

    @property
    def norms(self) -> tuple[float, ...]:
        """Norms of the updates accepted last."""
        return tuple(self._norms)

    def judge(
        self, results: Iterable[tuple[ClientUpdate, Tensors]]
    ) -> Iterator[tuple[ClientUpdate, Tensors, str | None]]:
        """Yield each update, what its client keeps, and why it is refused, or None."""
        coming = (self._measured(update, memory) for update, memory in results)
        first = deque(islice(coming, FIRST))
        lengths = [*self._norms, *(size for *_, size, _, reason in first if reason is None)]
        usual = median(lengths or [0.0])
        # Taken out one by one, so that nobody holds what was judged.
        waiting = (first.popleft() for _ in range(len(first)))
        for update, memory, size, common, reason in chain(waiting, coming):
            why = reason or self._unusual(size, max(usual, common))
            if why is None:
                self._norms.append(size)
            yield update, memory, why

    def _measured(
        self, update: ClientUpdate, memory: Tensors
    ) -> tuple[ClientUpdate, Tensors, float, float, str | None]:
        """Return what came, its norm, a norm that is common for it, and why it is refused by itself, or None."""
        allowed = self._expected.take()
        if update.client != allowed.client:
            reason = f"it came as client {update.client}'s"
            return replace(update, client=allowed.client), memory, 0.0, 0.0, reason
        reason = malformed(update, memory, self._layout, allowed)
        size = 0.0 if reason else norm(update.delta.flat)
        return update, memory, size, allowed.usual, reason or self._outsized(update, size, allowed)

    def _outsized(self, update: ClientUpdate, size: float, allowed: Allowance) -> str | None:
        most = self._settings.max_norm
        if not isfinite(size):
            return "delta holds values that are not finite"
        if any(bool(update.delta.flat[part].any()) for part in self._expected.silent):
            return "delta changes values that are not exchanged"
        if most is not None and size > most:
            return f"norm {size:.4g} is above gate.max_norm {most:.4g}"
        if most is None and size > allowed.most:
            return f"norm {size:.4g} is above {allowed.most:.4g}, the most that honest work comes to"
        return None

    def _unusual(self, size: float, usual: float) -> str | None:
        ratio = self._settings.max_ratio
        if usual > 0 and size > ratio * usual:
            return f"norm {size:.4g} is {size / usual:.1f} times the usual {usual:.4g}; gate.max_ratio is {ratio:.4g}"
        return None
