"""FedAvgM: FedAvg with momentum at the server.

    v ← β v + Δ,   x ← x + η v,   Δ = Σ_k (n_k / n) Δ_k

with x the global parameters, v the velocity (slot `velocity`, zero at first), β the `momentum`, η the
server step (`lr`), Δ the mean delta. A steady Δ ends up multiplied by 1 / (1 − β): ten at the paper's 0.9.

Reference: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", arXiv 1909.06335v1.

Differs from the paper: nothing but the sign (there Δ points from the new parameters to the old).
`published=True` takes the step of FedMLLM's code, `fedloom.algorithms.published_faults.averaged_momentum`.
"""

from __future__ import annotations

from torch import Tensor

from fedloom.algorithms import published_faults as faults
from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import (
    Diagnostics,
    FederatedAlgorithm,
    ServerState,
    Step,
    fraction,
    norm,
    positive,
    server,
    zero_velocity,
)
from fedloom.algorithms.entry import Entry
from fedloom.types import Tensors


def momentum_step(momentum: float, lr: float) -> Step:
    """Return the step v ← β v + Δ, x ← x + η v."""

    def move(state: ServerState, delta: Tensor) -> tuple[Tensor, Tensors, Diagnostics]:
        velocity = momentum * state.slots["velocity"] + delta
        return state.params.flat + lr * velocity, {"velocity": velocity}, {"step_norm": lr * norm(velocity)}

    return Step(move, zero_velocity)


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
    step = faults.averaged_momentum if published else momentum_step
    return server(step(momentum, lr), mean(uniform=uniform))


ENTRIES = {
    "fedavgm": Entry(
        fedavgm,
        "server",
        "FedAvgM",
        "As FedAvg, with momentum at the server.",
        published={"published": True, "momentum": 0.9, "lr": 1.0},
    )
}
