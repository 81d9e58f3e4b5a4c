"""Interpolation: each client is evaluated with a model between its own and the shared one, which its validation part chooses.

    v̄_k = α_k v_k + (1 − α_k) x,   α_k = argmax over `shares` of the score of v̄_k on client k's validation examples

with x the shared model, and v_k the own model that another part leaves client k with, such as `finetune`, `keep-last`, `ditto`
or `pfedme`. A client without validation examples takes α_k = `default`; of equally good shares, the nearest to it is taken.

References: Y. Deng, M. M. Kamani, M. Mahdavi, "Adaptive Personalized Federated Learning", arXiv 2003.13461.
Y. Mansour, M. Mohri, J. Ro, A. T. Suresh, "Three Approaches for Personalization with Applications to Federated Learning",
arXiv 2002.10619, model interpolation.

Differs from the papers: models are interpolated after training and not in each round; α is chosen by score and not by the
gradient of the loss. With LoRA, factors are interpolated, not their products. The scores on the validation part that are
reported are those by which α was chosen, so they are a little too good.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.algorithms.entry import Entry
from fedloom.algorithms.own_answers import Interpolation


def interpolate(
    *, shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0), default: float = 0.5
) -> Interpolation:
    """Make the interpolation of own models with the shared one.

    Args:
        shares: Shares α of the own model that are tried, each from 0 to 1, at least one.
        default: The share for a client without validation examples, from 0 to 1.

    Raises:
        ValueError: A share is out of range, or there is none.
    """
    if not shares:
        raise ValueError("shares is empty; it must list shares from 0 to 1")
    for name, value in (*(("shares", share) for share in shares), ("default", default)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} has {value}; it must be from 0 to 1")
    return Interpolation(tuple(sorted(set(shares))), default)


ENTRIES = {
    "interpolate": Entry(
        interpolate,
        "mix",
        "interpolation",
        "Each client is evaluated with a model between its own and the shared one; its validation examples choose which.",
    )
}
