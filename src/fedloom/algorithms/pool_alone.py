"""Answers pooled with the local model's: each client also trains a model alone, and multiplies the options' probabilities of both.

    log p_k(y | x) = (1 − w) log p(y | x) + w log p_k,alone(y | x) + const

with p(y | x) the probabilities of a question's options under the client's federated model (the shared one, or its own),
p_k,alone(y | x) those under the model that client k trains alone, and w the argument `weight`. This is the logarithmic
opinion pool: an option that either model finds impossible stays so, whereas the average of `average-alone` is dominated by the
more confident of two models, and models that are fine-tuned on few examples are overconfident.

Reference: T. Heskes, "Selecting Weighting Factors in Logarithmic Opinion Pools", Advances in Neural Information Processing
Systems 10, 1997, equation 1.

Differs from the paper: w is a constant for all clients, where the paper chooses weights by the pooled models' errors on
training examples, which these models have memorized. Generated answers have no probabilities and stay those of the federated model.
"""

from __future__ import annotations

import numpy as np

from fedloom.algorithms.entry import Entry
from fedloom.algorithms.own_answers import (
    Chances,
    Known,
    OwnAnswers,
    probabilities,
    weight_of_local_model,
)

SMALLEST = np.finfo(np.float64).tiny
"""Probabilities are taken as no smaller, so that options which each model finds impossible can still be compared."""


def pool_alone(*, weight: float = 0.3) -> OwnAnswers:
    """Make the logarithmic pool with the model that each client trains alone.

    Args:
        weight: Weight w of the local model, from 0 to 1.

    Raises:
        ValueError: The weight is out of range.
    """
    weight = weight_of_local_model(weight)

    def choose(chances: Chances, known: Known) -> Chances:
        if known.alone is None:
            return chances
        logs = [np.log(np.maximum(one, SMALLEST)) for one in (chances, known.alone)]
        return probabilities((1 - weight) * logs[0] + weight * logs[1])

    return OwnAnswers(choose, alone=True)


ENTRIES = {
    "pool-alone": Entry(
        pool_alone,
        "answers",
        "pooled with local",
        "Each client multiplies its options' probabilities with those of a model that it trains alone, each to a power.",
        traits=frozenset({"local model"}),
    )
}
