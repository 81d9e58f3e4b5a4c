"""Trimmed mean: each value moves by the mean of what clients report for it, without the f largest and the f smallest.

    Δ[j] = mean of the Δ_k[j] that are left when the f largest and the f smallest are dropped

over the clients k whose part has value j, with f the largest number of faulty clients (`f`). Every client counts alike,
whatever its number of examples. At f = 0 it is the mean in which all count alike.

Reference: D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", arXiv 1803.01498v2, Definition 2 and Algorithm 1, option II.

Differs from the paper: f is a number of clients, the paper's β times their number; means are of deltas after local
training instead of gradients. All updates of a round are held. A value that fewer than 2f + 1 clients report is refused
like a round with fewer clients.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fedloom.algorithms.algorithm import Aggregate, Diagnostics, ServerState
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import SEVERAL, by_value, require_enough
from fedloom.wire.messages import Update


def trimmed_mean(*, cohort: int, f: int = 1) -> Aggregate:
    """Make the trimmed mean.

    Args:
        cohort: Number of clients in a round, at least 2f + 1.
        f: How many are dropped on each side of every value, ≥ 0: the largest number of faulty clients in a round.

    Raises:
        ValueError: The cohort is too small for f.
    """
    require_enough("the trimmed mean", cohort, f)

    def inner(rows: Tensor) -> Tensor:
        return rows.sort(dim=0).values[f : len(rows) - f].mean(dim=0)

    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
        return by_value("the trimmed mean", updates, f, inner), {}

    return aggregate


ENTRIES = {
    "trimmed-mean": Entry(
        trimmed_mean,
        "aggregate",
        "trimmed mean",
        "Each value moves by the mean of the clients' changes without the largest and the smallest of them.",
        opts_out=SEVERAL,
    )
}
