"""P6: averaging 32 updates of 19 MB, against reading them once and against other frameworks' averages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Bench, Measured, agree, child, pairs, peak_memory
from fedloom.algorithms.fedavg import fedavg
from fedloom.params import Layout, Params
from fedloom.wire.messages import Update

TENSORS, VALUES, CLIENTS = 420, 4_800_000 // 420, 32
LAYOUT = Layout.of({f"layer.{number:03d}": (VALUES,) for number in range(TENSORS)})
ALGORITHM = fedavg()
STATE = ALGORITHM.init(Params.zeros(LAYOUT))


@cache
def rows() -> Tensor:
    """Return the updates, shape [K, P], P = 4.8 million."""
    return torch.randn(CLIENTS, LAYOUT.size, generator=torch.Generator().manual_seed(0)) * 1e-3


def weight(client: int) -> float:
    """Return the number of a client's examples."""
    return 10.0 + client


def ours() -> Tensor:
    """Average as a FedAvg round does, from updates to new parameters."""
    updates = (Update(client, Params(LAYOUT, row), weight(client)) for client, row in enumerate(rows()))
    return ALGORITHM.apply(STATE, updates)[0].params.flat


def against(rival: Callable[[], Tensor], name: str, count: int = 7) -> Callable[[], Measured]:
    """Compare with another average of the same updates."""

    def measure() -> Measured:
        agree("averages", float((rival() - ours()).abs().max()), 1e-7)
        times = pairs(ours, rival, count)
        return times.gain, times.summary(rival=name)

    return measure


def floor() -> Measured:
    """Compare with reading every update once, a lower bound of the time of an average."""
    times = pairs(ours, lambda: rows().sum(), 9)
    return times.cost, times.summary(rival="reading")


@cache
def _arrays() -> list[list[np.ndarray]]:
    return [[view.numpy() for _, view in Params(LAYOUT, row).items()] for row in rows()]


@cache
def _messages() -> list:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    times = []
    for client, arrays in enumerate(_arrays()):
        record = ArrayRecord({name: Array(one) for name, one in zip(LAYOUT.names, arrays, strict=True)})
        times.append(RecordDict({"arrays": record, "metrics": MetricRecord({"n": weight(client)})}))
    return times


def flower_messages() -> Tensor:
    """Compute Flower's average of messages, as its FedAvg does."""
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    done = aggregate_arrayrecords(_messages(), "n")
    return torch.from_numpy(np.concatenate([done[name].numpy() for name in LAYOUT.names])).float()


def flower_arrays() -> Tensor:
    """Compute Flower's average of lists of arrays."""
    from flwr.server.strategy.aggregate import aggregate

    done = aggregate([(arrays, int(weight(client))) for client, arrays in enumerate(_arrays())])
    return torch.from_numpy(np.concatenate(done))


def seeds_loop() -> Tensor:
    """Compute the average as FedVLMBench does: for each name, a sum over the clients' dictionaries."""
    held = [dict(Params(LAYOUT, row).items()) for row in rows()]
    total = sum(weight(client) for client in range(CLIENTS))
    average = copy.deepcopy(held[0])
    for name in average:
        average[name] = sum(held[client][name] * weight(client) / total for client in range(CLIENTS))
    return torch.cat([average[name] for name in LAYOUT.names])


def memory() -> Measured:
    """Measure the peak memory while averaging a stream of updates, in units of one update."""
    times = child("p06_aggregation")
    return [times["updates"]], f"peak {times['mb']:.0f} MB while averaging {times['clients']} clients"


def main() -> None:
    """Average a stream of updates, in a fresh process, and print the growth of memory."""
    import json

    clients, fresh = 64, torch.randn(LAYOUT.size)

    def stream():
        for client in range(clients):
            yield Update(client, Params(LAYOUT, fresh.clone()), weight(client))

    before = peak_memory()
    ALGORITHM.apply(STATE, stream())
    risen = peak_memory() - before
    print(json.dumps({"updates": risen / (4 * LAYOUT.size), "mb": risen / 1e6, "clients": clients}))


ROWS = {
    "P6-floor": Bench("average / reading once", 1.15, 1.4, floor, higher=False),
    "P6-flower-messages": Bench("vs Flower's messages", 18, 12, against(flower_messages, "Flower", 5)),
    "P6-flower-arrays": Bench("vs Flower's arrays", 4.5, 3, against(flower_arrays, "Flower")),
    "P6-seeds": Bench("vs the published loop", 4, 3, against(seeds_loop, "loop")),
    "P6-memory": Bench("peak memory, in updates", 18, None, memory, higher=False, unit="updates"),
}

if __name__ == "__main__":
    main()
