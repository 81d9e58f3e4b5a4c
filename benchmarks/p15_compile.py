"""P15: steps with compiled layers (`engine.compile`) against plain ones, after compilation."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from benchmarks.harness import Bench, Measured, Missing, agree, pairs, span
from benchmarks.models import SMALL
from benchmarks.work import apart, make_clients, round_of
from fedloom.models.compiled_layers import compiling

STEPS = 4


def against_plain(clients: int, way: str, batch_size: int, tokens: int) -> Callable[[], Measured]:
    """Compare whole rounds, language model h256×6."""

    def measure() -> Measured:
        if shutil.which("c++") is None:
            raise Missing("torch.compile needs a C++ compiler")
        made = make_clients(
            SMALL, clients=clients, steps=STEPS, batch_size=batch_size, tokens=tokens, alike=True
        )
        plain = round_of(made, way)

        def compiled():
            with compiling(made.tuned.vlm):
                return plain()

        begun = time.perf_counter()
        result = compiled()
        first = time.perf_counter() - begun
        agree("averaged adapters", apart(result.flat, plain().flat, made.tuned.start.flat), 1e-3)
        times = pairs(compiled, plain, 15)
        summary = times.summary(ours="compiled", rival="plain", per=clients * STEPS)
        return times.gain, f"{summary} a step; compiling takes {span(first)}"

    return measure


ROWS = {
    "P15-T32": Bench("compiled, b1 T32", 1.2, 1, against_plain(1, "sequential", 1, 32)),
    "P15-cohort": Bench("compiled, 8 side by side", 1.1, 0.97, against_plain(8, "cohort", 1, 32)),
    "P15-b8": Bench("compiled, b8 T64", 1, 0.9, against_plain(1, "sequential", 8, 64)),
}
