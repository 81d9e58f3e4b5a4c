"""P1: what the whole engine costs over a bare loop of forward, backward, step on the same tensors."""

from __future__ import annotations

from itertools import cycle

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import SMALL, TINY, Size
from benchmarks.work import Work, bare_client, deltas, in_process, make_work, run_round, tensors
from fedloom.algorithms.fedavg import fedavg

COHORT = 2  # clients of one timed round; a round of all eight would leave time for too few pairs


def overhead(
    size: Size, *, clients: int, steps: int, batch_size: int, tokens: int, cohort: int, count: int
) -> Measured:
    """Measure rounds of the engine against a bare loop over the same clients."""
    work = make_work(size, clients=clients, steps=steps, batch_size=batch_size, tokens=tokens)
    tuned, start, algorithm, backend = work.tuned, work.tuned.start, fedavg(), in_process(work)
    held = {client: [tensors(work, one) for one in batches] for client, batches in work.batches.items()}
    _check(work, held)
    groups = [range(first, first + cohort) for first in range(0, clients, cohort)]
    turns = cycle(groups), cycle(groups)

    def ours() -> None:
        run_round(algorithm, backend, start, next(turns[0]))

    def rival() -> None:
        for client in next(turns[1]):
            bare_client(tuned, start, held[client], work.settings.lr)

    measured = pairs(ours, rival, count)
    return measured.cost, measured.said(rival="bare loop", per=cohort * steps) + " a step"


def _check(work: Work, held: dict[int, list]) -> None:
    for client, delta in deltas(work, [0, 1]):
        bare_client(work.tuned, work.tuned.start, held[client], work.settings.lr)
        moved = work.tuned.flat - work.tuned.start.flat
        # Both sides take the same steps; AdamW turns rounding in tiny gradients into parts of a step.
        agree(f"client {client}'s parameters", float((moved - delta).norm() / delta.norm()), 1e-3)


def p1() -> Measured:
    return overhead(SMALL, clients=8, steps=10, batch_size=4, tokens=64, cohort=COHORT, count=8)


def p1b() -> Measured:
    return overhead(TINY, clients=8, steps=1, batch_size=1, tokens=16, cohort=8, count=40)


ROWS = {
    "P1": Bench("engine / bare loop, h256x6", 1.02, 1.05, p1, higher=False),
    "P1b": Bench("engine / bare loop, h64x4", 1.10, 1.25, p1b, higher=False),
}
