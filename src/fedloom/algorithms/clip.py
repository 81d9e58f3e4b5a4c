"""Norm clipping: no client's change has a norm above a bound when it reaches the aggregate.

    Δ_k ← Δ_k · min(1, C / ‖Δ_k‖)

with C the argument `bound`. Weights, and what clients send besides their delta, stay as they are. A delta within the bound
keeps its bits.

Reference: Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, "Can You Really Backdoor Federated Learning?",
arXiv 1911.07963v2, section 4 (norm thresholding of updates).

Differs from the paper: nothing; the weak noise that it adds to clipping is not here (see `fedloom.algorithms.dp`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torch import Tensor

from fedloom.algorithms.algorithm import Aggregate, Change, Diagnostics, ServerState, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import float64_norm
from fedloom.wire.messages import Update


def clip(*, bound: float = 1.0) -> Change:
    """Make norm clipping, which passes updates on one by one.

    Args:
        bound: Longest delta C, > 0.
    """
    positive(bound=bound)

    def change(inner: Aggregate) -> Aggregate:
        def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
            stream, share = clipping(updates, bound)
            delta, figures = inner(stream, state)
            return delta, {**figures, "clipped": share()}

        return aggregate

    return change


def clipping(updates: Iterable[Update], bound: float) -> tuple[Iterator[Update], Callable[[], float]]:
    """Clip the deltas of a stream of updates, one by one.

    Returns:
        The clipped stream, and a function that returns the share of its updates so far that were clipped.
    """
    counts = [0, 0]

    def passing() -> Iterator[Update]:
        for update in updates:
            flat = update.delta.flat
            size = float64_norm(flat)
            counts[size > bound] += 1
            yield (
                replace(update, delta=update.delta.with_flat(flat * (bound / size)))
                if size > bound
                else update
            )

    return passing(), lambda: counts[1] / max(1, sum(counts))


ENTRIES = {
    "clip": Entry(
        clip,
        "wrapper",
        "clipping",
        "A client's change with a norm above a bound is scaled down to the bound before changes are aggregated.",
    )
}
