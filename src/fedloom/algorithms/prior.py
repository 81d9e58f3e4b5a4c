"""A client's own label shares as a prior: it prefers the options that are right more often among its own training examples.

    log p_k(y | x) = log p(y | x) + β log π_k(y) + const,   π_k(y) = (n_k(y) + a) / (n_k + a C)

with p(y | x) the probabilities of a question's C options under the client's model (the shared one, or its own), n_k(y) the
number of client k's training examples whose right answer is option y, n_k their sum over the question's options, β the
strength and a the smoothing (`strength`, `smoothing`). Nothing is sent and nothing is trained. With β = 0, and for a question
whose options are all equally frequent at the client, nothing changes.

Reference: M. Saerens, P. Latinne, C. Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities: A
Simple Procedure", Neural Computation 14(1), 2002, equation 2.4. The same term, with a strength and on logits, is in A. K. Menon,
S. Jayasumana, A. S. Rawat, H. Jain, A. Veit, S. Kumar, "Long-tail learning via logit adjustment", arXiv 2007.07314.

Differs from the papers: the new prior is known from the client's training part and smoothed; that of training, by which the
papers divide, is taken as uniform over the options, since the label shares of all clients would have to be sent. A model
that a client trained on its own examples has learned part of their shares, so β = 1 then counts that part twice. Options are
compared by their texts. Where they belong to one question only, no option is more frequent than another, and where answers
have no options (captions, boxes, open questions) there is no such prior; nothing takes its place.
"""

from __future__ import annotations

import numpy as np

from fedloom.algorithms.algorithm import not_negative, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.own_answers import Chances, Known, OwnAnswers, probabilities


def prior(*, strength: float = 1.0, smoothing: float = 0.25) -> OwnAnswers:
    """Make the prior of each client's own label shares.

    Args:
        strength: Factor β ≥ 0 on the logarithm of the prior.
        smoothing: Count a > 0 that is added to each option's. Below 1, an option that the client never saw becomes unlikely soon.
    """
    not_negative(strength=strength)
    positive(smoothing=smoothing)

    def choose(chances: Chances, known: Known) -> Chances:
        shares = (known.counts + smoothing) / (known.counts.sum() + smoothing * len(known.counts))
        with np.errstate(divide="ignore"):  # an option may have no probability at all
            scores = np.log(chances) + strength * np.log(shares)
        return probabilities(scores)

    return OwnAnswers(choose)


ENTRIES = {
    "prior": Entry(
        prior,
        "answers",
        "own prior",
        "Each client prefers options that are frequent among its own training examples; nothing is sent or trained.",
    )
}
