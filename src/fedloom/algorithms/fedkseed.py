"""FedKSeed: clients and server exchange K numbers in place of parameters, one for each of K directions drawn from seeds.

    step           draw j of 1 … K,   g = (F(w + ε z_j) − F(w − ε z_j)) / 2ε,   w ← w − η g z_j,   a_j ← a_j + η g
    server         A ← A + Σ_k (n_k / n) · a^k,   x = x_0 − Σ_j A_j z_j

with z_j ~ N(0, I) the direction of seed j, which everybody can draw, F the mean loss of a client's batch, ε the argument
`eps`, η the clients' learning rate times the argument `rate`, a^k what client k sends (extra `sums`, shape [K]), zero at the
start of a round, and A the server's sums (slot and extra `sums`), from which each client rebuilds x by the same replay. x_0 is
the start (slot).

Reference: Z. Qin, D. Chen, B. Qian, B. Ding, Y. Li, S. Deng, "Federated Full-Parameter Tuning of Billion-Sized Language
Models with Communication Cost under 18 Kilobytes", arXiv 2312.06353v5, Algorithm 1.

Differs from the paper: it moves what the strategy trains, such as adapters, not all weights; the numbers hold the learning
rate, so it may follow a schedule; K is 64 by default, not 4096, since a replay draws each direction anew; the server
sends the sums, not every client's history. Where `train.clip` shortens g z_j, a_j gets the shortened g. The replay is that
of plain SGD: with weight decay or AdamW clients would move where no replay leads. The variant FedKSeed-Pro, which draws
useful seeds more often, is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedloom.algorithms.aggregate import by_size, extra, mean, means
from fedloom.algorithms.algorithm import (
    Aggregate,
    Diagnostics,
    Extra,
    FederatedAlgorithm,
    LocalWork,
    ServerState,
    norm,
    positive,
)
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import LocalRule, Probe
from fedloom.params import Params
from fedloom.seeds import torch_stream
from fedloom.types import Broadcast, Tensors
from fedloom.wire.messages import Update


def direction(seed: int, number: int, size: int) -> Tensor:
    """Return the direction of one of the seeds, shape [size]; drawn on the CPU, so that it is the same everywhere."""
    return torch.randn(size, generator=torch_stream(seed, "fedkseed", step=number))


def replay(start: Tensor, sums: Tensor, seed: int) -> Tensor:
    """Return start − Σ_j sums_j z_j, shape [P]: the same bits for equal arguments."""
    flat = start.clone()
    for number in range(len(sums)):
        if total := float(sums[number]):
            flat.sub_(direction(seed, number, len(flat)), alpha=total)
    return flat


def fedkseed(
    *, seed: int, seeds: int = 64, eps: float = 5e-4, rate: float = 1.0, uniform: bool = False
) -> FederatedAlgorithm:
    """Make FedKSeed.

    Args:
        seed: Seed of the experiment, from which those of the directions follow.
        seeds: Number K ≥ 1 of directions, and of numbers that travel each way.
        eps: Distance ε > 0 at which the loss is evaluated on either side, in units of a direction.
        rate: Factor on `train.lr`, > 0. A step along a direction of P values is about √P times as long as one along the
            gradient, so that rates of other algorithms call for about 1 / √P.
        uniform: Weigh all clients alike instead of by number of examples.
    """
    positive(seeds=seeds, eps=eps, rate=rate)

    def init(params: Params) -> ServerState:
        return ServerState(params, slots={"start": params.flat.clone(), "sums": torch.zeros(seeds)})

    def broadcast(state: ServerState) -> Broadcast:
        return Broadcast(state.params, {"sums": state.slots["sums"]})

    def combine(
        state: ServerState, updates: Iterable[Update], aggregate: Aggregate
    ) -> tuple[ServerState, Diagnostics]:
        averages = means(
            updates, lambda update: (by_size(update, uniform=uniform), extra(update, "sums", (seeds,)))
        )
        sums = state.slots["sums"] + averages.values[0]
        flat = replay(state.slots["start"], sums, seed)
        figures = {"delta_norm": norm(flat - state.params.flat)}
        slots = {"start": state.slots["start"], "sums": sums}
        return ServerState(state.params.with_flat(flat), state.round + 1, slots), figures

    def start(sent: Broadcast, memory: Tensors) -> Tensor:
        return replay(sent.params.flat, sent.extras["sums"], seed)

    def begin(sent: Broadcast, memory: Tensors) -> Tensors:
        return {"sums": torch.zeros_like(sent.extras["sums"])}

    def gradient(probe: Probe, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        number = int(torch.randint(seeds, (1,), generator=probe.stream("seed")))
        along = direction(seed, number, len(params)).to(params.device)
        up, down = probe.loss(params + eps * along), probe.loss(params - eps * along)
        step = torch.zeros_like(carry["sums"])
        step[number] = probe.rate
        return (
            (up + down) / 2,
            rate * (up - down) / (2 * eps) * along,
            {**carry, "along": along, "step": step},
        )

    def correct(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
        slope = grads.dot(carry["along"]) / carry["along"].dot(carry["along"])  # after clipping
        return grads, {**carry, "sums": carry["sums"] + slope * carry["step"]}

    def finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        return {"sums": carry["sums"]}, {}

    def extras(work: LocalWork) -> Mapping[str, Extra]:
        # A slope is at most as large as its gradient is long, since no direction of many values is shorter than 1.
        return {"sums": Extra((seeds,), most=work.steps * work.rate * work.gradient)}

    rule = LocalRule(begin, correct, finish, gradient=gradient, start=start)
    return FederatedAlgorithm(init, broadcast, combine, rule, extras, mean(uniform=uniform), exchanges=False)


ENTRIES = {
    "fedkseed": Entry(
        fedkseed,
        "server",
        "FedKSeed",
        "Clients and server exchange a few numbers in place of parameters: steps along random directions that all can draw.",
        traits=frozenset({"own aggregate", "whole vectors", "extras", "gradient", "no values"}),
    )
}
