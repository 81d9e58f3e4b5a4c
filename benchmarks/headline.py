"""The headline: the quickstart's FedAvg run, whole command, against the published way and Flower's simulation.

    make bench ONLY=headline

It takes minutes and runs on demand only. The three sides end with the same adapter; only fedloom chooses among
options by likelihood in batches, where the published way generates one answer after the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, Measured, agree, child, needs, span

RECIPE = "quickstart"
OVERRIDES = ("methods=[fedavg]",)


def whole_command(side: str, *libraries: str) -> Callable[[], Measured]:
    """Run fedloom and a rival once each, from starting Python to the exported adapter."""

    def measure() -> Measured:
        needs(*libraries)
        from benchmarks.headline_sides import apart, run_of
        from fedloom.tuning.export_adapter import export_adapter

        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            run = run_of(RECIPE)
            export_adapter(run.tuned, run.tuned.start, place / "start")
            times: dict[str, float] = {}
            scores: dict[str, Any] = {}
            for name in ("fedloom", side):
                begun = time.perf_counter()
                scores[name] = child("headline", name, RECIPE, str(place / name), threads=None, timeout=3600)
                times[name] = time.perf_counter() - begun
            agree(
                "final adapters",
                apart(place / "fedloom" / "adapter", place / side / "adapter", place / "start"),
                0.02,
            )
        scores = "; ".join(
            f"{name} {span(times[name])}, accuracy "
            + ", ".join(f"{part} {value:.3f}" for part, value in scores[name].items())
            for name in scores
        )
        return [times[side] / times["fedloom"]], f"{scores}; each once"

    return measure


def fedloom(recipe: str, out: Path) -> dict[str, float]:
    """Run the same command as a user, and return the accuracy of each slice."""
    settings = [part for one in OVERRIDES for part in ("--set", one)]
    command = [sys.executable, "-m", "fedloom", "run", recipe, *settings, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    slices = result["scores"]["fedavg"]["slices"]
    return {name: row["accuracy"] for name, row in slices.items()}


def main(side: str, recipe: str, out: str) -> None:
    """Run one side, in a fresh process, and print the scores of its model."""
    if side == "fedloom":
        scores = fedloom(recipe, Path(out))
    else:
        from benchmarks import headline_sides

        scores = getattr(headline_sides, side)(recipe, Path(out) / "adapter")
    print("\n" + json.dumps(scores))


ROWS = {
    "headline-published": Bench(
        "vs the published way", 1, None, whole_command("published", "accelerate"), on_demand=True
    ),
    "headline-flower": Bench(
        "vs Flower's simulation", 1, None, whole_command("flower", "flwr", "ray"), on_demand=True
    ),
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["FLWR_HOME"] = home
        main(*sys.argv[1:])
