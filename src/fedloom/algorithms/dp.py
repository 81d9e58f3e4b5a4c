"""DP-FedAvg: clip every client's change, count all clients alike, and add Gaussian noise to the mean.

    Δ = (1/m) Σ_k Δ_k · min(1, C / ‖Δ_k‖) + N(0, (z C / m)² I)

with C the argument `bound`, z the argument `noise`, and m the number of clients that reported. The noise is drawn from a
stream named by seed, stage and round, so a run can be made again.

The privacy ledger of a run (`fedloom.runs.privacy_ledger`) states the ε that the rounds of each client spent at δ, the argument
`delta`: the unit is a client, whose change is replaced by zero, and each round in which it reports is a Gaussian mechanism with
noise multiplier z. It holds for the shared model under a trusted server. Cohorts are of a fixed size, so nothing is gained by
sampling clients. It does not cover what else a record holds of a client, such as its loss and its number of examples, which
carry no noise, nor which updates are refused. The noise is not from a cryptographic generator, and whoever knows the seed can
subtract it.

Reference: H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, "Learning Differentially Private Recurrent Language Models",
arXiv 1710.06963v3, Algorithm 1.

Differs from the paper: uniform weights (the paper's w_k = 1); cohorts of a fixed size instead of independent draws of
clients, and so a division by m, the number of updates that came, instead of by its expectation; a flat clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import (
    Aggregate,
    Change,
    Diagnostics,
    ServerState,
    fraction,
    not_negative,
    positive,
)
from fedloom.algorithms.clip import clipping
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.robust_helpers import same_part
from fedloom.params import Part
from fedloom.seeds import torch_stream
from fedloom.wire.messages import Update


def dp(*, seed: int, stage: int, bound: float = 1.0, noise: float = 1.0, delta: float = 1e-5) -> Change:
    """Make DP-FedAvg's mechanism around a mean; it passes updates on one by one.

    Args:
        seed: The experiment's seed.
        stage: Number of the strategy's stage.
        bound: Longest delta C, > 0.
        noise: Noise multiplier z, ≥ 0: standard deviation of the noise on the sum, in units of C.
        delta: δ in (0, 1) for which the privacy ledger states ε; it changes nothing of the mechanism.
    """
    positive(bound=bound)
    not_negative(noise=noise)
    positive(delta=delta)
    fraction(delta=delta)

    def change(inner: Aggregate) -> Aggregate:
        def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
            clipped, share = clipping(updates, bound)
            reported: list[Part | None] = []
            delta, figures = inner(_alike(clipped, reported), state)
            deviation = noise * bound / len(reported)
            if noise > 0:
                draw = torch_stream(seed, f"dp/{stage}", round=state.round)
                added = deviation * torch.randn(delta.shape, generator=draw)
                delta = delta + (reported[0] or state.params.whole).zero_outside(added)
            return delta, {**figures, "clipped": share(), "noise_deviation": deviation}

        return aggregate

    return change


def _alike(updates: Iterable[Update], reported: list[Part | None]) -> Iterator[Update]:
    """Yield updates with weight 1, and append what each client reports to a list.

    Raises:
        ValueError: Clients report different parts: fewer clients in a mean than m need more noise.
    """
    first: Update | None = None
    for update in updates:
        first = first or update
        same_part("dp", first, update)
        reported.append(update.up)
        yield replace(update, weight=1.0)


ENTRIES = {
    "dp": Entry(
        dp,
        "wrapper",
        "DP mechanism",
        "Clients' changes are clipped and averaged alike, and Gaussian noise is added to the mean. The privacy ledger states "
        "what each client's rounds spent.",
        traits=frozenset({"whole vectors", "noise", "a mean"}),
        protects="client",
        opts_out={
            "zero deltas": "Noise is added to their mean.",
            "agreement": "The noise is that of a round, whoever takes part in it.",
            "weights matter": "It counts every client alike, so that none reveals how many examples it holds.",
        },
    )
}
