"""pLoRA of FedVLM: clients share the LoRA factors B and keep their factors A to themselves, the mirror of FedSA-LoRA.

    client k   W + s B A_k,   trains A_k and B
    server     B ← B + Σ_k (n_k / n) ΔB_k

with W a frozen layer, s = α / r, B [O, r] shared, and A_k [r, I] client k's own, which it keeps from round to round and is
evaluated with. What is no LoRA factor (the connector) is shared, too.

Reference: A. Mitra, A. Anjum, P. Agbaje, M. Pesé, H. Olufowobi, "FedVLM: Scalable Personalized Vision-Language Models through
Federated Learning", arXiv 2507.17088v1, where the method is called personalized LoRA. We found no code of it.

Differs from the paper: the server is that of the algorithm that the part is added to; all A_k begin with the same draw, which
is also the A of the shared model that is scored on everybody's questions.
"""

from __future__ import annotations

from fedloom.algorithms.entry import Entry
from fedloom.algorithms.personal_values import PersonalValues


def plora() -> PersonalValues:
    """Make the choice of values that clients keep: every factor A."""
    return PersonalValues(("*:lora_a",))


ENTRIES = {
    "plora": Entry(
        plora,
        "personal",
        "pLoRA",
        "Clients share the LoRA factors B, and each keeps its own factors A (FedVLM).",
        traits=frozenset({"own model"}),
    )
}
