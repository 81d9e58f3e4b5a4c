"""Draw the clients of each round: the cohort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedloom.scenarios.published_draws import published_cohort
from fedloom.seeds import stream

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Schedule:
    """The number of rounds, and which clients train in each.

    Attributes:
        rounds: Number of rounds.
        clients: Client numbers to draw from, ascending.
        cohort: How many of them train in a round; None means all.
        seed: Seed of the draws.
        sampler: "corrected", or "published" for the cohorts of FedMLLM's code, which are the same for every seed.
    """

    rounds: int
    clients: Sequence[int]
    cohort: int | None
    seed: int
    sampler: str = "corrected"


def draw_cohort(schedule: Schedule, round: int) -> Sequence[int]:
    """Draw the clients of a round, without replacement, in ascending order."""
    if schedule.cohort is None or schedule.cohort >= len(schedule.clients):
        return schedule.clients
    if schedule.sampler == "published":
        indices = published_cohort(round, len(schedule.clients), schedule.cohort)
        return tuple(schedule.clients[index] for index in indices)
    drawn = stream(schedule.seed, "cohort", round=round).choice(
        len(schedule.clients), schedule.cohort, replace=False
    )
    return tuple(schedule.clients[index] for index in sorted(drawn))
