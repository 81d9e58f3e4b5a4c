"""Ditto: besides the shared model, each client trains its own model, which is pulled toward the shared one.

    v ← v − η (∇F(v) + λ (v − w))

with w the shared model as it was sent, v the client's own, which it keeps from round to round and is evaluated with, and λ
the strength (`lam`). The shared model is trained as without Ditto, to the last bit.

Reference: T. Li, S. Hu, A. Beirami, V. Smith, "Ditto: Fair and Robust Federated Learning Through Personalization",
arXiv 2012.04221v3, Algorithm 1.

Differs from the paper: v starts at the shared model of the first round in which the client takes part; the pull is added
after clipping (see `fedloom.algorithms.fedprox`); the own model's epochs and rate may differ from the shared one's; its
optimizer starts anew in each round, as that of the shared model does, and may be AdamW.
"""

from __future__ import annotations

from fedloom.algorithms.algorithm import not_negative, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedprox import proximal
from fedloom.algorithms.local_rule import Second


def ditto(*, lam: float = 0.1, epochs: int = 0, rate: float = 1.0) -> Second:
    """Make Ditto's second pass.

    Args:
        lam: Strength λ ≥ 0 of the pull; 0 trains the own model by itself.
        epochs: Epochs of the own model in each round, ≥ 1; 0 is as many as the shared model's.
        rate: Factor > 0 on the clients' learning rate.
    """
    not_negative(lam=lam, epochs=epochs)
    positive(rate=rate)
    return Second("ditto", proximal(lam), epochs or None, rate)


ENTRIES = {
    "ditto": Entry(
        ditto,
        "pass",
        "Ditto",
        "Along with the shared model each client trains one of its own, which is pulled toward the shared one.",
        traits=frozenset({"own model"}),
    )
}
