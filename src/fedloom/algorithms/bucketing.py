"""Bucketing: updates are put into buckets at random, and the aggregate gets the mean of each bucket.

    draw an order of the n updates;   bucket b = mean of the next s of them;   Δ = aggregate of the ⌈n / s⌉ buckets

with s the argument `size`. Buckets differ less than clients, which robust aggregates need; f faulty clients spoil at most f
buckets, so the aggregate's f stays, and its n becomes ⌈n / s⌉. All clients have the same weight: where the aggregate is a
weighted mean, the weight of a bucket is the number of its clients. In figures a bucket has the lowest client number in it.

Reference: S. P. Karimireddy, L. He, M. Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
arXiv 2006.09365v5, Algorithm 1.

Differs from the paper: a last bucket with fewer than s updates is the mean of those. All updates of a round are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedloom.algorithms.aggregate import mean_delta
from fedloom.algorithms.algorithm import Aggregate, Change, Diagnostics, ServerState, TooFew, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import ALIKE, gather
from fedloom.params import Params
from fedloom.seeds import stream
from fedloom.system.errors import UserError
from fedloom.wire.messages import Update


def bucketing(*, cohort: int, seed: int, stage: int, size: int = 2) -> Change:
    """Return the wrapper that puts updates into buckets.

    Args:
        cohort: Number n of clients in a round.
        seed: The experiment's seed; with stage and round it names the draw of the order.
        stage: Number of the strategy's stage.
        size: Clients s in a bucket, ≥ 1.

    Raises:
        UserError: From the change: the aggregate needs more updates than a cohort has buckets.
    """
    positive(size=size)

    def change(inner: Aggregate) -> Aggregate:
        _require_enough(inner, cohort, size)

        def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
            held = gather("bucketing", updates, f=0)
            drawn = stream(seed, f"buckets/{stage}", round=state.round).permutation(len(held))
            means = list(bucket_means(held, drawn.tolist(), size))
            delta, figures = inner(sorted(means, key=lambda one: one.client), state)
            return delta, {**figures, "buckets": float(len(means))}

        return aggregate

    return change


def bucket_means(held: Sequence[Update], order: Sequence[int], size: int) -> Iterator[Update]:
    """Yield the mean of each bucket.

    Args:
        held: The updates.
        order: Their indices in the order in which they fill buckets.
        size: Updates in a bucket; the last may have fewer.
    """
    for start in range(0, len(order), size):
        bucket = [held[k] for k in sorted(order[start : start + size])]
        delta = mean_delta(bucket, uniform=True)
        yield replace(bucket[0], delta=bucket[0].delta.with_flat(delta), weight=float(len(bucket)))


def _require_enough(inner: Aggregate, cohort: int, size: int) -> None:
    """Raise UserError if the aggregate needs more updates than a cohort has buckets."""
    zero, count = Params.of({"x": torch.zeros(1)}), -(-cohort // size)
    try:
        inner([Update(k, zero, 1.0) for k in range(count)], ServerState(zero))
    except TooFew as error:
        raise UserError(
            f"algorithms.bucketing: {cohort} clients in a round make {count} buckets of {size}, which count as clients in "
            f"what follows: {error}"
        ) from error


ENTRIES = {
    "bucketing": Entry(
        bucketing,
        "wrapper",
        "bucketing",
        "Clients are put into buckets at random, and the mean change of each bucket is aggregated.",
        traits=frozenset({"whole vectors", "mixes"}),
        opts_out=ALIKE,
    )
}
