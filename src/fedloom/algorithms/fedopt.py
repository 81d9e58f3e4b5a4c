"""FedAdagrad, FedYogi and FedAdam: an adaptive step for every parameter at the server.

    Δ = mean_k Δ_k
    m ← β₁ m + (1 − β₁) Δ
    v ← v + Δ²                                (FedAdagrad)
    v ← v − (1 − β₂) Δ² sign(v − Δ²)          (FedYogi)
    v ← β₂ v + (1 − β₂) Δ²                    (FedAdam)
    x ← x + η m / (√v + τ)

with x the global parameters, m and v slots of the same names (0 and τ² at first), η the server step
(`lr`), β₁, β₂, τ the arguments `beta1`, `beta2`, `tau`. There is no bias correction.

A parameter moves by about η a round where |Δ| ≫ τ, whatever |Δ| is, so η belongs near the distance that
one round of local training moves a parameter: around 1e-2 for adapters trained at 1e-3.

Reference: S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan,
"Adaptive Federated Optimization", arXiv 2003.00295v5, Algorithm 2.

Differs from the paper: the mean is weighted by number of examples unless `uniform` (Algorithm 2 weighs
clients alike), so that a comparison with FedAvg changes the server step and nothing else. `published=True`
has an unweighted mean, and the step of FedMLLM's code, `fedloom.algorithms.published_faults.squared_momentum`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedloom.algorithms import published_faults as faults
from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import (
    Diagnostics,
    FederatedAlgorithm,
    ServerState,
    Step,
    fraction,
    moments,
    norm,
    positive,
    server,
)
from fedloom.algorithms.entry import Entry
from fedloom.types import Tensors

SecondMoment = Callable[[Tensor, Tensor], Tensor]
"""(v, the square) → the next v."""


def fedadagrad(
    *,
    lr: float = 0.01,
    beta1: float = 0.0,
    tau: float = 1e-3,
    uniform: bool = False,
    published: bool = False,
) -> FederatedAlgorithm:
    """Make FedAdagrad, whose steps only ever shrink.

    Args:
        lr: Server step η, > 0.
        beta1: Momentum β₁ in [0, 1); the paper's experiments use none here.
        tau: Adaptivity τ, > 0: the smaller, the more steps ignore the size of Δ.
        uniform: Weigh all clients alike instead of by number of examples.
        published: Start, average and take squares as FedMLLM's code does.
    """
    return _fedopt(lambda v, square: v + square, lr, beta1, tau, uniform, published)


def fedyogi(
    *,
    lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    uniform: bool = False,
    published: bool = False,
) -> FederatedAlgorithm:
    """Make FedYogi, which forgets large deltas more slowly than FedAdam.

    Args:
        lr: Server step η, > 0.
        beta1: Momentum β₁ in [0, 1).
        beta2: Memory β₂ of the squares, in [0, 1).
        tau: Adaptivity τ, > 0.
        uniform: Weigh all clients alike instead of by number of examples.
        published: Start, average and take squares as FedMLLM's code does.
    """
    fraction(beta2=beta2)

    def second(v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - beta2) * square * torch.sign(v - square)

    return _fedopt(second, lr, beta1, tau, uniform, published)


def fedadam(
    *,
    lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    uniform: bool = False,
    published: bool = False,
) -> FederatedAlgorithm:
    """Make FedAdam; see `fedyogi` for the arguments."""
    fraction(beta2=beta2)
    return _fedopt(lambda v, square: beta2 * v + (1 - beta2) * square, lr, beta1, tau, uniform, published)


def _fedopt(
    second: SecondMoment, lr: float, beta1: float, tau: float, uniform: bool, published: bool
) -> FederatedAlgorithm:
    positive(lr=lr, tau=tau)
    fraction(beta1=beta1)
    step = faults.squared_momentum if published else adaptive_step
    return server(step(second, lr, beta1, tau), mean(uniform=uniform or published))


def adaptive_step(second: SecondMoment, lr: float, beta1: float, tau: float) -> Step:
    """Return the step of m, v and x above.

    Args:
        second: (v, Δ²) → the next v.
        lr: Server step η, > 0.
        beta1: Momentum β₁ in [0, 1).
        tau: Adaptivity τ, > 0.
    """

    def move(state: ServerState, delta: Tensor) -> tuple[Tensor, Tensors, Diagnostics]:
        m = beta1 * state.slots["m"] + (1 - beta1) * delta
        v = second(state.slots["v"], delta.square())
        step = lr * m / (v.sqrt() + tau)
        return state.params.flat + step, {"m": m, "v": v}, {"step_norm": norm(step)}

    return Step(move, moments(tau))


_MOMENTS = {"published": True, "lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}

ENTRIES = {
    "fedadagrad": Entry(
        fedadagrad,
        "server",
        "FedAdagrad",
        "As FedAvg, with Adagrad as the server's optimizer: step sizes adapt to each parameter.",
        published={"published": True, "lr": 1e-3, "tau": 1e-3},
    ),
    "fedyogi": Entry(
        fedyogi,
        "server",
        "FedYogi",
        "As FedAvg, with Yogi as the server's optimizer: step sizes adapt, more slowly than Adam's.",
        published=_MOMENTS,
    ),
    "fedadam": Entry(
        fedadam,
        "server",
        "FedAdam",
        "As FedAvg, with Adam as the server's optimizer: step sizes adapt to each parameter.",
        published=_MOMENTS,
    ),
}
