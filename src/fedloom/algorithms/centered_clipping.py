"""Centered clipping: average how far clients lie from a center, with every distance clipped.

    v ← v + mean_k (Δ_k − v) · min(1, τ / ‖Δ_k − v‖),   `steps` times from v = 0;   Δ = v

with τ the argument `bound`. Every client counts alike, whatever its number of examples; fewer than half of them can be
faulty (`f`). A faulty client moves the result by at most τ / n in each step, n the number of clients.

Reference: S. P. Karimireddy, L. He, M. Jaggi, "Learning from History for Byzantine Robust Optimization",
arXiv 2012.10333v3, section 4, Algorithm 2.

Differs from the paper: v starts at 0 in every round instead of at the last round's aggregate, since an aggregate keeps
nothing between rounds, and clients send deltas without a momentum of their own; so the result is at most `steps` · τ long.
All updates of a round are held.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedloom.algorithms.aggregate import means
from fedloom.algorithms.algorithm import Aggregate, Diagnostics, ServerState, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import SEVERAL, distance, gather, require_enough
from fedloom.wire.messages import Update


def centered_clipping(*, cohort: int, f: int = 1, bound: float = 1.0, steps: int = 3) -> Aggregate:
    """Make centered clipping.

    Args:
        cohort: Number of clients in a round, at least 2f + 1.
        f: Largest number of faulty clients in a round, ≥ 0; it does not change the result, only what is refused.
        bound: Longest distance τ from the center that counts, > 0: near the distance between honest clients.
        steps: Steps from zero, ≥ 1.

    Raises:
        ValueError: The cohort is too small for f, or an argument is out of range.
    """
    require_enough("centered clipping", cohort, f)
    positive(bound=bound, steps=steps)

    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
        held = gather("centered clipping", updates, f)
        center, scales = torch.zeros_like(held[0].delta.flat), dict[int, float]()
        for _ in range(steps):
            scales = {one.client: bound / max(bound, distance(one.delta.flat, center)) for one in held}
            center = (
                center
                + means(
                    held, lambda one, v=center, of=scales: (1.0, (one.delta.flat - v) * of[one.client])
                ).values[0]
            )
        return center, {"clipped": sum(scale < 1 for scale in scales.values()) / len(held)}

    return aggregate


ENTRIES = {
    "centered-clipping": Entry(
        centered_clipping,
        "aggregate",
        "centered clipping",
        "The clients' changes are averaged after their distances from a common center were clipped.",
        traits=frozenset({"whole vectors"}),
        opts_out=SEVERAL,
    )
}
