"""Local fine-tuning at the end: each client trains the final global model further on its own data and keeps the result.

    v_k = SGD(x_T; F_k, own epochs, own rate)

with x_T the global parameters after the last round, and v_k the model that client k is evaluated with. It is the plainest
personalization, and a baseline that methods with more machinery have to beat.

Reference: T. Yu, E. Bagdasaryan, V. Shmatikov, "Salvaging Federated Learning by Local Adaptation", arXiv 2002.04758v3,
section 3, "fine-tuning".

Differs from the paper: the local optimizer is that of the experiment, AdamW by default, at a constant rate; clients that
were never drawn are fine-tuned, too.
"""

from __future__ import annotations

from fedloom.algorithms.algorithm import positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import Final


def finetune(*, epochs: int = 1, rate: float = 0.25) -> Final:
    """Make the fine-tuning stage.

    Args:
        epochs: Epochs of every client, ≥ 1.
        rate: Factor on `train.lr`, > 0.
    """
    positive(epochs=epochs, rate=rate)
    return Final(epochs, rate)


ENTRIES = {
    "finetune": Entry(
        finetune,
        "stage",
        "fine-tuning",
        "After the last round each client trains the shared model further on its own data, and is evaluated with the result.",
        traits=frozenset({"own model"}),
    )
}
