"""FedAvg: average what clients learned, weighted by how many examples they hold.

    x ← x + η · Σ_k (n_k / n) · Δ_k,   Δ_k = x_k − x

with x the global parameters (`state.params`), x_k client k's after its local epochs, n_k its number of
examples (`update.weight`), η the server step (`lr`).

Reference: H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient
Learning of Deep Networks from Decentralized Data", arXiv 1602.05629v4, Algorithm 1.

Differs from the paper: averages deltas instead of parameters, which is the same at η = 1; n is the number
of examples of the round's cohort (the corrected reading of line 8, as in later versions of the paper).
`published=True` takes the step of FedMLLM's code, `fedloom.algorithms.published_faults.adding`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.algorithms import published_faults as faults
from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import Diagnostics, FederatedAlgorithm, ServerState, Step, positive, server
from fedloom.algorithms.entry import Entry
from fedloom.types import Tensors


def averaging(lr: float) -> Step:
    """Return the step x ← x + η Δ."""

    def move(state: ServerState, delta: Tensor) -> tuple[Tensor, Tensors, Diagnostics]:
        # Nothing else uses the delta, so its buffer takes the new parameters.
        return torch.add(state.params.flat, delta, alpha=lr, out=delta), {}, {}

    return Step(move)


def fedavg(*, lr: float = 1.0, uniform: bool = False, published: bool = False) -> FederatedAlgorithm:
    """Make FedAvg.

    Args:
        lr: Server step η, > 0; 1 is the paper's.
        uniform: Weigh all clients alike instead of by number of examples.
        published: Add the average to the old parameters, as FedMLLM's code does.
    """
    positive(lr=lr)
    return server(faults.adding(lr) if published else averaging(lr), mean(uniform=uniform))


ENTRIES = {
    "fedavg": Entry(
        fedavg,
        "server",
        "FedAvg",
        "Federated averaging: clients train, and the server averages their changes, weighted by their numbers of examples.",
        published={"published": True},
    )
}
