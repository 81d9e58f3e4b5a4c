"""A round whose aggregate is not finite, or has too few updates, has no effect but a line in the record."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.clients import CLIENTS, LAYOUT, TRAIN, Corrupted, Plain, run_of, same, site_of
from tests.hostile.updates import run

from fedloom.algorithms import SERVERS
from fedloom.algorithms.algorithm import Aggregate, FederatedAlgorithm, ServerState, TooFew, with_aggregate
from fedloom.algorithms.compose import Given, compose, make
from fedloom.client.client_memory import Memory
from fedloom.config.schema import Limits
from fedloom.engine.checkpoints import last_checkpoint, write_checkpoint
from fedloom.engine.rounds import MAX_UNAPPLIED_ROUNDS, TrainingState, run_rounds
from fedloom.params import Params
from fedloom.system.errors import UserError
from fedloom.wire.messages import Update

WIDE = Limits(max_norm=1e300, max_ratio=1e300)


def breaking(
    algorithm: FederatedAlgorithm, rounds: Iterable[int], part: str = "params"
) -> FederatedAlgorithm:
    """Return the algorithm with a server step that breaks the new state in some rounds."""
    bad = tuple(rounds)

    def combine(state: ServerState, updates: Iterable[Update], aggregate: Aggregate):
        after, figures = algorithm.combine(state, updates, aggregate)
        if state.round not in bad:
            return after, figures
        if part == "params":
            return replace(after, params=after.params.with_flat(after.params.flat * math.nan)), figures
        return replace(after, slots={**after.slots, part: after.slots[part] + math.inf}), figures

    return algorithm._replace(combine=combine)


def go(
    algorithm: FederatedAlgorithm,
    rounds: int,
    before: TrainingState | None = None,
    folder: Path | None = None,
    memory: Memory | None = None,
):
    """Run up to `rounds` rounds; return where that ends and the figures of each round."""
    logs, train = [], TRAIN.model_copy(update={"rounds": 9})

    def after_round(now: TrainingState, log: dict) -> None:
        logs.append(log)
        if folder is not None:
            write_checkpoint(folder, now)

    one = run_of(
        "any",
        train=train,
        limits=Limits(),
        algorithm=algorithm,
        after_round=after_round,
        training_state=before,
        rounds=rounds,
    )
    return run_rounds([one], Plain(site_of(algorithm, train, memory)))[0], logs


@pytest.mark.parametrize("name", SERVERS)
def test_the_state_and_what_clients_keep_stay_as_they_were(name: str, tmp_path: Path) -> None:
    algorithm = make(name, CLIENTS)
    before, _ = go(algorithm, 1)
    after, logs = go(breaking(algorithm, [1]), 2, folder=tmp_path)
    assert same(after, before)
    assert after.kept == before.kept
    assert after.state.round == 2
    assert after.norms == before.norms
    assert "not_applied" not in logs[0]
    assert "global parameters not finite" in logs[1]["not_applied"]
    assert math.isfinite(logs[1]["loss"])
    assert logs[1]["refused"] == []
    back = last_checkpoint(tmp_path, LAYOUT)
    assert back is not None
    assert same(back, before)
    assert back.missed == 1


def test_the_first_round_may_be_the_one_that_is_not_applied(tmp_path: Path) -> None:
    after, logs = go(breaking(make("scaffold", CLIENTS), [0]), 3, folder=tmp_path)
    assert ["not_applied" in log for log in logs] == [True, False, False]
    assert torch.isfinite(after.state.params.flat).all()


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_short_run_without_any_round_that_is_applied_does_not_end_as_if_it_had_trained(rounds: int) -> None:
    with pytest.raises(UserError, match="not finite"):
        go(breaking(make("fedavg", CLIENTS), range(rounds)), rounds)


@pytest.mark.parametrize(
    ("name", "part"), [("scaffold", "control"), ("fedadam", "v"), ("fedavgm", "velocity")]
)
def test_slots_are_checked_too(name: str, part: str) -> None:
    _, logs = go(breaking(make(name, CLIENTS), [1], part), 3)
    assert [part in log.get("not_applied", "") for log in logs] == [False, True, False]


def test_the_last_of_several_such_rounds_in_a_row_ends_the_run() -> None:
    with pytest.raises(UserError, match=rf"round 3: .*not finite.* {MAX_UNAPPLIED_ROUNDS} such rounds"):
        go(breaking(make("fedavg", CLIENTS), [1, 2, 3]), 9)
    after, logs = go(breaking(make("fedavg", CLIENTS), [1, 2, 4, 5]), 9)  # never three in a row
    assert after.missed == 0
    assert [k for k, log in enumerate(logs) if "not_applied" in log] == [1, 2, 4, 5]


def test_a_resumed_run_keeps_its_count_of_missed_rounds(tmp_path: Path) -> None:
    algorithm = breaking(make("fedavg", CLIENTS), range(1, 9))
    go(algorithm, 3, folder=tmp_path)
    with pytest.raises(UserError, match="round 3"):
        go(algorithm, 9, last_checkpoint(tmp_path, LAYOUT), tmp_path)


def test_deltas_whose_sum_is_not_finite_are_not_applied() -> None:
    """Each is finite, and a user's own bound lets them in."""

    def huge(good: Update) -> Update:
        return replace(good, delta=Params(LAYOUT, torch.full((LAYOUT.size,), 3e38)))

    for name in ("fedavg", "fedadam", "fednova", "fedmean"):
        result, logs = run(name, {3: huge, 4: huge}, limits=WIDE, rounds=(1,))
        assert torch.isfinite(result.state.params.flat).all()
        assert [log["refused"] for log in logs] == [[], [], []]
        assert ["not_applied" in log for log in logs] == [False, True, False]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_left_out_of_the_mean(loss: float) -> None:
    def said(good: Update) -> Update:
        return replace(good, metrics={**good.metrics, "loss": loss})

    one, logs = run("fedavg", {2: said})
    plain, right = run("fedavg")
    assert torch.equal(one.state.params.flat, plain.state.params.flat)  # its delta is as good as any
    for log, whole in zip(logs, right, strict=True):
        others = [row for row in whole["clients"] if row["client"] != 2]
        mean = sum(row["loss"] * row["weight"] for row in others) / sum(row["weight"] for row in others)
        assert log["loss"] == pytest.approx(mean)
    _, logs = run("fedavg", dict.fromkeys(range(CLIENTS), said))
    assert [log["loss"] for log in logs] == [None, None, None]


# Too few updates --------------------------------------------------------------------------------------


def with_silent(rounds: tuple[int, ...], *, count: int = 9, silent: tuple[int, ...] = (1,)):
    """Run Krum over five clients, as few as it takes, of which some do not answer in some rounds."""
    algorithm, logs = compose(["fedavg", "krum"], Given(CLIENTS)), []
    train = TRAIN.model_copy(update={"rounds": count})
    one = run_of("any", train=train, algorithm=algorithm, after_round=lambda now, log: logs.append(log))
    bad = dict.fromkeys(silent, lambda good: None)
    return run_rounds([one], Corrupted(site_of(algorithm, train), bad, rounds))[0], logs


def test_a_round_with_fewer_updates_than_the_aggregate_needs_is_not_applied() -> None:
    one, logs = with_silent((1,), count=2)
    before, _ = with_silent((), count=1)
    assert same(one, before)
    assert one.kept == before.kept
    assert one.norms == before.norms
    assert (one.state.round, one.missed) == (2, 1)
    assert "not_applied" not in logs[0]
    assert (
        "Krum with f = 1 needs at least 2f + 3 = 5 clients in a round, and there are 4"
        in logs[1]["not_applied"]
    )
    assert "client 1: it did not answer" in logs[1]["not_applied"]
    assert [row["client"] for row in logs[1]["missing"]] == [1]
    assert math.isfinite(logs[1]["loss"])  # of those who answered


def test_a_run_goes_on_after_too_few_updates_and_ends_after_three_such_rounds() -> None:
    after, logs = with_silent((1, 2, 4, 5))
    assert [k for k, log in enumerate(logs) if "not_applied" in log] == [1, 2, 4, 5]
    assert after.missed == 0
    with pytest.raises(
        UserError, match=rf"round 3: .*Krum.* the last of {MAX_UNAPPLIED_ROUNDS} such rounds in a row"
    ):
        with_silent((1, 2, 3))
    with pytest.raises(UserError, match=r"round 0: .*Krum.* the only round"):
        with_silent((0,), count=1)


def test_updates_that_an_aggregate_did_not_wait_for_are_counted() -> None:
    """One that gives up at the first update leaves the answers of the training beside it where they belong."""

    def hasty(updates: Iterable[Update], state: ServerState):
        next(iter(updates))
        if state.round == 1:
            raise TooFew("nothing pleases it")
        return torch.zeros(LAYOUT.size), {}

    def pair(aggregate: Aggregate | None):
        logs: dict[str, list] = {"left": [], "right": []}
        plain = make("fedavg", CLIENTS)
        algorithms = {"left": with_aggregate(plain, lambda own: aggregate or own), "right": plain}
        runs = [
            run_of(
                name,
                clients,
                algorithm=algorithms[name],
                after_round=lambda now, log, name=name: logs[name].append(log),
            )
            for name, clients in (("left", (0, 1, 2)), ("right", (3, 4)))
        ]
        return run_rounds(runs, Plain(site_of(plain))), logs

    (_, right), logs = pair(hasty)
    (_, expected), whole = pair(None)
    assert same(right, expected)
    assert "nothing pleases it" in logs["left"][1]["not_applied"]
    assert [row["client"] for row in logs["left"][1]["clients"]] == [0, 1, 2]
    assert logs["left"][1]["bytes_up"] == whole["left"][1]["bytes_up"]
