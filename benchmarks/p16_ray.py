"""P16: rounds by Ray's actors against our own worker processes, after their start, on the wall clock.

Both sides have two processes with one thread each, and train the same clients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.harness import Bench, Measured, Pairs, agree, needs, pairs
from benchmarks.models import SMALL, Size
from benchmarks.work import Clients, make_clients, run_round
from fedloom.client.client_memory import Files
from fedloom.client.site import Site
from fedloom.engine.in_process import InProcess
from fedloom.engine.ray_actors import Actors, RayActors
from fedloom.engine.ray_cluster import ActorRequest
from fedloom.engine.worker_processes import Workers

PROCESSES = 2
TRAINING: dict[str, Any] = {"size": SMALL, "clients": 8, "steps": 4, "batch_size": 4, "tokens": 64}
NOTHING: dict[str, Any] = {
    "size": Size(width=64, layers=1),
    "clients": 32,
    "steps": 1,
    "batch_size": 1,
    "tokens": 16,
}


@contextmanager
def opened(case: dict[str, Any], folder: str) -> Iterator[Site]:
    """Open the site of an actor."""
    import torch

    torch.set_num_threads(1)
    yield _site(make_clients(**case), folder)


def _site(made: Clients, folder: str) -> Site:
    return replace(made.site, memory=Files(Path(folder)))


def _both(case: dict[str, Any], count: int) -> Pairs:
    needs("ray")
    made = make_clients(**case)
    with (
        TemporaryDirectory() as folder,
        closing(Actors(ActorRequest(PROCESSES), opened, (case, folder))) as actors,
    ):
        inner = InProcess(_site(made, folder))
        backends = [RayActors(inner, actors), Workers(inner, PROCESSES)]
        cohort = range(case["clients"])
        ours, rival = (partial(run_round, one, made.tuned.start, cohort, made) for one in backends)
        agree("averaged parameters", float((ours().flat - rival().flat).abs().max()), 0)
        return pairs(ours, rival, count, clock=perf_counter)


def against_workers() -> Measured:
    """Compare rounds of clients that train."""
    found = _both(TRAINING, 9)
    return found.cost, found.said(ours="Ray", rival="our workers", per=TRAINING["clients"]) + " a client"


def a_client() -> Measured:
    """Measure milliseconds a client where its work is next to nothing: one step over 16 tokens, one layer."""
    found, clients = _both(NOTHING, 15), NOTHING["clients"]
    said = found.said(ours="Ray", rival="our workers", per=clients)
    return [1000 * seconds / clients for seconds in found.ours], f"{said} a client"


ROWS = {
    "P16-round": Bench("Ray / our workers, h256x6", 1.05, 1.25, against_workers, higher=False),
    "P16-client": Bench("Ray, a client of no work", 20, 40, a_client, higher=False, unit="ms"),
}
