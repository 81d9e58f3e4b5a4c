"""A client that sends the opposite of what it learned: robust aggregates train on, and the mean does not."""

from __future__ import annotations

import pytest
import torch
from tests.clients import PERMISSIVE, Corrupted, run_of, site_of, start_of
from tests.hostile.updates import scaled
from tests.shares import each_once

from fedloom.algorithms.compose import Given, compose
from fedloom.config.schema import Train
from fedloom.engine.rounds import run_rounds

CLIENTS = range(20, 27)
"""Client k's loss is least where all parameters are k; training starts around 0."""

TRAIN = Train(rounds=25, batch_size=64, lr=0.3, optimizer="sgd", schedule="constant", clip=None)

ARGUMENTS = {"fedavg": {"uniform": True}, "centered-clipping": {"bound": 3.0}, "clip": {"bound": 20.0}}


def end(method: str, faulty: int | None) -> tuple[torch.Tensor, float]:
    """Return where training ends, shape [P], and the best point for the honest clients."""
    given = Given(len(CLIENTS), seed=3)
    algorithm = compose(method.split("+"), given, lambda name: ARGUMENTS.get(name, {}))
    one = run_of(method, tuple(CLIENTS), TRAIN, PERMISSIVE, algorithm=algorithm)
    site = site_of(algorithm, TRAIN, clients=max(CLIENTS) + 1)
    bad = {} if faulty is None else {faulty: scaled(-10.0)}
    training_state = run_rounds([one], Corrupted(site, bad, tuple(range(TRAIN.rounds))))[0]
    honest = [client for client in CLIENTS if client != faulty]
    return training_state.state.params.flat, sum(honest) / len(honest)


ROBUST = (
    "fedavg+krum",
    "fedavg+multi-krum",
    "fedavg+median",
    "fedavg+trimmed-mean",
    "fedavg+geometric-median",
    "fedavg+centered-clipping",
    "fedavg+median+nearest-mixing",
    "fedavg+median+bucketing",
    "fedavg+krum+clip",
)


@pytest.mark.parametrize(("method", "faulty"), each_once(ROBUST, (20, 23, 26)))
def test_robust_aggregates_end_among_the_honest_clients(method: str, faulty: int) -> None:
    result, best = end(method, faulty)
    assert float((result - best).abs().max()) <= 3.5  # half of what lies between the honest clients


@pytest.mark.parametrize("faulty", [20, 23, 26])
def test_the_mean_ends_farther_away_than_it_started(faulty: int) -> None:
    result, best = end("fedavg", faulty)
    assert float((result - best).abs().min()) > 10 * float((start_of().flat - best).abs().max())


def test_without_a_faulty_client_the_mean_converges() -> None:
    result, best = end("fedavg", None)
    assert float((result - best).abs().max()) < 0.1
