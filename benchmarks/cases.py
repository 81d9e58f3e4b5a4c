"""The work of P3's clients, and our side of it; Flower's side is `flower_side`, which this does not import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks.models import SMALL, TINY, Size
from benchmarks.work import Clients, NoOp, make_clients, nudge, round_of, run_round
from fedloom.params import Params

ACTORS = 2


@dataclass(frozen=True)
class Case:
    """The work of clients: train `size` for some steps, or do nothing to `tensors` tensors of `values` values."""

    clients: int
    size: Size | None = None
    steps: int = 0
    tokens: int = 0
    tensors: int = 0
    values: int = 0


CASES = {
    "noop": Case(20, tensors=120, values=1_000),  # 0.48 MB
    "19MB": Case(10, tensors=420, values=11_428),
    "h64": Case(20, size=TINY, steps=2, tokens=16),
    "h256": Case(8, size=SMALL, steps=4, tokens=32),
}


@cache
def work_of(name: str) -> Clients:
    """Build a training case once per process: the model stays in the Ray actor between messages."""
    torch.set_num_threads(1)
    case = CASES[name]
    assert case.size is not None
    return make_clients(
        case.size, clients=case.clients, steps=case.steps, batch_size=1, tokens=case.tokens, alike=True
    )


@cache
def noop_of(name: str) -> NoOp:
    """Build a no-op case."""
    return NoOp.of(CASES[name].tensors, CASES[name].values)


def start_of(name: str) -> Params:
    """Return the parameters from which every round starts."""
    return (
        Params(noop_of(name).layout, noop_of(name).live * 0)
        if CASES[name].tensors
        else work_of(name).tuned.start
    )


def local(name: str, client: int, flat: Tensor) -> Tensor:
    """Compute a client's parameters from those that it receives, in both frameworks; shape [P] → [P]."""
    if CASES[name].tensors:
        return flat + nudge(client)
    made = work_of(name)
    (update,) = made.updates([made.job(client, sent=made.tuned.start.with_flat(flat))])
    return flat + update.delta.flat


def our_round(name: str, way: str) -> Params:
    """Run the same round in one process."""
    if CASES[name].tensors:
        return run_round(noop_of(name), start_of(name), range(CASES[name].clients))
    return our_training(name, way)()


@cache
def our_training(name: str, way: str) -> Callable[[], Params]:
    """Return the round of a training case; the number of clients side by side is chosen once."""
    return round_of(work_of(name), way)
