"""P3: rounds in one process against Flower's Ray simulation of the same clients, on the wall clock.

Both sides have both cores: Flower as two worker processes of one thread, we as one process of two threads or as two
copies of it of one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.harness import Bench, Measured, Pairs, agree, child, needs, span

ROUNDS = 5


def per_round(case: str, *, whole: bool = False, way: str = "sequential") -> Callable[[], Measured]:
    """Compare rounds, start-up left out."""

    def measure() -> Measured:
        needs("flwr", "ray")
        result = child("p03_flower", "both", case, "flat" if whole else "tensors", way)
        agree("averaged parameters", result["away"], 1e-4)
        measured = Pairs(tuple(result["ours"][0]), tuple(result["rival"]))
        return measured.gain, measured.summary(rival="Flower", per=result["clients"]) + " a client"

    return measure


def command() -> Measured:
    """Compare whole commands, from starting Python to the last of two rounds; one pair, because it takes long."""
    needs("flwr", "ray")
    times = []
    for side in ("ours", "flower"):
        begun = time.perf_counter()
        child("p03_flower", side, "h64", "tensors", "auto")
        times.append(time.perf_counter() - begun)
    return [times[1] / times[0]], f"fedloom {span(times[0])}, Flower {span(times[1])}, each once"


def main(side: str, name: str, packing: str, way: str) -> None:
    """Run both sides alternately, in a fresh process, or one of them to time the whole command."""
    from fedloom.system.allocator import keep_freed
    from fedloom.system.garbage_collection import without_garbage_collection

    with without_garbage_collection():
        import torch

        from benchmarks.cases import ACTORS, CASES, our_round

    keep_freed()

    def ours():
        torch.set_num_threads(ACTORS)
        return our_round(name, way)

    if side == "ours":
        for _ in range(2):
            ours()
        print(json.dumps({}))
        return
    from benchmarks.flower_side import simulate

    whole = packing == "flat"
    result = (
        simulate(name, ROUNDS, whole=whole, ours=[ours]) if side == "both" else simulate(name, 1, whole=whole)
    )
    print(json.dumps({**result, "clients": CASES[name].clients}))


ROWS = {
    "P3-noop": Bench("vs Flower, no-op 0.5 MB", 80, 40, per_round("noop")),
    "P3-noop-flat": Bench("  one array a message", 1, 1, per_round("noop", whole=True)),
    "P3-19MB": Bench("vs Flower, no-op 19 MB", 10, 5, per_round("19MB")),
    "P3-19MB-flat": Bench("  one array a message", 1, 1, per_round("19MB", whole=True)),
    "P3-h64": Bench("vs Flower, h64 training", 12, 6, per_round("h64", way="auto")),
    "P3-h64-sequential": Bench("  one client at a time", 1, 1, per_round("h64")),
    "P3-h64-flat": Bench("  one array a message", 1, 1, per_round("h64", whole=True, way="auto")),
    "P3-h256": Bench("vs Flower, h256x4 steps", 3, 1.5, per_round("h256", way="workers")),
    "P3-h256-cohort": Bench("  as a run chooses", 6, 3, per_round("h256", way="auto")),
    "P3-h256-flat": Bench("  one array a message", 1, 1, per_round("h256", whole=True, way="workers")),
    "P3-command": Bench("vs Flower, whole command", 9, 4.5, command),
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["FLWR_HOME"] = home
        main(*sys.argv[1:])
