"""Measure cost per client and peak memory for growing numbers of clients: `python -m benchmarks.scale`.

There are three kinds of clients, each in a cohort of one round of the whole engine:

    train      one AdamW step of a 64 × 4 language model on 16 tokens, FedAvg
    keep       a trivial client that keeps a vector between rounds (SCAFFOLD), written to files
    trivial    a client that adds a number to 4,096 values, FedAvg

Each size runs in a process of its own. Results go to `results/scale.json`; docs/scale.md reads them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, child, machine, peak_memory
from benchmarks.models import TINY
from benchmarks.work import OPEN, Trainless, make_clients, run_round, sequential, train_settings
from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.fedavg import fedavg
from fedloom.algorithms.local_rule import LocalRule
from fedloom.algorithms.scaffold import scaffold
from fedloom.client.client_memory import Files, InMemory, Memory
from fedloom.engine.checkpoints import write_checkpoint
from fedloom.engine.client_sampling import Schedule
from fedloom.engine.rounds import AfterRound, Training, TrainingState, run_rounds
from fedloom.params import Layout, Params
from fedloom.system.json_files import write_json
from fedloom.system.timing import Clock
from fedloom.types import Broadcast
from fedloom.wire.messages import Assignment, Update

RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
LAYOUT = Layout.of({"w": (4096,)})
SIZES = {
    "train": (10, 100, 1_000, 10_000),
    "keep": (10, 100, 1_000, 10_000),
    "trivial": (10, 100, 1_000, 10_000, 100_000, 1_000_000),
}


@dataclass(frozen=True)
class Trivial(Trainless):
    """A backend whose clients add a number to every value.

    Attributes:
        rule: The client half of the algorithm.
        memory: Storage of the values that the rule keeps between rounds.
    """

    rule: LocalRule
    memory: Memory = field(default_factory=InMemory)

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Update]:
        """Do all of a client's work except training."""
        for asked in assignments:
            key = (asked.method, asked.client, asked.round)
            memory = {} if asked.since < 0 else self.memory.read((*key[:2], asked.since))
            carry = self.rule.begin(Broadcast(asked.params, asked.extras), memory)
            start = asked.params.flat
            _, carry = self.rule.correct(torch.zeros_like(start), start, carry)
            extras, kept = self.rule.finish(carry, 1)
            if kept:
                self.memory.write(key, kept, (*asked.keep, asked.since))
            delta = torch.full_like(start, 1e-3 * (asked.client % 7))
            yield Update(asked.client, asked.params.with_flat(delta), 1.0, extras, keeps=bool(kept))
            clock.lap("step")


def _standing(now: TrainingState, log: dict[str, Any]) -> None:
    pass


def _round(
    name: str,
    algorithm: FederatedAlgorithm,
    clients: int,
    memory: Memory | None = None,
    after_round: AfterRound = _standing,
) -> None:
    start, schedule = (
        TrainingState(algorithm.init(Params.zeros(LAYOUT))),
        Schedule(1, range(clients), None, 0),
    )
    backend = Trivial(algorithm.local, memory or InMemory())
    known, settings = backend.describe(name), train_settings(1)
    run_rounds([Training(name, algorithm, start, schedule, known, settings, OPEN, after_round)], backend)


def trivial(clients: int) -> None:
    """Run a round of FedAvg with trivial clients."""
    _round("fedavg", fedavg(), clients)


def keep(clients: int) -> None:
    """Run a round of SCAFFOLD with trivial clients, whose control variates are stored in files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def after_round(now: TrainingState, log: dict[str, Any]) -> None:
            write_checkpoint(folder, now)

        _round("scaffold", scaffold(clients=clients), clients, Files(folder), after_round)


def train(clients: int) -> None:
    """Run a round of FedAvg with clients that train one after the other."""
    few = make_clients(TINY, clients=8, steps=1, batch_size=1, tokens=16)
    held = {client: few.held[client % 8] for client in range(clients)}
    everyone = replace(few, held=held)
    run_round(sequential(everyone), few.tuned.start, range(clients), everyone)


KINDS: dict[str, Callable[[int], None]] = {"train": train, "keep": keep, "trivial": trivial}


def measure(kind: str, clients: int) -> None:
    """Measure a round, in a fresh process, after a small round to warm up."""
    torch.set_num_threads(1)
    KINDS[kind](2)
    before, begun, used = peak_memory(), time.perf_counter(), time.process_time()
    KINDS[kind](clients)
    print(
        json.dumps(
            {
                "clients": clients,
                "ms_per_client": 1e3 * (time.process_time() - used) / clients,
                "seconds": time.perf_counter() - begun,
                "peak_mb": peak_memory() / 1e6,
                "grown_mb": (peak_memory() - before) / 1e6,
            }
        )
    )


def main() -> None:
    """Measure all sizes, print a table, and write the results."""
    results: dict[str, Any] = {"machine": machine()}
    print(f"{'clients':>10} {'kind':8} {'ms/client':>10} {'wall s':>8} {'peak MB':>8} {'grown MB':>9}")
    for kind, sizes in SIZES.items():
        results[kind] = []
        for clients in sizes:
            row = child("scale", kind, str(clients))
            results[kind].append(row)
            print(
                f"{clients:10,} {kind:8} {row['ms_per_client']:10.3f} {row['seconds']:8.1f} "
                f"{row['peak_mb']:8.0f} {row['grown_mb']:9.1f}",
                flush=True,
            )
    write_json(RESULTS, results)


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2])) if len(sys.argv) == 3 else main()
