"""Answers averaged with the local model's: each client also trains a model alone, and averages the options' probabilities of both.

    p_k(y | x) = (1 − w) p(y | x) + w p_k,alone(y | x)

with p(y | x) the probabilities of a question's options under the client's federated model (the shared one, or its own),
p_k,alone(y | x) those under the model that client k trains alone, and w the argument `weight`. A client that federated
training hurts keeps half of what it would have without it; that costs the work of a second training.

Reference: D. Peterson, P. Kanani, V. J. Marathe, "Private Federated Learning with Domain Adaptation", arXiv 1912.06733: a
mixture of the shared and a private model's predictions.

Differs from the paper: w is a constant, where the paper learns a gate that depends on x; the two models are trained apart from
each other. Generated answers have no probabilities and stay those of the federated model.
"""

from __future__ import annotations

from fedloom.algorithms.entry import Entry
from fedloom.algorithms.own_answers import Chances, Known, OwnAnswers, weight_of_local_model


def average_alone(*, weight: float = 0.5) -> OwnAnswers:
    """Make the average with the model that each client trains alone.

    Args:
        weight: Weight w of the local model, from 0 to 1.

    Raises:
        ValueError: The weight is out of range.
    """
    weight = weight_of_local_model(weight)

    def choose(chances: Chances, known: Known) -> Chances:
        return chances if known.alone is None else (1 - weight) * chances + weight * known.alone

    return OwnAnswers(choose, alone=True)


ENTRIES = {
    "average-alone": Entry(
        average_alone,
        "answers",
        "averaged with local",
        "Each client averages its options' probabilities with those of a model that it trains alone.",
        traits=frozenset({"local model"}),
    )
}
