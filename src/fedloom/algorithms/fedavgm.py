"""FedAvgM: FedAvg with momentum at the server.

    v ← β v + Δ,   x ← x + η v,   Δ = Σ_k (n_k / n) Δ_k

with x the global parameters, v the velocity (slot `velocity`, zero at first), β the `momentum`, η the
server step (`lr`), Δ the mean delta. A steady Δ ends up multiplied by 1 / (1 − β): ten at the paper's 0.9.

Reference: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", arXiv 1909.06335v1.

Differs from the paper: nothing but the sign (there Δ points from the new parameters to the old).
`published=True` does what FedMLLM's code (arXiv 2411.14717) does instead: v is the whole first Δ, then
v ← β v + (1 − β) Δ. There the first delta, entering undamped, is added about 1 / (1 − β) times over a run
and every later one about once, which goes far to explain that paper's low FedAvgM scores.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedloom.algorithms.aggregate import mean_delta, ordered
from fedloom.algorithms.base import (
    PLAIN,
    Diagnostics,
    FederatedAlgorithm,
    ServerState,
    fraction,
    norm,
    positive,
    zeros_like,
)
from fedloom.messages import Update
from fedloom.params import Params
from fedloom.types import Broadcast


def fedavgm(
    *, momentum: float = 0.9, lr: float = 1.0, uniform: bool = False, published: bool = False
) -> FederatedAlgorithm:
    """Make FedAvgM.

    Args:
        momentum: β in [0, 1); 0 is FedAvg.
        lr: Server step η, > 0.
        uniform: Weigh all clients alike instead of by number of examples.
        published: Average deltas into the velocity as FedMLLM's code does.
    """
    fraction(momentum=momentum)
    positive(lr=lr)

    def init(params: Params) -> ServerState:
        return ServerState(params, slots={"velocity": zeros_like(params)})

    def broadcast(state: ServerState) -> Broadcast:
        return Broadcast(state.params)

    def apply(state: ServerState, updates: Iterable[Update]) -> tuple[ServerState, Diagnostics]:
        delta = mean_delta(ordered(updates, state.params.layout), uniform=uniform)
        entering = 1 - momentum if published and state.round > 0 else 1.0
        velocity = momentum * state.slots["velocity"] + entering * delta
        params = state.params.with_flat(state.params.flat + lr * velocity)
        diagnostics = {"delta_norm": norm(delta), "step_norm": lr * norm(velocity)}
        return ServerState(params, state.round + 1, {"velocity": velocity}), diagnostics

    return FederatedAlgorithm(init, broadcast, apply, PLAIN)
