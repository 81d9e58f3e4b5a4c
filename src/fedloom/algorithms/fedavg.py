"""FedAvg: average what clients learnt, weighted by how many examples they hold.

    x ← x + η · Σ_k (n_k / n) · Δ_k,   Δ_k = x_k − x

with x the global parameters (`state.params`), x_k client k's after its local epochs, n_k its number of
examples (`update.weight`), η the server step (`lr`).

Reference: H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient
Learning of Deep Networks from Decentralized Data", arXiv 1602.05629v4, Algorithm 1.

Differs from the paper: averages deltas instead of parameters, which is the same at η = 1; n is the number
of examples of the round's cohort (the corrected reading of line 8, as in later versions of the paper).
`published=True` does what FedMLLM's code (arXiv 2411.14717) does instead: the average of the clients'
parameters is meant to replace the old ones, but is added to them in every tensor except the first, so
x ← 2 x + Δ there and weights about double with every round. First is here the first name of the layout.
It is kept to show what the fault does; nothing is learnt with it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedloom.algorithms.aggregate import mean_delta, ordered
from fedloom.algorithms.base import (
    PLAIN,
    Diagnostics,
    FederatedAlgorithm,
    LocalRule,
    ServerState,
    norm,
    positive,
)
from fedloom.messages import Update
from fedloom.params import Params
from fedloom.types import Broadcast


def fedavg(
    *, lr: float = 1.0, uniform: bool = False, published: bool = False, local: LocalRule = PLAIN
) -> FederatedAlgorithm:
    """Make FedAvg.

    Args:
        lr: Server step η, > 0; 1 is the paper's.
        uniform: Weigh all clients alike instead of by number of examples.
        published: Add the average to the old parameters, as FedMLLM's code does.
        local: The client half.
    """
    positive(lr=lr)

    def init(params: Params) -> ServerState:
        return ServerState(params)

    def broadcast(state: ServerState) -> Broadcast:
        return Broadcast(state.params)

    def apply(state: ServerState, updates: Iterable[Update]) -> tuple[ServerState, Diagnostics]:
        delta = mean_delta(ordered(updates, state.params.layout), uniform=uniform)
        diagnostics = {"delta_norm": norm(delta)}
        old = _doubled(state.params) if published else state.params.flat
        # The mean is nobody else's, so the new parameters take its place: no further buffer to fill.
        params = state.params.with_flat(torch.add(old, delta, alpha=lr, out=delta))
        return ServerState(params, state.round + 1), diagnostics

    return FederatedAlgorithm(init, broadcast, apply, local)


def _doubled(params: Params) -> Tensor:
    first = params.layout.names[:1]
    return params.flat * (1 + params.layout.mask(lambda name: name not in first))
