"""Geometric median (RFA): move by the vector with the least sum of distances to the clients' changes.

    Δ = argmin_z Σ_k ‖z − Δ_k‖,   found from the mean by   β_k = 1 / max(ν, ‖z − Δ_k‖),   z ← Σ_k β_k Δ_k / Σ_k β_k

(the smoothed Weiszfeld algorithm), with ν the argument `smoothing` and at most `steps` steps. Every client counts alike,
whatever its number of examples; fewer than half of them can be faulty (`f`).

Reference: K. Pillutla, S. M. Kakade, Z. Harchaoui, "Robust Aggregation for Federated Learning", arXiv 1912.13445v2,
Algorithms 1 and 2.

Differs from the paper: clients count alike instead of by number of examples, and the server sees all updates, which it
holds, instead of sums behind secure aggregation. The paper stops after a few steps; these go on until z moves by less than
a millionth of the median distance, since a step from the mean takes away only a part of what a very long update did.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fedloom.algorithms.aggregate import mean_delta, means
from fedloom.algorithms.algorithm import Aggregate, Diagnostics, ServerState, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import SEVERAL, distance, gather, require_enough
from fedloom.wire.messages import Update

STILL = 1e-6
"""Share of the median distance from the clients; the search ends when a step is shorter."""


def geometric_median(*, cohort: int, f: int = 1, steps: int = 100, smoothing: float = 1e-6) -> Aggregate:
    """Make the geometric median.

    Args:
        cohort: Number of clients in a round, at least 2f + 1.
        f: Largest number of faulty clients in a round, ≥ 0; it does not change the result, only what is refused.
        steps: Most steps of the search, ≥ 1.
        smoothing: Smallest distance ν that is divided by, > 0.

    Raises:
        ValueError: The cohort is too small for f, or an argument is out of range.
    """
    require_enough("the geometric median", cohort, f)
    positive(steps=steps, smoothing=smoothing)

    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
        held = gather("the geometric median", updates, f)
        center = mean_delta(held, uniform=True)
        for step in range(1, steps + 1):
            before, away = center, {update.client: distance(update.delta.flat, center) for update in held}
            center = means(
                held,
                lambda update, away=away: (1 / max(smoothing, away[update.client]), update.delta.flat),
            ).values[0]
            if step == steps or distance(center, before) <= STILL * sorted(away.values())[len(held) // 2]:
                return center, {"weiszfeld_steps": float(step)}
        raise AssertionError("there is at least one step")

    return aggregate


ENTRIES = {
    "geometric-median": Entry(
        geometric_median,
        "aggregate",
        "geometric median",
        "The model moves by the vector with the least sum of distances to the clients' changes.",
        traits=frozenset({"whole vectors"}),
        opts_out=SEVERAL,
    )
}
