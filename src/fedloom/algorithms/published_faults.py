"""Faults of published code, kept so that a paper's numbers can be reproduced; nothing new should be built on them.

Each is what FedMLLM's public code (B. Xu et al., arXiv 2411.14717v2) does in place of the equations of a paper's page.
FedVLMBench (arXiv 2506.09638) has the same server optimizers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import Diagnostics, ServerState, Step, moments, norm, zero_velocity
from fedloom.types import Tensors

LAYERS = 28
"""The number of layers that the code assumes, which is Qwen2-7B's."""


def adding(lr: float) -> Step:
    """Return the step x ← 2 x + η Δ for all tensors but the first of the layout, where it is x ← x + η Δ.

    The average of the clients' parameters is meant to replace the old ones, but is added to them in every tensor except
    the first, so weights about double with every round, and the model is soon destroyed.
    """

    def move(state: ServerState, delta: Tensor) -> tuple[Tensor, Tensors, Diagnostics]:
        first = state.params.layout.names[:1]
        old = state.params.flat * (1 + state.params.layout.mask(lambda name: name not in first))
        return torch.add(old, delta, alpha=lr, out=delta), {}, {}

    return Step(move)


def averaged_momentum(momentum: float, lr: float) -> Step:
    """Return the step v ← β v + (1 − β) Δ, x ← x + η v, in which the first v is the whole first Δ.

    The first delta, entering undamped, is added about 1 / (1 − β) times over a run and every later one about once, which
    goes far to explain that paper's low FedAvgM scores.
    """

    def move(state: ServerState, delta: Tensor) -> tuple[Tensor, Tensors, Diagnostics]:
        entering = 1 - momentum if state.round > 0 else 1.0
        velocity = momentum * state.slots["velocity"] + entering * delta
        return state.params.flat + lr * velocity, {"velocity": velocity}, {"step_norm": lr * norm(velocity)}

    return Step(move, zero_velocity)


def squared_momentum(second: Callable[[Tensor, Tensor], Tensor], lr: float, beta1: float, tau: float) -> Step:
    """Return the step of `fedloom.algorithms.fedopt` with m² in place of Δ² in every line for v.

    The whole first Δ is the first m, without the factor 1 − β₁. FedAdagrad there has no momentum.

    Args:
        second: (v, the square) → the next v.
        lr: Server step η, > 0.
        beta1: Momentum β₁ in [0, 1).
        tau: Adaptivity τ, > 0.
    """

    def move(state: ServerState, delta: Tensor) -> tuple[Tensor, Tensors, Diagnostics]:
        m = beta1 * state.slots["m"] + (1.0 if state.round == 0 else 1 - beta1) * delta
        v = second(state.slots["v"], m.square())
        step = lr * m / (v.sqrt() + tau)
        return state.params.flat + step, {"m": m, "v": v}, {"step_norm": norm(step)}

    return Step(move, moments(tau))
