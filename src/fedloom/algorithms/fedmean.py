"""FedMean: FedAvg in which all clients have the same weight, however many examples they hold.

    x ← x + η · mean_k Δ_k

with x the global parameters, Δ_k client k's delta, η the server step (`lr`). Where one client holds most
examples, FedAvg is nearly that client alone; here all clients have the same weight.

Reference: B. Xu, H. Mei, Z. Bai, J. Gong, R. Yan, G. Xie, Y. Yao, B. Fernando, X. Shu, "You Only Communicate
Once: One-shot Federated Low-Rank Adaptation of MLLM", NeurIPS 2025, openreview.net/forum?id=FoVF3iL6o3, where
one round of it is the baseline "Mean" and one round of FedAvg the baseline "FedAvg".

Differs from the paper: nothing in a run of one round; a run may have more.
"""

from __future__ import annotations

from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import fedavg


def fedmean(*, lr: float = 1.0, uniform: bool = True) -> FederatedAlgorithm:
    """Make FedMean, which has its own name so that it can be compared with FedAvg in one run.

    Args:
        lr: Server step η, > 0; 1 is the paper's.
        uniform: Weigh all clients alike; False is FedAvg.
    """
    return fedavg(lr=lr, uniform=uniform)


ENTRIES = {
    "fedmean": Entry(
        fedmean,
        "server",
        "FedMean",
        "As FedAvg, with every client counting alike however many examples it holds.",
    )
}
