"""The gate in front of every aggregator: which updates are refused, and why."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import median
from typing import Protocol

import torch

from fedloom.params import Layout
from fedloom.types import ClientUpdate


class GateSettings(Protocol):
    """The `gate` section of an experiment."""

    @property
    def max_norm(self) -> float | None:
        """Largest norm of a delta, or None."""
        ...

    @property
    def max_ratio(self) -> float:
        """Largest norm as a multiple of the median norm of this round and of all accepted before."""
        ...


def malformed(update: ClientUpdate, layout: Layout) -> str | None:
    """Say what is wrong with an update by itself, or None: names, shapes, weight, finite values."""
    if update.delta.layout.names != layout.names:
        odd = sorted(set(update.delta.layout.names) ^ set(layout.names))
        return (
            f"names differ from the global model's, first {odd[0]!r}" if odd else "names are in another order"
        )
    if update.delta.layout.shapes != layout.shapes or update.delta.flat.shape != (layout.size,):
        return "shapes differ from the global model's"
    if not (isfinite(update.weight) and update.weight > 0):
        return f"weight {update.weight} is not finite and positive"
    for name, value in (("delta", update.delta.flat), *update.extras.items()):
        if not value.is_floating_point():
            return f"{name} holds {value.dtype}, not floating-point values"
        if not bool(torch.isfinite(value).all()):
            return f"{name} holds values that are not finite"
    return None


def refuse(
    updates: Sequence[ClientUpdate], layout: Layout, accepted: Sequence[float], settings: GateSettings
) -> dict[int, str]:
    """Decide which updates of a round to leave out.

    Args:
        updates: All updates of the round.
        layout: The global model's.
        accepted: Norms of all updates accepted in earlier rounds.
        settings: Limits on norms.

    Returns:
        Client → reason, for the refused ones only.
    """
    reasons: dict[int, str] = {}
    norms: dict[int, float] = {}
    for update in updates:
        reason = malformed(update, layout)
        if reason is not None:
            reasons[update.client] = reason
        else:
            norms[update.client] = float(torch.linalg.vector_norm(update.delta.flat.double()))
    usual = median([*accepted, *norms.values()]) if norms else 0.0
    for client, norm in norms.items():
        if settings.max_norm is not None and norm > settings.max_norm:
            reasons[client] = f"norm {norm:.4g} is above gate.max_norm {settings.max_norm:.4g}"
        elif usual > 0 and norm > settings.max_ratio * usual:
            reasons[client] = (
                f"norm {norm:.4g} is {norm / usual:.1f} times the median; gate.max_ratio is {settings.max_ratio:.4g}"
            )
    return reasons
