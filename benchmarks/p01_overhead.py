"""P1: the cost of the whole engine over a bare loop of forward, backward and step on the same tensors."""

from __future__ import annotations

from itertools import cycle

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import SMALL, TINY, Size
from benchmarks.work import Batch, Clients, apart, bare_client, make_clients, round_of, tensors

COHORT = 2  # clients of one timed round; a round of all eight would leave time for too few pairs


def overhead(
    size: Size, *, clients: int, steps: int, batch_size: int, tokens: int, cohort: int, count: int
) -> Measured:
    """Measure rounds of the engine against a bare loop over the same clients."""
    made = make_clients(size, clients=clients, steps=steps, batch_size=batch_size, tokens=tokens)
    tuned, lr = made.tuned, made.settings.lr
    held = {client: [tensors(tuned, batch) for batch in made.job(client).batches()] for client in made.held}
    _check(made, held)
    groups = [range(first, first + cohort) for first in range(0, clients, cohort)]
    rounds, turns = cycle([round_of(made, cohort=group) for group in groups]), cycle(groups)

    def rival() -> None:
        for client in next(turns):
            bare_client(tuned, tuned.start, held[client], lr)

    measured = pairs(lambda: next(rounds)(), rival, count)
    return measured.cost, measured.summary(rival="bare loop", per=cohort * steps) + " a step"


def _check(made: Clients, held: dict[int, list[Batch]]) -> None:
    start = made.tuned.start
    for client in (0, 1):
        (update,) = made.updates([made.job(client)])
        bare_client(made.tuned, start, held[client], made.settings.lr)
        # Both sides take the same steps; AdamW turns rounding in tiny gradients into parts of a step.
        away = apart(start.flat + update.delta.flat, made.tuned.flat[0], start.flat)
        agree(f"client {client}'s parameters", away, 1e-3)


def p1() -> Measured:
    return overhead(SMALL, clients=8, steps=10, batch_size=4, tokens=64, cohort=COHORT, count=8)


def p1b() -> Measured:
    return overhead(TINY, clients=8, steps=1, batch_size=1, tokens=16, cohort=8, count=40)


ROWS = {
    "P1": Bench("engine / bare loop, h256x6", 1.02, 1.05, p1, higher=False),
    "P1b": Bench("engine / bare loop, h64x4", 1.10, 1.25, p1b, higher=False),
}
