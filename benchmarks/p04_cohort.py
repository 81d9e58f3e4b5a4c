"""P4: eight clients side by side against the same clients one after the other, in our own engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.harness import Bench, Measured, Missing, agree, pairs
from benchmarks.models import SMALL
from benchmarks.work import ROWS as SIDE_BY_SIDE
from benchmarks.work import Clients, make_clients, round_of

STEPS = 2


def against_sequential(tokens: int, batch_size: int, way: str) -> Callable[[], Measured]:
    """Compare whole rounds of eight clients with two steps each, language model h256×6."""

    def measure() -> Measured:
        made = make_clients(SMALL, clients=SIDE_BY_SIDE, steps=STEPS, batch_size=batch_size, tokens=tokens)
        plain = replace(made, settings=made.settings.model_copy(update={"optimizer": "sgd", "lr": 0.1}))
        away, _ = _away(plain)
        agree("parameters after plain gradient steps", away, 1e-6)
        # AdamW takes whole steps along gradients that are nothing but rounding: there only the sum can agree.
        agree("parameters after AdamW", _away(made)[1], 1e-3)
        times = pairs(round_of(made, way), round_of(made, "sequential"), 15)
        summary = times.summary(ours=way, rival="sequential", per=SIDE_BY_SIDE * STEPS)
        return times.gain, f"{summary} a client-step; parameters within {away:.1g}"

    return measure


def _away(made: Clients) -> tuple[float, float]:
    """Return the distance of clients' deltas: the largest difference, and the largest distance over length."""
    jobs = [made.job(client) for client in made.held]
    alone = [update.delta.flat for job in jobs for update in made.updates([job])]
    together = [update.delta.flat for update in made.updates(jobs)]
    both = list(zip(alone, together, strict=True))
    largest = max(float((a - b).abs().max()) for a, b in both)
    return largest, max(float((a - b).norm() / a.norm()) for a, b in both)


def gpu() -> Measured:
    """Raise Missing: `benchmarks.gpu` measures this row for several sizes of model."""
    if torch.cuda.is_available():
        raise Missing("run `python -m benchmarks.gpu` for this machine's GPU")
    raise Missing("this machine has no GPU; benchmarks/gpu.py is the script for one")


ROWS = {
    "P4-T16": Bench("side by side, b1 T16", 2.4, 1.8, against_sequential(16, 1, "cohort")),
    "P4-T32": Bench("side by side, b1 T32", 1.9, 1.5, against_sequential(32, 1, "cohort")),
    "P4-T64": Bench("side by side, b1 T64", 1.5, 1.25, against_sequential(64, 1, "cohort")),
    "P4-auto-T256": Bench("auto, b1 T256", 0.97, 0.93, against_sequential(256, 1, "auto")),
    "P4-auto-b4": Bench("auto, b4 T64", 0.97, 0.93, against_sequential(64, 4, "auto")),
    "P4g": Bench("side by side, one GPU", 5, 3, gpu),
}
