"""P7: the engine's cost per client for 100 to 10,000 clients, without training."""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Bench, Disagreement, Measured, child, peak_memory, span
from benchmarks.work import NoOp, nudge, run_round
from fedloom.params import Params
from fedloom.system.allocator import keep_freed

TENSORS, VALUES = 120, 4_000  # 0.48 million values
ROOM = 6 * 2**30  # bytes of memory a side may take; more ends it with a reason


def engine(clients: int) -> Tensor:
    """Run a round of no-op clients through the engine."""
    backend = NoOp.of(TENSORS, VALUES)
    return run_round(backend, Params.zeros(backend.layout), range(clients)).flat


def keep_all(clients: int) -> Tensor:
    """Run the same round and keep a deep copy of every client's parameters until its end, as published code does."""
    layout = NoOp.of(TENSORS, VALUES).layout
    start = {name: view.clone() for name, view in Params.zeros(layout).items()}
    model = copy.deepcopy(start)
    kept: dict[int, dict[str, Tensor]] = {}
    for client in range(clients):
        for name, value in start.items():
            model[name].copy_(value)
            model[name].add_(nudge(client))
        kept[client] = copy.deepcopy(model)
    average = {name: sum(kept[client][name] / clients for client in kept) for name in start}
    return torch.cat([average[name] for name in layout.names])  # type: ignore[arg-type]


SIDES: dict[str, Callable[[int], Tensor]] = {"engine": engine, "keep": keep_all}


def run(side: str, *counts: int) -> dict[str, Any]:
    """Run rounds of the given numbers of clients in a fresh process."""
    return child("p07_growth", side, *map(str, counts))


def flat() -> Measured:
    """Measure the time per client at 10,000 clients over that at 1,000, five times alternately in one process."""
    seconds = run("engine", *[1_000, 10_000] * 5)["seconds"]
    few, many = seconds[2::2], seconds[3::2]  # the first pair warms up
    ratios = [(b / 10_000) / (a / 1_000) for a, b in zip(few, many, strict=True)]
    return ratios, f"{span(median(many) / 10_000)} a client at 10,000, {span(median(few) / 1_000)} at 1,000"


def memory() -> Measured:
    """Measure how many MB more a round of 10,000 clients takes than one of 100."""
    few, many = (run("engine", clients)["peak"] for clients in (100, 10_000))
    return [(many - few) / 1e6], f"peak {few / 1e6:.0f} MB at 100 clients, {many / 1e6:.0f} MB at 10,000"


def keep_time() -> Measured:
    """Measure how many times longer keeping every client's copy takes, for 1,000 clients."""
    ratios = []
    for _ in range(3):
        ours, rival = run("engine", 100, 1_000), run("keep", 100, 1_000)
        _same(ours, rival)
        ratios.append(rival["seconds"][1] / ours["seconds"][1])
    times = (span(side["seconds"][1] / 1_000) for side in (ours, rival))
    return ratios, "fedloom {}, keeping all {} a client".format(*times)


def keep_memory() -> Measured:
    """Measure how many times more memory keeping every client's copy takes, for 1,000 clients."""
    ours, rival = run("engine", 1_000), run("keep", 1_000)
    _same(ours, rival)
    grown = f"fedloom grew by {ours['grown'] / 1e6:.0f} MB, keeping all by {rival['grown'] / 1e6:.0f} MB"
    return [rival["grown"] / ours["grown"]], grown


def _same(ours: dict[str, Any], rival: dict[str, Any]) -> None:
    if abs(ours["mean"] - rival["mean"]) > 1e-6:
        raise Disagreement(f"averages are {ours['mean']} and {rival['mean']}")


def main(side: str, *counts: str) -> None:
    """Run rounds, in a fresh process, and print the time of each and the growth of memory."""
    torch.set_num_threads(1)
    keep_freed()
    resource.setrlimit(resource.RLIMIT_AS, (ROOM + 2 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    SIDES[side](2)
    before, seconds, average = peak_memory(), [], torch.zeros(1)
    for clients in map(int, counts):
        begun = time.process_time()
        average = SIDES[side](clients)
        seconds.append(time.process_time() - begun)
    peak = peak_memory()
    results = {
        "seconds": seconds,
        "peak": peak,
        "grown": max(peak - before, 2**20),
        "mean": float(average.mean()),
    }
    print(json.dumps(results))


ROWS = {
    "P7-flat": Bench("ms/client, 10,000 / 1,000", 1.0, 1.15, flat, higher=False),
    "P7-memory": Bench("MB more at 10,000 than 100", 5, 20, memory, higher=False, unit="MB"),
    "P7-keep-time": Bench("vs keeping all, time", 15, 10, keep_time),
    "P7-keep-memory": Bench("vs keeping all, memory", 50, 25, keep_memory),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
