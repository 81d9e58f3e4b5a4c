"""Coordinate median: each value moves by the median of what clients report for it.

    Δ[j] = median_k Δ_k[j]

of the clients k whose part has value j; with an even number of them the mean of the middle two. Every client counts
alike, whatever its number of examples. Up to f faulty clients (`f`), fewer than half, cannot move a value beyond what
the others report for it.

Reference: D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", arXiv 1803.01498v2, Definition 1 and Algorithm 1, option I.

Differs from the paper: medians are of deltas after local training instead of gradients. All updates of a round are held.
A value that fewer than 2f + 1 clients report is refused like a round with fewer clients.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fedloom.algorithms.algorithm import Aggregate, Diagnostics, ServerState
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import SEVERAL, by_value, require_enough
from fedloom.wire.messages import Update


def median(*, cohort: int, f: int = 1) -> Aggregate:
    """Make the coordinate median.

    Args:
        cohort: Number of clients in a round, at least 2f + 1.
        f: Largest number of faulty clients in a round, ≥ 0; it does not change the result, only what is refused.

    Raises:
        ValueError: The cohort is too small for f.
    """
    require_enough("the median", cohort, f)

    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
        return by_value("the median", updates, f, middle), {}

    return aggregate


def middle(rows: Tensor) -> Tensor:
    """Return the median of each column, shape [K, N] → [N].

    Example:
        >>> import torch
        >>> middle(torch.tensor([[1.0, 9.0], [4.0, 2.0], [2.0, 3.0], [3.0, 1.0]]))
        tensor([2.5000, 2.5000])
    """
    ranked, k = rows.sort(dim=0).values, len(rows)
    return (ranked[(k - 1) // 2] + ranked[k // 2]) / 2


ENTRIES = {
    "median": Entry(
        median,
        "aggregate",
        "median",
        "Each value moves by the median of the clients' changes, so that a minority of faulty clients cannot drag it away.",
        opts_out=SEVERAL,
    )
}
