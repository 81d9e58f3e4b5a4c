"""Krum: take the update that lies closest to its neighbors; multi-Krum averages several such updates.

    score(i) = Σ ‖Δ_i − Δ_j‖² over the n − f − 2 updates j ≠ i that are nearest to Δ_i
    Δ = mean of the m updates with the lowest scores

with n the number of updates, f the largest number of faulty clients (`f`), and m = 1 for Krum (`keep`). Ties are
broken by the lower client id. All clients count equally, whatever their number of examples.

Reference: P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent", NeurIPS 2017 (arXiv 1703.02757v1), section 4; multi-Krum is the variant of its experiments.

Differs from the paper: updates are deltas after local training instead of gradients; m is at most n − f. All updates of a
round are held.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from torch import Tensor

from fedloom.algorithms.aggregate import mean_delta
from fedloom.algorithms.algorithm import Aggregate, Diagnostics, ServerState, TooFew
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import SEVERAL, gather, require_enough, smallest, squared_distances
from fedloom.wire.messages import Update


def krum(*, cohort: int, f: int = 1, keep: int = 1) -> Aggregate:
    """Make Krum, or multi-Krum where more than one update is kept.

    Args:
        cohort: Number n of clients in a round, at least 2f + 3.
        f: Largest number of faulty clients in a round, ≥ 0.
        keep: Number m of updates that are averaged, 1 to n − f; 0 is n − f.

    Raises:
        ValueError: The cohort is too small for f, or `keep` is out of range.
    """
    require_enough("Krum", cohort, f, more=3)
    _count(keep, cohort, f)

    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
        held = gather("Krum", updates, f, more=3)
        krum_scores = scores(squared_distances(held), f)
        chosen = smallest(krum_scores, _count(keep, len(held), f))
        (best,) = smallest(krum_scores, 1)
        delta = mean_delta([held[k] for k in chosen], uniform=True)
        return delta, {"krum_client": float(held[best].client), "krum_score": float(krum_scores[best])}

    return aggregate


def multi_krum(*, cohort: int, f: int = 1, keep: int = 0) -> Aggregate:
    """Make multi-Krum, which averages n − f updates by default; see `krum` for the arguments."""
    return krum(cohort=cohort, f=f, keep=keep)


def scores(squares: Tensor, f: int) -> Tensor:
    """Return the score of each update, shape [n], from squared distances of shape [n, n].

    Example:
        >>> import torch
        >>> scores(torch.tensor([0.0, 1.0, 3.0, 9.0]).view(-1, 1).sub(torch.tensor([0.0, 1.0, 3.0, 9.0])).square(), f=1)
        tensor([ 1.,  1.,  4., 36.])
    """
    others = squares.clone().fill_diagonal_(inf).sort(dim=1).values
    return others[:, : len(squares) - f - 2].sum(dim=1)


def _count(keep: int, clients: int, f: int) -> int:
    if keep < 0:
        raise ValueError(f"keep is {keep}; it must be from 1 to the cohort less f, or 0 for that many")
    if keep > clients - f:
        raise TooFew(
            f"Krum is set to keep {keep} updates, but can keep at most n - f = {clients - f} of {clients}"
        )
    return keep or clients - f


ENTRIES = {
    "krum": Entry(
        krum,
        "aggregate",
        "Krum",
        "The model moves by the change of the one client that lies closest to its neighbors.",
        traits=frozenset({"whole vectors"}),
        opts_out=SEVERAL,
    ),
    "multi-krum": Entry(
        multi_krum,
        "aggregate",
        "multi-Krum",
        "The model moves by the mean change of the clients that lie closest to their neighbors.",
        traits=frozenset({"whole vectors"}),
        opts_out=SEVERAL,
    ),
}
