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
does what FedMLLM's code (arXiv 2411.14717) does: an unweighted mean; the whole first Δ as first m, without
the factor 1 − β₁; and m² in place of Δ² in every line for v, so that v follows the momentum. FedAdagrad
there has no momentum, so only the mean differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

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

    def init(params: Params) -> ServerState:
        zeros = zeros_like(params)
        return ServerState(params, slots={"m": zeros, "v": zeros + tau**2})

    def broadcast(state: ServerState) -> Broadcast:
        return Broadcast(state.params)

    def apply(state: ServerState, updates: Iterable[Update]) -> tuple[ServerState, Diagnostics]:
        delta = mean_delta(ordered(updates, state.params.layout), uniform=uniform or published)
        entering = 1.0 if published and state.round == 0 else 1 - beta1
        m = beta1 * state.slots["m"] + entering * delta
        v = second(state.slots["v"], (m if published else delta).square())
        step = lr * m / (v.sqrt() + tau)
        params = state.params.with_flat(state.params.flat + step)
        diagnostics = {"delta_norm": norm(delta), "step_norm": norm(step)}
        return ServerState(params, state.round + 1, {"m": m, "v": v}), diagnostics

    return FederatedAlgorithm(init, broadcast, apply, PLAIN)
