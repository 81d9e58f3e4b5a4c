"""Nearest-neighbor mixing (NNM): every update becomes the mean of those nearest to it, before they are aggregated.

    Δ_k ← mean of the n − f updates that are nearest to Δ_k, itself among them

with n the number of updates and f the largest number of faulty clients (`f`). Every client counts alike, whatever its
number of examples, in the aggregate behind it, too.

Reference: Y. Allouah, S. Farhadkhani, R. Guerraoui, N. Gupta, R. Pinot, J. Stephan, "Fixing by Mixing: A Recipe for Optimal
Byzantine ML under Heterogeneity", arXiv 2302.01772v1, Algorithm 2.

Differs from the paper: updates are deltas after local training instead of gradients. All updates of a round are held. Of
equal distances that of the lower client number goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor

from fedloom.algorithms.aggregate import mean_delta
from fedloom.algorithms.algorithm import Aggregate, Change, Diagnostics, ServerState
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import SEVERAL, gather, require_enough, smallest, squared_distances
from fedloom.wire.messages import Update


def nearest_mixing(*, cohort: int, f: int = 1) -> Change:
    """Make nearest-neighbor mixing.

    Args:
        cohort: Number n of clients in a round, at least 2f + 1.
        f: Largest number of faulty clients in a round, ≥ 0.

    Raises:
        ValueError: The cohort is too small for f.
    """
    require_enough("nearest-neighbor mixing", cohort, f)

    def change(inner: Aggregate) -> Aggregate:
        def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
            return inner(mix(gather("nearest-neighbor mixing", updates, f), f), state)

        return aggregate

    return change


def mix(held: list[Update], f: int) -> Iterator[Update]:
    """Yield each update with the mean of its n − f nearest, itself among them, as its delta, and weight 1."""
    for update, row in zip(held, squared_distances(held), strict=True):
        delta = mean_delta([held[k] for k in smallest(row, len(held) - f)], uniform=True)
        yield replace(update, delta=update.delta.with_flat(delta), weight=1.0)


ENTRIES = {
    "nearest-mixing": Entry(
        nearest_mixing,
        "wrapper",
        "nearest-neighbor mixing",
        "Each client's change is replaced by the mean of those nearest to it before changes are aggregated.",
        traits=frozenset({"whole vectors", "mixes"}),
        opts_out=SEVERAL,
    )
}
