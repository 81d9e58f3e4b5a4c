"""YOCO: one round, in which B keeps the signs it started with and A stays sparse.

    client k minimizes   F_k + λ_B Σ_m ‖tanh(α B_m) − S_m‖ / ‖S_m‖ + λ_A Σ_m ‖A_m‖₁,   S_m = sign(B_m⁰)
    server               B_m ← B_m + η · mean_k ΔB_m,k
                         A_m ← A_m + η · Σ_k w_m,k ΔA_m,k,   w_m,k = |u_k| / Σ_j |u_j|

with A_m, B_m the low-rank factors of the m-th adapted layer, B_m⁰ the B that was broadcast, ‖·‖ the Frobenius
norm, u the first principal component of the clients' directions, that is the leading eigenvector of the
cosines between all ΔA_m,k: who goes where most go weighs more, however far it goes. α, λ_B, λ_A, η are the
arguments `sharpness`, `sign`, `sparse`, `lr`. All else that is trained is averaged like B.

The idea: with one round no aggregate can correct the clients, but the model all of them start from can.
Its own weights give the start, A⁰ and B⁰ from the singular vectors of the layer that they adapt
(`fedloom.tuning.svd_start.svd_start`), and with it the signs that B keeps. Where B⁰ is zero, as adapters
usually start, there is no sign to keep and that term is left out.

Reference: B. Xu, H. Mei, Z. Bai, J. Gong, R. Yan, G. Xie, Y. Yao, B. Fernando, X. Shu, "You Only Communicate
Once: One-shot Federated Low-Rank Adaptation of MLLM", NeurIPS 2025, openreview.net/forum?id=FoVF3iL6o3,
Algorithm 1; we know the paper from summaries and from its public code.

Differs from the paper: how its principal components become weights is not in the public code, so w is our
reading; λ_A is not known to us. α is constant, where the code raises it from 1 to 200 along a cosine of the
local steps. The code penalizes ‖AᵀA − I‖² where the paper says ‖A‖₁; this is the paper's form. Gradients
are added in closed form, after clipping; with `published=True` before, for they are parts of the loss in the
code. A run may have more rounds; each then keeps the signs of its own broadcast. The server holds the A of all clients at
once, for their principal component.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import torch
from torch import Tensor

from fedloom.algorithms.aggregate import by_size, mean_delta
from fedloom.algorithms.algorithm import (
    Aggregate,
    Diagnostics,
    FederatedAlgorithm,
    ServerState,
    positive,
    server,
)
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import averaging
from fedloom.algorithms.local_rule import LocalRule, clipped
from fedloom.params import Layout
from fedloom.types import Broadcast, Tensors
from fedloom.wire.messages import Update


def yoco(
    *,
    sign: float = 1.0,
    sparse: float = 1e-4,
    sharpness: float = 10.0,
    lr: float = 1.0,
    uniform: bool = True,
    published: bool = False,
) -> FederatedAlgorithm:
    """Make YOCO, meant for a run of one round.

    Args:
        sign: Strength λ_B of keeping the signs of B, ≥ 0.
        sparse: Strength λ_A of ‖A‖₁, ≥ 0.
        sharpness: α, > 0: the larger, the less it matters how far from zero a value of B is.
        lr: Server step η, > 0; 1 is the paper's.
        uniform: Weigh all clients alike, as the paper does; else every weight goes by number of examples too.
        published: Clip the gradients of the penalties with that of the loss, as its code does.
    """
    positive(lr=lr, sharpness=sharpness)
    rule = directed(sign, sparse, sharpness)
    return server(averaging(lr), by_direction(uniform=uniform), clipped(rule) if published else rule)


def by_direction(*, uniform: bool = True) -> Aggregate:
    """Return the aggregate that weighs every client's A by how far its direction agrees with the others'."""

    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
        counts: list[float] = []
        kept: dict[str, list[Tensor]] = {name: [] for name in _named(state.params.layout, "a")}

        def observed() -> Iterator[Update]:
            for update in updates:
                counts.append(by_size(update, uniform=uniform))
                for name, rows in kept.items():
                    rows.append(update.delta[name].flatten().double())
                yield update

        delta = state.params.with_flat(mean_delta(observed(), uniform=uniform))
        for name, rows in kept.items():
            stack = torch.stack(rows)  # [K, R·I]
            weights = torch.tensor(counts, dtype=torch.float64) * principal(stack)
            delta[name].copy_((weights / weights.sum() @ stack).view_as(delta[name]))
        return delta.flat, {}

    return aggregate


def principal(rows: Tensor) -> Tensor:
    """Return |first principal component| of the rows' directions, one value for each row, not centered.

    Args:
        rows: One vector for each client, shape [K, N].

    Returns:
        Weights ≥ 0 of Euclidean norm 1, shape [K]; equal ones where all rows are zero.

    Example:
        >>> principal(torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]))
        tensor([0.7071, 0.7071, 0.0000])
    """
    if not rows.any():
        return torch.full_like(rows[:, 0], len(rows) ** -0.5)
    units = torch.nn.functional.normalize(rows, dim=-1)
    svd = cast("Callable[..., tuple[Tensor, Tensor, Tensor]]", torch.linalg.svd)  # pyright: ignore
    components, _, _ = svd(units, full_matrices=False)  # [K, min(K, N)], …
    return components[:, 0].abs()


def directed(sign: float, sparse: float, sharpness: float) -> LocalRule:
    """Make the local rule that keeps the signs of every B and draws every A toward zero.

    Args:
        sign: λ_B, ≥ 0.
        sparse: λ_A, ≥ 0.
        sharpness: α, > 0.

    Raises:
        ValueError: A strength is negative or not a number.

    Example:
        >>> from fedloom.params import Params
        >>> rule = directed(sign=0.0, sparse=0.5, sharpness=10.0)
        >>> layout = Layout.of({"llm/q:lora_a": (3,), "llm/q:lora_b": (1,)})
        >>> carry = rule.begin(Broadcast(Params.zeros(layout)), {})
        >>> rule.correct(torch.zeros(4), torch.tensor([2.0, -0.1, 0.0, 3.0]), carry)[0]
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    for key, value in (("sign", sign), ("sparse", sparse)):
        if not value >= 0:
            raise ValueError(f"{key} is {value}; it must be zero or a positive number")

    def begin(sent: Broadcast, memory: Tensors) -> Tensors:
        layout, flat = sent.params.layout, sent.params.flat
        matrix = torch.zeros(layout.size, dtype=torch.int64)  # which B a value belongs to; 0 for none
        for number, name in enumerate(names := _named(layout, "b"), start=1):
            matrix[layout.slice(name)] = number
        matrix = matrix.to(flat.device)
        signs = torch.where(matrix > 0, flat.sign(), 0.0)
        sizes = signs.new_zeros(len(names) + 1).scatter_add_(-1, matrix, signs.square()).sqrt()  # ‖S_m‖
        a = layout.mask(lambda name: name.endswith(":lora_a")).to(flat.device)
        return {"signs": signs, "sizes": sizes, "matrix": matrix, "a": a}

    def correct(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
        signs, sizes, matrix = carry["signs"], carry["sizes"], carry["matrix"]
        soft = torch.tanh(sharpness * params)
        gap = (soft - signs) * signs.abs()  # zero wherever there is no sign to keep
        gaps = torch.zeros_like(sizes).scatter_add_(-1, matrix, gap.square()).sqrt()
        scale = torch.where(gaps * sizes > 0, 1 / (gaps * sizes), 0.0).gather(-1, matrix)
        pull = sign * sharpness * (1 - soft.square()) * gap * scale
        return grads + pull + sparse * carry["a"] * params.sign(), carry

    return LocalRule(begin, correct)


def _named(layout: Layout, factor: str) -> list[str]:
    return [name for name in layout.names if name.endswith(f":lora_{factor}")]


ENTRIES = {
    "yoco": Entry(
        yoco,
        "server",
        "YOCO",
        "One-shot: adapters start from the model's own weights, clients keep the signs of one factor and keep the other "
        "sparse, and the server weighs clients by how far they agree.",
        published={"published": True},
        start="svd",
        traits=frozenset({"own aggregate", "whole vectors"}),
    )
}
