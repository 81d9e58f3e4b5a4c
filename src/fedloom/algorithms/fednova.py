"""FedNova: average what each client learned per step, so that working more does not count for more.

    x ← x + η · τ_eff · Σ_i p_i Δ_i / τ_i,   τ_eff = Σ_i p_i τ_i

with x the global parameters, Δ_i client i's delta, p_i its share of the cohort's examples, τ_i the number
of its local steps (extra `steps`), η the server step (`lr`). Where all τ_i agree this is FedAvg; where
they differ FedAvg minimizes an objective in which client i counts p_i τ_i instead of p_i.

Reference: J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, "Tackling the Objective Inconsistency Problem
in Heterogeneous Federated Optimization", arXiv 2007.07481v3.

Differs from the paper: the local optimizer is a black box, so a client's normalizer ‖a_i‖₁ is always τ_i.
That is exact for plain SGD with one step size, and up to a factor common to all clients (which cancels)
for a schedule that spans the local steps alike. For SGD with momentum ρ the paper has
‖a_i‖₁ = (τ_i − ρ (1 − ρ^τ_i) / (1 − ρ)) / (1 − ρ), which nears τ_i / (1 − ρ) for many steps. Adam is not a
linear sum of gradients and has no such a_i; its path is about as long as its steps are many, which
makes τ_i the natural choice. p_i is taken within the cohort.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedloom.algorithms.aggregate import by_size, extra, means
from fedloom.algorithms.algorithm import (
    Aggregate,
    Diagnostics,
    Extra,
    FederatedAlgorithm,
    LocalWork,
    ServerState,
    positive,
    server,
)
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import averaging
from fedloom.algorithms.local_rule import LocalRule
from fedloom.types import Tensors
from fedloom.wire.messages import Update


def per_step(*, uniform: bool = False) -> Aggregate:
    """Return the aggregate τ_eff · Σ_i p_i Δ_i / τ_i."""

    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
        delta, effective = means(
            updates,
            lambda update: (by_size(update, uniform=uniform), update.delta.flat / _steps(update)),
            lambda update: (by_size(update, uniform=uniform), extra(update, "steps", ())),
        ).values
        return float(effective) * delta, {"effective_steps": float(effective)}

    return aggregate


def fednova(*, lr: float = 1.0, uniform: bool = False) -> FederatedAlgorithm:
    """Make FedNova.

    Args:
        lr: Server step η, > 0; 1 is the paper's.
        uniform: Weigh all clients alike instead of by number of examples.
    """
    positive(lr=lr)
    return server(averaging(lr), per_step(uniform=uniform), LocalRule(finish=_finish), _extras)


def _extras(work: LocalWork) -> Mapping[str, Extra]:
    return {"steps": Extra((), most=work.steps, least=1)}


def _steps(update: Update) -> float:
    steps = float(extra(update, "steps", ()))
    if steps < 1:
        raise ValueError(f"client {update.client} took {steps} local steps; an update needs at least one")
    return steps


def _finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
    return {"steps": torch.tensor(float(steps))}, {}


ENTRIES = {
    "fednova": Entry(
        fednova,
        "server",
        "FedNova",
        "As FedAvg, with changes normalized by how many steps each client took.",
        traits=frozenset({"own aggregate", "whole vectors", "extras"}),
    )
}
