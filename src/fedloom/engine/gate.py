"""The gate in front of every aggregator: which updates are refused, and why."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from math import isfinite
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

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
        """Largest norm of a delta, or None."""
        ...

    @property
    def max_ratio(self) -> float:
        """Largest norm as a multiple of the usual norm; see `Gate`."""
        ...


def malformed(update: ClientUpdate, layout: Layout) -> str | None:
    """Say what is wrong with an update by itself but for its delta's values, or None."""
    if update.delta.layout.names != layout.names:
        odd = sorted(set(update.delta.layout.names) ^ set(layout.names))
        return (
            f"names differ from the global model's, first {odd[0]!r}" if odd else "names are in another order"
        )
    if update.delta.layout.shapes != layout.shapes or update.delta.flat.shape != (layout.size,):
        return "shapes differ from the global model's"
    if not (isfinite(update.weight) and update.weight > 0):
        return f"weight {update.weight} is not finite and positive"
    for name, value in update.extras.items():
        if not value.is_floating_point():
            return f"{name} holds {value.dtype}, not floating-point values"
        if not isfinite(_norm(value)):
            return f"{name} holds values that are not finite"
    return None


class Gate:
    """Decides which updates of one round are let through, while they stream by in client-id order.

    The usual norm is the median over the updates accepted in earlier rounds and the well-formed ones among
    the first `FIRST` of this round, so the judgement needs no more than those in memory.

    Args:
        layout: The global model's.
        norms: Norms of updates accepted in earlier rounds.
        settings: Limits on norms.

    Attributes:
        norms: Norms accepted last, this round's included; at most `REMEMBERED`.
    """

    def __init__(self, layout: Layout, norms: Sequence[float], settings: GateSettings) -> None:
        self._layout, self._settings = layout, settings
        self._norms: deque[float] = deque(norms, maxlen=REMEMBERED)

    @property
    def norms(self) -> tuple[float, ...]:
        """Norms of the updates accepted last."""
        return tuple(self._norms)

    def judge(
        self, results: Iterable[tuple[ClientUpdate, Tensors]]
    ) -> Iterator[tuple[ClientUpdate, Tensors, str | None]]:
        """Yield each update, what its client keeps, and why it is refused, or None."""
        coming = iter(results)
        first = deque((update, memory, *self._measure(update)) for update, memory in islice(coming, FIRST))
        usual = median([*self._norms, *(norm for *_, norm, reason in first if reason is None)] or [0.0])
        rest = ((update, memory, *self._measure(update)) for update, memory in coming)
        # Taken out one by one, so that nobody holds what was judged.
        waiting = (first.popleft() for _ in range(len(first)))
        for update, memory, norm, reason in chain(waiting, rest):
            why = reason or self._outsized(norm, usual)
            if why is None:
                self._norms.append(norm)
            yield update, memory, why

    def _measure(self, update: ClientUpdate) -> tuple[float, str | None]:
        reason = malformed(update, self._layout)
        norm = 0.0 if reason else _norm(update.delta.flat)
        return norm, reason or (None if isfinite(norm) else "delta holds values that are not finite")

    def _outsized(self, norm: float, usual: float) -> str | None:
        most, ratio = self._settings.max_norm, self._settings.max_ratio
        if most is not None and norm > most:
            return f"norm {norm:.4g} is above gate.max_norm {most:.4g}"
        if usual > 0 and norm > ratio * usual:
            return f"norm {norm:.4g} is {norm / usual:.1f} times the median; gate.max_ratio is {ratio:.4g}"
        return None


def _norm(values: Tensor) -> float:
    """Return the Euclidean norm; it is finite exactly when all values are."""
    norm = float(torch.linalg.vector_norm(values))
    # Squares of huge or tiny float32 values leave its range; then float64 decides.
    return norm if 1e-15 < norm < 1e15 else float(torch.linalg.vector_norm(values.double()))
