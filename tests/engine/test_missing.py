"""A client that is silent, raises or is killed is missing: its round and the runs beside it go on without it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.hostile.updates import CLIENTS, LAYOUT, TRAIN, Honest, held

from fedloom.algorithms import ALGORITHMS, make
from fedloom.algorithms.base import LocalRule
from fedloom.client.train import Answer, Work
from fedloom.data.shapes import MAKERS
from fedloom.engine.in_process import InProcess
from fedloom.engine.matching import SILENT, matched
from fedloom.engine.rounds import MISSED, Backend, Run, Schedule, Standing, run_rounds
from fedloom.engine.workers import Workers, packed, unpacked
from fedloom.messages import Missing
from fedloom.models.load import load_vlm
from fedloom.params import Params
from fedloom.processes import can_fork
from fedloom.record import Clock
from fedloom.sections import Gate, Train
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategy import LoRA, stage
from fedloom.types import Presence, Tensors, UserError

from .test_workers import assert_same_bits

PERMISSIVE = Gate(max_norm=1e300, max_ratio=1e300)


@dataclass(frozen=True)
class Without:
    """Leaves clients out in some rounds: `how` makes what comes in their place, nothing where it is None."""

    who: tuple[int, ...]
    rounds: tuple[int, ...]
    how: Callable[[Work], Answer] | None = None

    def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Answer]:
        for work in works:
            if work.client not in self.who or work.round not in self.rounds:
                yield from Honest().map([work], clock)
            elif self.how is not None:
                yield self.how(work)


def broken(work: Work) -> Answer:
    return Missing(work.client, "it broke")


def go(
    name: str, backend: Backend, rounds: int = 3, start: Standing | None = None
) -> tuple[Standing, list[dict[str, Any]]]:
    logs: list[dict[str, Any]] = []
    run = training(name, rounds, lambda now, log: logs.append(log), start=start)
    return run_rounds([run], backend)[0], logs


def training(
    name: str,
    rounds: int,
    committed: Callable[..., None],
    clients: Sequence[int] = range(CLIENTS),
    start: Standing | None = None,
) -> Run:
    algorithm = make(name, CLIENTS)
    begun = start or Standing(algorithm.init(Params(LAYOUT, torch.linspace(-1, 1, LAYOUT.size))))
    schedule = Schedule(rounds, clients, None, 0)
    train = TRAIN.model_copy(update={"rounds": 9})
    return Run(algorithm, begun, schedule, held, train, PERMISSIVE, committed=committed)


def same(left: Standing, right: Standing) -> bool:
    one, two = ({"params": now.state.params.flat, **now.state.slots} for now in (left, right))
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("how", [None, broken])
def test_a_missing_client_leaves_the_round_as_if_it_had_been_refused(
    name: str, how: Callable[[Work], Answer] | None
) -> None:
    """State, and what clients keep, are the same; the record gives the reason; nothing came from it."""

    def nan(work: Work) -> Answer:
        ((update, memory),) = Honest().map([work], Clock())
        return replace(update, delta=update.delta.with_flat(update.delta.flat * torch.nan)), memory

    found, logs = go(name, Without((2,), (1,), how))
    refused, its = go(name, Without((2,), (1,), nan))
    assert same(found, refused)
    for client in range(CLIENTS):
        mine, theirs = found.memories.get(client, {}), refused.memories.get(client, {})
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    assert [log["missing"] for log in logs] == [
        [],
        [{"client": 2, "reason": SILENT if how is None else "it broke"}],
        [],
    ]
    assert all(log["refused"] == [] for log in logs)
    assert logs[1]["bytes_up"] < its[1]["bytes_up"] == logs[0]["bytes_up"]
    assert logs[1]["bytes_down"] == logs[0]["bytes_down"]  # it was sent to


@given(st.data())
def test_every_client_that_was_asked_has_one_answer(data: st.DataObject) -> None:
    clients = data.draw(st.lists(st.integers(0, 20), max_size=12, unique=True))
    came = [k for k in range(len(clients)) if data.draw(st.booleans())]
    answers = list(matched([Missing(clients[k], f"{k}") for k in came], clients))
    assert [answer.client for answer in answers if isinstance(answer, Missing)] == clients
    assert [one.reason for one in answers if isinstance(one, Missing) and one.reason != SILENT] == [
        str(k) for k in came
    ]


def test_silent_clients_of_several_runs_stop_neither() -> None:
    """Each run has clients of its own, as clients that train alone are."""
    parts, backend = {"fedavg": (0, 1, 2), "scaffold": (3, 4)}, Without((0, 2, 3), (1,))
    logs: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    runs = [
        training(name, 3, lambda _, log, name=name: logs[name].append(log), clients)
        for name, clients in parts.items()
    ]
    together = run_rounds(runs, backend)
    for (name, clients), found in zip(parts.items(), together, strict=True):
        its: list[dict[str, Any]] = []
        (alone,) = run_rounds([training(name, 3, lambda _, log, its=its: its.append(log), clients)], backend)
        assert same(found, alone)
        assert [log["missing"] for log in logs[name]] == [log["missing"] for log in its]
    assert [one["client"] for one in logs["fedavg"][1]["missing"]] == [0, 2]
    assert [one["client"] for one in logs["scaffold"][1]["missing"]] == [3]


def test_a_backend_that_never_looks_at_its_works_is_silent() -> None:
    class Deaf:
        def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Answer]:
            return iter(())

    with pytest.raises(UserError, match=SILENT):
        go("fedavg", Deaf())


def test_a_round_that_nobody_answers_is_not_applied_and_the_next_goes_on() -> None:
    everybody = tuple(range(CLIENTS))
    found, logs = go("fedadam", Without(everybody, (1,)), rounds=3)
    assert "no client's update could be used" in logs[1]["not_applied"]
    assert logs[1]["bytes_up"] == 0
    assert found.state.round == 3
    assert found.missed == 0


def test_several_such_rounds_in_a_row_end_the_run_and_give_the_reasons() -> None:
    everybody, rounds = tuple(range(CLIENTS)), tuple(range(1, 1 + MISSED))
    with pytest.raises(UserError, match=rf"round {MISSED}: no client.*client 0: it broke.*last of {MISSED}"):
        go("fedavg", Without(everybody, rounds, broken), rounds=9)
    with pytest.raises(UserError, match=r"round 0: no client.*the only round"):
        go("fedavg", Without(everybody, (0,)), rounds=1)


# Real clients.


@pytest.fixture
def tuned(tiny_model: Path) -> Tuned:
    return prepare(load_vlm(str(tiny_model)), stage("both", LoRA(rank=2)), seed=0)


def works(tuned: Tuned, spoil: Callable[[], None], bad: int, count: int = 5) -> list[Work]:
    """One client has a rule that spoils its work; the others have none."""
    algorithm = make("fedavg", count)
    broadcast, settings = algorithm.broadcast(algorithm.init(tuned.start)), Train(batch_size=2)
    told = []
    for client in range(count):
        examples = [MAKERS["vqa"](stream(client, "t", step=k), str(k)) for k in range(3)]
        told.append([TASKS["vqa"].render(one, Presence(True, True), answer_form="text") for one in examples])

    def correct(grads: torch.Tensor, params: torch.Tensor, carry: Tensors) -> tuple[torch.Tensor, Tensors]:
        spoil()
        return grads, carry

    rule: LocalRule = algorithm.local._replace(correct=correct)
    return [
        Work(k, 0, 0, rule if k == bad else algorithm.local, broadcast, {}, told[k], settings)
        for k in range(count)
    ]


def fail() -> None:
    raise ZeroDivisionError("of an algorithm from outside")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_client_that_raises_is_missing_and_the_others_learn_what_they_learn(
    rows: int, tuned: Tuned
) -> None:
    expected = list(InProcess(tuned).map(works(tuned, lambda: None, 1), Clock()))
    found = list(InProcess(tuned, rows).map(works(tuned, fail, 1), Clock()))
    (missing,) = [one for one in found if isinstance(one, Missing)]
    assert (missing.client, found.index(missing)) == (1, 1)
    assert missing.reason.startswith(
        "ZeroDivisionError: of an algorithm from outside, test_missing.py, line "
    )
    others = [(mine, theirs) for mine, theirs in zip(found, expected, strict=True) if mine is not missing]
    for mine, theirs in others:
        assert not isinstance(mine, Missing)
        assert not isinstance(theirs, Missing)
        left, right = mine[0].delta.flat, theirs[0].delta.flat
        assert float((left - right).norm()) <= 1e-3 * float(right.norm())
        if rows == 1:
            assert torch.equal(left, right)


def test_memory_that_runs_out_is_the_clients_own_matter_only_where_it_trains_alone(tuned: Tuned) -> None:
    def short() -> None:
        raise MemoryError

    alone = list(InProcess(tuned).map(works(tuned, short, 1), Clock()))
    (missing,) = [one for one in alone if isinstance(one, Missing)]
    assert "memory ran out" in missing.reason
    with pytest.raises(MemoryError):
        list(InProcess(tuned, 3).map(works(tuned, short, 1), Clock()))


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_memory_that_runs_out_side_by_side_in_a_process_stops_the_run_too(tuned: Tuned) -> None:
    def short() -> None:
        raise MemoryError

    with pytest.raises(UserError, match="memory ran out"):
        list(Workers(InProcess(tuned, 3), 2).map(works(tuned, short, 1), Clock()))


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_clients_of_a_killed_process_are_missing(tuned: Tuned) -> None:
    here = os.getpid()

    def die() -> None:
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    expected = list(InProcess(tuned).map(works(tuned, lambda: None, 2), Clock()))
    found = list(Workers(InProcess(tuned), 2).map(works(tuned, die, 2), Clock()))
    missing = {one.client: one.reason for one in found if isinstance(one, Missing)}
    assert 2 in missing
    assert all("SIGKILL" in reason for reason in missing.values())
    came = [(k, one) for k, one in enumerate(found) if not isinstance(one, Missing)]
    assert came
    assert_same_bits([one for _, one in came], [expected[k] for k, _ in came])


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_a_client_that_raises_in_a_process_takes_nobody_with_it(tuned: Tuned) -> None:
    found = list(Workers(InProcess(tuned), 2).map(works(tuned, fail, 2), Clock()))
    assert [one.client for one in found if isinstance(one, Missing)] == [2]


def test_a_missing_client_survives_bytes() -> None:
    missing = Missing(7, "it broke: ünten")
    assert unpacked(packed(missing), LAYOUT) == missing
