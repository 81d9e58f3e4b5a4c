"""FedProx: FedAvg with a pull of every client back to its start.

    client k minimizes  F_k(w) + (μ/2) ‖w − x‖²,   so each step sees  g + μ (w − x)

with x the broadcast parameters, w the client's own, g the gradient of its loss, μ the strength (`mu`).

Reference: T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in
Heterogeneous Networks", arXiv 1812.06127v5, Algorithm 2.

Differs from the paper: the cohort is not drawn by size, so the average is weighted by number of examples
instead (the paper draws client k with probability p_k and averages uniformly); the pull is added to the
gradient in closed form after clipping, so clipping never weakens it; γ-inexact local solutions are simply
a fixed amount of local work. `published=True` averages as FedMLLM's code does (see `fedavg`) and clips the
pull together with the gradient, as that code and FedVLMBench's do (see `fedloom.algorithms.local_rule.clipped`).
"""

from __future__ import annotations

from torch import Tensor

from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import fedavg
from fedloom.algorithms.local_rule import LocalRule, clipped
from fedloom.types import Broadcast, Tensors


def proximal(mu: float, mask: Tensor | None = None) -> LocalRule:
    """Make the local rule g ← g + μ · mask · (w − x).

    Args:
        mu: Strength μ, ≥ 0; 0 leaves training alone.
        mask: Factor of each value, shape [P]; None is 1 for all.

    Raises:
        ValueError: mu is negative or not a number.

    Example:
        >>> import torch
        >>> from fedloom.params import Params
        >>> rule = proximal(0.5)
        >>> carry = rule.begin(Broadcast(Params.of({"a": torch.tensor([1.0])})), {})
        >>> rule.correct(torch.tensor([0.0]), torch.tensor([3.0]), carry)[0]
        tensor([1.])
    """
    if not mu >= 0:
        raise ValueError(f"mu is {mu}; it must be zero or a positive number")

    def begin(sent: Broadcast, memory: Tensors) -> Tensors:
        start = sent.params.flat
        return {"start": start} if mask is None else {"start": start, "mask": mask.to(start.device)}

    def correct(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
        away = params - carry["start"]
        if mask is not None:
            away = away * carry["mask"]
        return grads + mu * away, carry

    return LocalRule(begin, correct)


def fedprox(
    *, mu: float = 0.01, lr: float = 1.0, uniform: bool = False, published: bool = False
) -> FederatedAlgorithm:
    """Make FedProx.

    Args:
        mu: Strength μ of the pull, ≥ 0; 0 is FedAvg.
        lr: Server step, > 0.
        uniform: Weigh all clients alike instead of by number of examples.
        published: Add the average to the old parameters and clip the pull too, as FedMLLM's code does.
    """
    rule = proximal(mu)
    local = clipped(rule) if published else rule
    return fedavg(lr=lr, uniform=uniform, published=published)._replace(local=local)


def pull(*, mu: float = 0.01, published: bool = False) -> LocalRule:
    """Make FedProx's rule as a part for any algorithm.

    Args:
        mu: Strength μ of the pull, ≥ 0.
        published: Clip the pull together with the gradient, as FedMLLM's code does.
    """
    return clipped(proximal(mu)) if published else proximal(mu)


ENTRIES = {
    "fedprox": Entry(
        fedprox,
        "server",
        "FedProx",
        "As FedAvg, with a pull that keeps each client near the shared model while it trains.",
        published={"published": True, "mu": 0.01},
    ),
    "proximal": Entry(
        pull,
        "rule",
        "proximal",
        "A pull keeps each client near the shared model while it trains (FedProx).",
        published={"published": True, "mu": 0.01},
    ),
}
