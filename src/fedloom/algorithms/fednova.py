"""FedNova: average what each client learnt per step, so that working more does not count for more.

    x ← x + η · τ_eff · Σ_i p_i Δ_i / τ_i,   τ_eff = Σ_i p_i τ_i

with x the global parameters, Δ_i client i's delta, p_i its share of the cohort's examples, τ_i the number
of its local steps (extra `steps`), η the server step (`lr`). Where all τ_i agree this is FedAvg; where
they differ FedAvg minimises an objective in which client i counts p_i τ_i instead of p_i.

Reference: J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, "Tackling the Objective Inconsistency Problem
in Heterogeneous Federated Optimization", arXiv 2007.07481v3.

Differs from the paper: the local optimiser is a black box, so a client's normaliser ‖a_i‖₁ is always τ_i.
That is exact for plain SGD with one step size, and up to a factor common to all clients (which cancels)
for a schedule that spans the local steps alike. For SGD with momentum ρ the paper has
‖a_i‖₁ = (τ_i − ρ (1 − ρ^τ_i) / (1 − ρ)) / (1 − ρ), which nears τ_i / (1 − ρ) for many steps. Adam is not a
linear sum of gradients and has no such a_i; its path is about as long as its steps are many, which
makes τ_i the natural choice. p_i is taken within the cohort.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from fedloom.algorithms.aggregate import by_size, extra, means, ordered
from fedloom.algorithms.base import (
    PLAIN,
    Diagnostics,
    Extra,
    FederatedAlgorithm,
    LocalWork,
    ServerState,
    norm,
    positive,
)
from fedloom.messages import Update
from fedloom.params import Params
from fedloom.types import Broadcast, Tensors


def fednova(*, lr: float = 1.0, uniform: bool = False) -> FederatedAlgorithm:
    """Make FedNova.

    Args:
        lr: Server step η, > 0; 1 is the paper's.
        uniform: Weigh all clients alike instead of by number of examples.
    """
    positive(lr=lr)

    def init(params: Params) -> ServerState:
        return ServerState(params)

    def broadcast(state: ServerState) -> Broadcast:
        return Broadcast(state.params)

    def apply(state: ServerState, updates: Iterable[Update]) -> tuple[ServerState, Diagnostics]:
        found = means(
            ordered(updates, state.params.layout),
            lambda update: (by_size(update, uniform=uniform), update.delta.flat / _steps(update)),
            lambda update: (by_size(update, uniform=uniform), extra(update, "steps", ())),
        )
        effective = float(found.values[1])
        delta = effective * found.values[0]
        params = state.params.with_flat(state.params.flat + lr * delta)
        diagnostics = {"delta_norm": norm(delta), "effective_steps": effective}
        return ServerState(params, state.round + 1), diagnostics

    return FederatedAlgorithm(init, broadcast, apply, PLAIN._replace(finish=_finish), _extras)


def _extras(work: LocalWork) -> Mapping[str, Extra]:
    return {"steps": Extra((), most=work.steps, least=1)}


def _steps(update: Update) -> float:
    steps = float(extra(update, "steps", ()))
    if steps < 1:
        raise ValueError(f"client {update.client} took {steps} local steps; an update needs at least one")
    return steps


def _finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
    return {"steps": torch.tensor(float(steps))}, {}
