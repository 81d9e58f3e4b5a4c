"""Flower's side of P3: a ServerApp and a ClientApp for Ray's simulation, with our client function inside.

This is a separate module, so that Ray's workers import it by name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from benchmarks.cases import ACTORS, CASES, local, start_of
from benchmarks.work import apart
from fedloom.params import Params


def pack(params: Params, whole: bool) -> ArrayRecord:
    """Write parameters into Flower's record: one array, or one for each tensor as its examples do."""
    if whole:
        return ArrayRecord({"flat": Array(params.flat.numpy())})
    return ArrayRecord({name: Array(view.numpy()) for name, view in params.items()})


def unpack(record: ArrayRecord, like: Params) -> Tensor:
    """Read parameters from Flower's record, shape [P]."""
    names = ["flat"] if "flat" in record else like.layout.names
    return torch.from_numpy(np.concatenate([record[name].numpy().reshape(-1) for name in names]))


CLIENT = ClientApp()


@CLIENT.train()
def answer(message: Message, context: Context) -> Message:
    """Answer one message: load, work, send back parameters and a weight."""
    config, sent = message.content["config"], message.content["arrays"]
    assert isinstance(config, ConfigRecord) and isinstance(sent, ArrayRecord)
    name, whole = str(config["case"]), bool(config["whole"])
    like = start_of(name)
    done = local(name, int(context.node_config["partition-id"]), unpack(sent, like))
    content = {"arrays": pack(like.with_flat(done), whole), "metrics": MetricRecord({"num-examples": 1.0})}
    return Message(content=RecordDict(content), reply_to=message)


HEADLINE = ClientApp()


@HEADLINE.train()
def answer_recipe(message: Message, context: Context) -> Message:
    """Answer one message of the headline run."""
    from benchmarks.headline_sides import client_parameters, run_of

    config, sent = message.content["config"], message.content["arrays"]
    assert isinstance(config, ConfigRecord) and isinstance(sent, ArrayRecord)
    recipe, client = str(config["recipe"]), int(context.node_config["partition-id"])
    run = run_of(recipe)
    done = client_parameters(recipe, client, int(str(config["round"])), unpack(sent, run.tuned.start))
    weight = float(run.weights[client])
    arrays = pack(run.tuned.start.with_flat(done), whole=False)
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": weight})}
    return Message(content=RecordDict(content), reply_to=message)


def ray_simulation(server: ServerApp, client: ClientApp, clients: int) -> None:
    """Run Flower's simulation on two Ray workers of one processor each."""
    from flwr.simulation import run_simulation

    run_simulation(
        server,
        client,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": ACTORS, "logging_level": logging.ERROR, "log_to_driver": False},
        },
    )


def simulate(
    name: str, rounds: int, *, whole: bool, ours: Sequence[Callable[[], Params]] = ()
) -> dict[str, Any]:
    """Run rounds in Flower's simulation, each followed by the same round in this process.

    Args:
        name: A key of `CASES`.
        rounds: Timed rounds, after one untimed one in which actors start and build their model.
        whole: Send one array instead of one per tensor.
        ours: Our ways of running the round; each is timed after every round of Flower's.

    Returns:
        Wall seconds of Flower's rounds and of ours, and the distance of the averages.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    case, app = CASES[name], ServerApp()
    times_of: dict[str, Any] = {"rival": [], "ours": [[] for _ in ours], "away": 0.0}

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=case.clients, min_available_nodes=case.clients
        )
        like = start_of(name)
        for number in range(rounds + 1):
            begun = time.perf_counter()
            config = ConfigRecord({"case": name, "whole": whole})
            sent = strategy.configure_train(number + 1, pack(like, whole), config, grid)
            averaged, _ = strategy.aggregate_train(number + 1, grid.send_and_receive(sent, timeout=300))
            if averaged is None:
                raise RuntimeError("Flower's clients failed")
            if number:
                times_of["rival"].append(time.perf_counter() - begun)
            theirs = unpack(averaged, like)
            for way, times in zip(ours, times_of["ours"], strict=True):
                begun = time.perf_counter()
                mine = way()
                if number:
                    times.append(time.perf_counter() - begun)
                times_of["away"] = max(times_of["away"], apart(mine.flat, theirs, like.flat))

    ray_simulation(app, CLIENT, case.clients)
    if len(times_of["rival"]) < rounds:
        raise RuntimeError("Flower's simulation ended before its rounds were done")
    return times_of
