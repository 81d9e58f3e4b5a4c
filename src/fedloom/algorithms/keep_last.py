"""Keep the last local model: each client is evaluated with the parameters at which its own last training ended.

    θ_k = x_k

with x_k client k's parameters after the local epochs of the last round in which it took part. Nothing else changes: what is
sent, and the shared model, are those of the algorithm to the last bit.

Reference: w in ClientUpdate of H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient
Learning of Deep Networks from Decentralized Data", arXiv 1602.05629v4, Algorithm 1, before it is averaged. We know of no
paper that proposes it as a method; it is the personalization that costs nothing.
"""

from __future__ import annotations

from torch import Tensor

from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import LocalRule
from fedloom.types import Tensors


def keep_last() -> LocalRule:
    """Make the rule that keeps each client's parameters at the end of its training."""
    return LocalRule(own=_end)


def _end(end: Tensor, carry: Tensors) -> Tensor:
    return end


ENTRIES = {
    "keep-last": Entry(
        keep_last,
        "rule",
        "own last model",
        "Each client is evaluated with the model at which its own last training ended.",
        traits=frozenset({"own model"}),
    )
}
