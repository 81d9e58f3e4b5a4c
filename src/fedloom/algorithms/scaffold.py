"""SCAFFOLD: control variates that correct client drift in every local step.

    local step      w ← w − η_l (g − c_i + c)
    client's next   c_i⁺ = mean of its g over the local steps
    server          x ← x + η_g · mean_{i∈S} Δ_i,      c ← c + (|S| / N) · mean_{i∈S} (c_i⁺ − c_i)

with x the global parameters, g a client's gradient, c_i what client i remembers (memory `control`, zero
at first), c the server's (slot and extra `control`), S the cohort, N the number of all clients
(`clients`), η_g the server step (`lr`). A client sends c_i⁺ − c_i as extra `control`.

Reference: S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "SCAFFOLD:
Stochastic Controlled Averaging for Federated Learning", arXiv 1910.06378v4, Algorithm 1.

Differs from the paper: c_i⁺ is the mean of the client's own gradients along its path. Under plain SGD with
a constant step η_l and K steps that is exactly option II, c_i − c + (x − w) / (K η_l); unlike option II it
stays a gradient when the local optimizer is AdamW, decays weights or follows a schedule. Gradients are
those after clipping. Under AdamW the corrected gradient passes through the optimizer's own scaling, which
the paper's analysis does not cover. With `uniform=False` both means are weighted by number of examples, so that the
objective is FedAvg's; with partial cohorts c is then only roughly the weighted mean of all c_i.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedloom.algorithms.aggregate import by_size, extra, mean, means_alongside
from fedloom.algorithms.algorithm import (
    Aggregate,
    Diagnostics,
    Extra,
    FederatedAlgorithm,
    LocalWork,
    ServerState,
    norm,
    positive,
    zeros_like,
)
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import LocalRule
from fedloom.params import Params
from fedloom.types import Broadcast, Tensors
from fedloom.wire.messages import Update


def scaffold(*, clients: int, lr: float = 1.0, uniform: bool = True) -> FederatedAlgorithm:
    """Make SCAFFOLD.

    Args:
        clients: Number N of all clients, in the cohort or not, ≥ 1.
        lr: Server step η_g, > 0.
        uniform: Weigh all clients alike, as the paper does, instead of by number of examples.
    """
    positive(clients=clients, lr=lr)

    def init(params: Params) -> ServerState:
        return ServerState(params, slots={"control": zeros_like(params)})

    def broadcast(state: ServerState) -> Broadcast:
        return Broadcast(state.params, {"control": state.slots["control"]})

    def combine(
        state: ServerState, updates: Iterable[Update], aggregate: Aggregate
    ) -> tuple[ServerState, Diagnostics]:
        shape = (state.params.layout.size,)
        stream, change = means_alongside(
            updates, lambda update: (by_size(update, uniform=uniform), extra(update, "control", shape))
        )
        delta, figures = aggregate(stream, state)
        changes = change()
        if changes.clients > clients:
            raise ValueError(f"a cohort of {changes.clients} clients, but there are only {clients} in all")
        params = state.params.with_flat(state.params.flat + lr * delta)
        control = state.slots["control"] + changes.clients / clients * changes.values[0]
        figures = {"delta_norm": norm(delta), "control_norm": norm(control), **figures}
        return ServerState(params, state.round + 1, {"control": control}), figures

    rule = LocalRule(_begin, _correct, _finish)
    return FederatedAlgorithm(init, broadcast, combine, rule, _extras, mean(uniform=uniform))


def _extras(work: LocalWork) -> Mapping[str, Extra]:
    # c_i⁺ and c_i are means of gradients, so the norm of their difference is at most twice that of a gradient.
    return {"control": Extra((work.values,), most=2 * work.gradient)}


def _begin(sent: Broadcast, memory: Tensors) -> Tensors:
    server = sent.extras["control"]
    zeros = torch.zeros_like(server)
    own = memory.get("control", zeros)
    return {"own": own, "shift": server - own, "total": zeros}


def _correct(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
    return grads + carry["shift"], {**carry, "total": carry["total"] + grads}


def _finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
    own = carry["total"] / steps
    return {"control": own - carry["own"]}, {"control": own}


ENTRIES = {
    "scaffold": Entry(
        scaffold,
        "server",
        "SCAFFOLD",
        "As FedAvg, with control variates that correct each client's drift from the others.",
        traits=frozenset({"own aggregate", "whole vectors", "extras"}),
    )
}
