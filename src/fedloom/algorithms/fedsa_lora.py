"""FedSA-LoRA: clients share the LoRA factors A and keep their factors B to themselves.

    client k   W + s B_k A,   trains A and B_k
    server     A ← A + Σ_k (n_k / n) ΔA_k

with W a frozen layer, s = α / r, A [r, I] shared, and B_k [O, r] client k's own, which it keeps from round to round and is
evaluated with. What is no LoRA factor (the connector) is shared, too.

Reference: P. Guo, S. Zeng, Y. Wang, H. Fan, F. Wang, L. Qu, "Selective Aggregation for Low-Rank Adaptation in Federated
Learning", arXiv 2410.01463.

Differs from the paper: the server is that of the algorithm that the part is added to; clients' optimizers start anew in each
round. The shared model, which is scored on everybody's questions, has B = 0, with which every B_k begins: it has the shared
connector and no adapter.
"""

from __future__ import annotations

from fedloom.algorithms.entry import Entry
from fedloom.algorithms.personal_values import PersonalValues


def fedsa_lora() -> PersonalValues:
    """Make the choice of values that clients keep: every factor B."""
    return PersonalValues(("*:lora_b",))


ENTRIES = {
    "fedsa-lora": Entry(
        fedsa_lora,
        "personal",
        "FedSA-LoRA",
        "Clients share the LoRA factors A, and each keeps its own factors B.",
        traits=frozenset({"own model"}),
    )
}
