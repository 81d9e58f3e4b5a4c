"""Unequal LoRA ranks: each client has its own rank, and each slot of the rank is averaged over the clients that have it.

    client i      W + s_i B_i A_i,   s_i = α / r_i,   A_i = A[:r_i, :],   B_i = (s / s_i) B[:, :r_i]
    it reports    ΔA_i and (s_i / s) ΔB_i
    slot j        ΔA[j, :] and ΔB[:, j] are the means of what the clients with r_i ≥ j report

with W [O, I] a frozen layer, A [R, I] and B [O, R] the server's factors, R and α the strategy's rank and alpha, s = α / R,
and r_i the client's entry of the argument `ranks`. Since B is folded by s_i / s, the server's s · B · A is the client's
s_i · B_i · A_i. A client is sent only its slots; what is no LoRA factor (the connector) every client is sent, and trains.
With r_i = R for everybody this is the algorithm without ranks of their own.

References: S. Chen, O. Tavallaie, N. Nazemi, A. Y. Zomaya, "RBLA: Rank-Based-LoRA-Aggregation for Fine-tuning Heterogeneous
Models in FLaaS", arXiv 2408.08699v2, and the dimension-wise aggregation of L. Yang et al., "FediLoRA: Heterogeneous LoRA for
Federated Multimodal Fine-tuning under Missing Modalities", arXiv 2509.06984v2. Scale α / r: E. J. Hu et al., "LoRA",
arXiv 2106.09685v2, section 4.1.

Differs from the papers: B is folded; without that, factors of clients with different scales are averaged as if their
scales were equal. FediLoRA also edits layers, which this does not. The mean of factors is not the mean of products, here
as in FedAvg on LoRA. A client computes with R slots, of which those that it does not have are zero in B and held fixed:
it saves bytes, not time.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.algorithms.algorithm import Budget, one_each
from fedloom.algorithms.entry import Entry
from fedloom.params import Layout, Params, Part


def ranks(*, layout: Layout, clients: int, ranks: Sequence[int] = ()) -> Budget:
    """Make the parts and scales of clients with LoRA ranks of their own.

    Args:
        layout: Names and shapes of what is trained; those that end in `:lora_a` are [R, I], in `:lora_b` [O, R].
        clients: Number of all clients.
        ranks: Rank r_i of each client, from 1 to R, by the client's number.

    Raises:
        ValueError: Nothing is trained by LoRA; `ranks` has more or fewer numbers than there are clients, or one that is out
            of range.

    Example:
        >>> layout = Layout.of({"llm/q:lora_a": (2, 3), "llm/q:lora_b": (4, 2)})
        >>> budget = ranks(layout=layout, clients=2, ranks=(1, 2))
        >>> budget.up(0).stretches, budget.scale(0), budget.up(1), budget.scale(1)
        (((0, 3), (6, 7, 2, 4)), 2.0, None, 1.0)
    """
    full = next((layout.shape(name)[0] for name in layout.names if name.endswith(":lora_a")), 0)
    if not full:
        raise ValueError("nothing is trained by LoRA, so there are no ranks to choose")
    one_each("ranks", ranks, clients, full, "which is strategy.rank")
    parts = {rank: _slots(layout, rank) if rank < full else None for rank in set(ranks)}
    return Budget(
        lambda client: parts[ranks[client]],
        lambda client: parts[ranks[client]],
        lambda client: full / ranks[client],
    )


def _slots(layout: Layout, rank: int) -> Part:
    """Return the part of a client: the first rows of each A, the first columns of each B, and what is neither."""
    mask = Params(layout, layout.mask(lambda name: not name.endswith((":lora_a", ":lora_b"))))
    for name, values in mask.items():
        if name.endswith(":lora_a"):
            values[:rank] = 1
        elif name.endswith(":lora_b"):
            values[:, :rank] = 1
    return Part.of(mask.flat)


ENTRIES = {
    "ranks": Entry(
        ranks,
        "part",
        "unequal ranks",
        "Each client trains LoRA adapters of its own rank; each slot of the rank is averaged over the clients that have it.",
    )
}
