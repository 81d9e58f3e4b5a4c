"""A client that is silent, raises or is killed is missing: its round and the runs beside it go on without it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clients import (
    CLIENTS,
    TRAIN,
    Corrupted,
    Plain,
    assigned,
    real_site,
    run_of,
    same,
    site_of,
    start_of,
)
from torch import Tensor

from fedloom.algorithms import SERVERS
from fedloom.algorithms.compose import make
from fedloom.client.client_memory import Files, InMemory
from fedloom.client.local_job import Job
from fedloom.client.site import Site
from fedloom.engine.client_order import SILENT, in_order
from fedloom.engine.in_process import InProcess
from fedloom.engine.rounds import MAX_UNAPPLIED_ROUNDS, Backend, Training, TrainingState, run_rounds
from fedloom.engine.trains_in_pieces import TrainsInPieces
from fedloom.engine.worker_processes import Workers
from fedloom.params import Params, Part
from fedloom.runs import train_in_backend
from fedloom.system.errors import UserError
from fedloom.system.processes import can_fork
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.strategy_parts import Parts
from fedloom.types import Tensors
from fedloom.wire.messages import Answer, Assignment, Missing, Update

from .test_worker_processes import assert_same_bits

LONG = TRAIN.model_copy(update={"rounds": 9})
How = Callable[[Update], Answer | None]


def silent(update: Update) -> None:
    return None


def broken(update: Update) -> Answer:
    return Missing(update.client, "it broke")


def nan(update: Update) -> Answer:
    return replace(update, delta=update.delta.with_flat(update.delta.flat * torch.nan))


def without(name: str, who: Iterable[int], rounds: tuple[int, ...], how: How = silent) -> Corrupted:
    return Corrupted(site_of(make(name, CLIENTS), LONG), dict.fromkeys(who, how), rounds)


def go(
    name: str, backend: Backend, rounds: int = 3, clients: Sequence[int] = range(CLIENTS)
) -> tuple[TrainingState, list[dict[str, Any]]]:
    logs: list[dict[str, Any]] = []
    run = run_of(name, clients, LONG, rounds=rounds, after_round=lambda now, log: logs.append(log))
    return run_rounds([run], backend)[0], logs


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("how", [silent, broken])
def test_a_missing_client_leaves_the_round_as_if_it_had_been_refused(name: str, how: How) -> None:
    """The state and the accepted memories are the same; the record gives the reason; no bytes came from the client."""
    training_state, logs = go(name, without(name, [2], (1,), how))
    refused, its = go(name, without(name, [2], (1,), nan))
    assert same(training_state, refused)
    assert training_state.kept == refused.kept
    reason = SILENT if how is silent else "it broke"
    assert [log["missing"] for log in logs] == [[], [{"client": 2, "reason": reason}], []]
    assert all(log["refused"] == [] for log in logs)
    assert logs[1]["bytes_up"] < its[1]["bytes_up"] == logs[0]["bytes_up"]
    assert logs[1]["bytes_down"] == its[1]["bytes_down"]  # the assignment was sent


@given(st.data())
def test_every_client_that_was_asked_has_one_answer_in_order(data: st.DataObject) -> None:
    """This holds in any order, if clients are silent, answer twice or were not asked, in memory and in a file."""
    clients = data.draw(st.lists(st.integers(0, 20), max_size=12, unique=True))
    came = data.draw(st.lists(st.integers(0, 25), max_size=20))
    strays: list[int] = []
    held = data.draw(st.sampled_from([0, 10**9]))
    answers = [Update(client, start_of(), float(k)) for k, client in enumerate(came)]
    results = list(in_order(answers, clients, lambda one, why: strays.append(one.client), held))
    assert [one.client for one in results] == clients
    for one in results:
        if isinstance(one, Missing):
            assert (one.reason, one.client in came) == (SILENT, False)
        else:
            assert one.weight == came.index(one.client)
            assert torch.equal(one.delta.flat, start_of().flat)
    seen = [client for client in came if client in clients]
    if len(set(seen)) < len(clients):  # then all answers were read
        assert sorted(strays) == sorted(
            client for k, client in enumerate(came) if client not in clients or client in came[:k]
        )


def test_an_answer_waits_only_for_those_before_it() -> None:
    taken: list[int] = []

    def coming() -> Iterator[Answer]:
        for client in (1, 0, 3, 2):
            taken.append(client)
            yield Missing(client, "")

    answers = in_order(coming(), range(4), lambda *_: None)
    assert [next(answers).client for _ in range(2)] == [0, 1]
    assert taken == [1, 0]


@pytest.mark.parametrize("name", SERVERS)
def test_any_order_of_answers_gives_the_same_bits(name: str) -> None:
    class Reversed(Plain):
        def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
            yield from reversed(list(super().train(assignments, clock)))

    site = site_of(make(name, CLIENTS), LONG)
    training_state, logs = go(name, Reversed(site))
    plain, its = go(name, Plain(site_of(make(name, CLIENTS), LONG)))
    assert same(training_state, plain)
    assert [log["bytes_up"] for log in logs] == [log["bytes_up"] for log in its]


def test_silent_clients_of_several_runs_stop_none_of_them() -> None:
    """Each run has clients of its own, as where clients train alone."""
    parts = {"fedavg": (0, 1, 2), "fedadam": (3, 4)}
    backend = without("fedavg", (0, 2, 3), (1,))
    logs: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    runs = [
        run_of(
            name,
            clients,
            LONG,
            rounds=3,
            after_round=lambda _, log, name=name: logs[name].append(log),
        )
        for name, clients in parts.items()
    ]
    together = run_rounds(runs, backend)
    for (name, clients), result in zip(parts.items(), together, strict=True):
        alone, its = go(name, backend, 3, clients)
        assert same(result, alone)
        assert [log["missing"] for log in logs[name]] == [log["missing"] for log in its]
    assert [one["client"] for one in logs["fedavg"][1]["missing"]] == [0, 2]
    assert [one["client"] for one in logs["fedadam"][1]["missing"]] == [3]


def test_a_backend_that_never_reads_its_assignments_is_silent() -> None:
    class Deaf(Plain):
        def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
            return iter(())

    with pytest.raises(UserError, match=SILENT):
        go("fedavg", Deaf(site_of(make("fedavg", CLIENTS))))


def test_a_round_that_nobody_answers_is_not_applied_and_the_next_goes_on() -> None:
    training_state, logs = go("fedadam", without("fedadam", range(CLIENTS), (1,)))
    assert "no client's update could be used" in logs[1]["not_applied"]
    assert logs[1]["bytes_up"] == 0
    assert training_state.state.round == 3
    assert training_state.missed == 0


def test_several_such_rounds_in_a_row_end_the_run_and_give_the_reasons() -> None:
    everybody, rounds = range(CLIENTS), tuple(range(1, 1 + MAX_UNAPPLIED_ROUNDS))
    with pytest.raises(
        UserError,
        match=rf"round {MAX_UNAPPLIED_ROUNDS}: no client.*client 0: it broke.*last of {MAX_UNAPPLIED_ROUNDS}",
    ):
        go("fedavg", without("fedavg", everybody, rounds, broken), rounds=9)
    with pytest.raises(UserError, match=r"round 0: no client.*the only round"):
        go("fedavg", without("fedavg", everybody, (0,)), rounds=1)


def test_a_client_whose_memory_is_lost_is_missing_and_the_others_go_on() -> None:
    memory = InMemory()
    backend = Plain(site_of(make("scaffold", CLIENTS), LONG, memory))
    first, _ = go("scaffold", backend, 2)
    lost = {key: value for key, value in memory.memories.items() if key[1] != 3}
    memory.memories.clear()
    memory.memories.update(lost)
    logs: list[dict[str, Any]] = []
    run = run_of(
        "scaffold", train=LONG, rounds=3, training_state=first, after_round=lambda _, log: logs.append(log)
    )

    class Guarded(Plain):
        def client(self, assignment: Assignment) -> Answer:
            try:
                return super().client(assignment)
            except UserError as error:
                return Missing(assignment.client, str(error))

    run_rounds([run], Guarded(backend.site))
    assert [one["client"] for one in logs[0]["missing"]] == [3]
    assert "lost" in logs[0]["missing"][0]["reason"]


# Real clients.


@dataclass(frozen=True, eq=False)
class Spoiled(Site):
    """A site at which one client's rule calls `spoil`."""

    bad: int = 1
    spoil: Callable[[], None] = lambda: None

    def job(self, assignment: Assignment) -> Job:
        job = super().job(assignment)
        return replace(job, rule=job.rule._replace(correct=self.correct)) if job.client == self.bad else job

    def correct(self, grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
        self.spoil()
        return grads, carry


def spoiled(tuned: Tuned, spoil: Callable[[], None], bad: int) -> Site:
    site = real_site(tuned)
    return Spoiled(tuned, site.seed, site.method, site.memory, bad=bad, spoil=spoil)


def fail() -> None:
    raise ZeroDivisionError("of an algorithm from outside")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_client_that_raises_is_missing_and_the_others_give_the_same_updates(
    rows: int, tuned: Tuned
) -> None:
    expected = list(InProcess(real_site(tuned)).train(assigned(tuned), Clock()))
    actual = list(InProcess(spoiled(tuned, fail, 1), rows).train(assigned(tuned), Clock()))
    (missing,) = [one for one in actual if isinstance(one, Missing)]
    assert (missing.client, actual.index(missing)) == (1, 1)
    assert missing.reason.startswith(
        "ZeroDivisionError: of an algorithm from outside, test_missing.py, line "
    )
    others = [(mine, theirs) for mine, theirs in zip(actual, expected, strict=True) if mine is not missing]
    for mine, theirs in others:
        assert isinstance(mine, Update)
        assert isinstance(theirs, Update)
        left, right = mine.delta.flat, theirs.delta.flat
        assert float((left - right).norm()) <= 1e-3 * float(right.norm())
        if rows == 1:
            assert torch.equal(left, right)


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_client_whose_rule_leaves_the_program_is_missing(rows: int, tuned: Tuned) -> None:
    answers = list(InProcess(spoiled(tuned, leave, 1), rows).train(assigned(tuned), Clock()))
    (missing,) = [one for one in answers if isinstance(one, Missing)]
    assert missing.client == 1 and missing.reason.startswith("SystemExit: 3, test_missing.py, line ")


def test_what_a_client_would_keep_must_be_finite() -> None:
    """Otherwise none of its later updates could be admitted."""
    algorithm, memory = make("scaffold", CLIENTS), InMemory()

    def finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        sent, kept = algorithm.local.finish(carry, steps)
        return sent, {name: value * float("nan") for name, value in kept.items()}

    rule = algorithm.local._replace(finish=finish)
    backend = Plain(site_of(algorithm._replace(local=rule), memory=memory))
    with pytest.raises(UserError, match="keeps as rule/control holds values that are not finite"):
        go("scaffold", backend, 1)
    assert not memory.memories


def test_a_client_out_of_memory_is_missing_only_where_it_trains_alone(tuned: Tuned) -> None:
    def short() -> None:
        raise MemoryError

    site = spoiled(tuned, short, 1)
    alone = list(InProcess(site).train(assigned(tuned), Clock()))
    (missing,) = [one for one in alone if isinstance(one, Missing)]
    assert "memory ran out" in missing.reason
    with pytest.raises(MemoryError):
        list(InProcess(site, 3).train(assigned(tuned), Clock()))


@dataclass(frozen=True, eq=False)
class WithoutMemory(Site):
    """A site whose accelerator has no memory for the values of one client."""

    def job(self, assignment: Assignment) -> Job:
        if assignment.client == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().job(assignment)


class InPieces(TrainsInPieces):
    """A backend whose other process is this one."""

    def begin(self) -> int:
        return 1

    def results(self, pieces: Iterator[Sequence[Assignment]]) -> Iterator[tuple[Sequence[Assignment], str]]:
        return ((piece, "it trains nothing") for piece in pieces)


def jobs_before_a_choice(inner: InProcess, assignments: Sequence[Assignment]) -> Iterator[Job]:
    run = run_of("fedavg")
    context: Any = SimpleNamespace(site=inner.site)
    with patch.object(train_in_backend, "assignments_of", lambda _: assignments):
        yield from train_in_backend._jobs(context, [run])


@pytest.mark.parametrize(
    "work",
    [
        lambda inner, some: inner.train(some, Clock()),
        lambda inner, some: inner.measure(some, "any"),
        lambda inner, some: InPieces(inner).train(some, Clock()),
        jobs_before_a_choice,
    ],
    ids=["training", "measuring", "in pieces", "before a choice"],
)
def test_no_client_is_missing_where_an_accelerator_lacks_memory(
    work: Callable[[InProcess, Sequence[Assignment]], Iterator[Any]], tuned: Tuned, tmp_path: Path
) -> None:
    site = real_site(tuned)
    inner = InProcess(WithoutMemory(tuned, site.seed, site.method, Files(tmp_path)), rows=2)
    with pytest.raises(torch.OutOfMemoryError):
        list(work(inner, assigned(tuned)))


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_running_out_of_memory_side_by_side_in_a_process_stops_the_run_too(tuned: Tuned) -> None:
    def short() -> None:
        raise MemoryError

    with pytest.raises(UserError, match="memory ran out"):
        list(Workers(InProcess(spoiled(tuned, short, 1), 3), 2).train(assigned(tuned), Clock()))


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_clients_of_a_killed_process_are_missing(tuned: Tuned) -> None:
    here = os.getpid()

    def die() -> None:
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    expected = list(InProcess(real_site(tuned)).train(assigned(tuned), Clock()))
    actual = list(Workers(InProcess(spoiled(tuned, die, 2)), 2).train(assigned(tuned), Clock()))
    missing = {one.client: one.reason for one in actual if isinstance(one, Missing)}
    assert 2 in missing
    assert all("SIGKILL" in reason for reason in missing.values())
    came = [(k, one) for k, one in enumerate(actual) if not isinstance(one, Missing)]
    assert came
    assert_same_bits([one for _, one in came], [expected[k] for k, _ in came])


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_a_client_that_raises_in_a_process_stops_no_other(tuned: Tuned) -> None:
    answers = list(Workers(InProcess(spoiled(tuned, fail, 2)), 2).train(assigned(tuned), Clock()))
    assert [one.client for one in answers if isinstance(one, Missing)] == [2]


def test_the_server_cannot_ask_for_what_stays_with_clients(tuned: Tuned) -> None:
    site = real_site(tuned)
    plain = site.method("fedavg")
    connector = tuned.layout.mask(lambda name: name.startswith("connector"))
    own = Part.of(connector)
    parts = Parts(own.complement, own.complement, own, own | own.complement)
    local = replace(plain, stages=[plain.stages[0]._replace(parts=parts)])
    answers = list(InProcess(replace(site, method=lambda method: local)).train(assigned(tuned), Clock()))
    assert all(isinstance(one, Missing) and "stay with clients" in one.reason for one in answers)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_a_client_that_fails_does_not_change_the_runs_beside_its_own(
    how: str, rows: int, tuned: Tuned
) -> None:
    """Two trainings in step, as of clients that train alone: one loses a client, the other gives what it gives alone."""
    if how == "is killed" and not can_fork():
        pytest.skip("this system cannot copy a process")
    here = os.getpid()

    def die() -> None:
        if how == "raises":
            fail()
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    algorithm, site = make("fedavg", CLIENTS), spoiled(tuned, die, 1)
    inner = InProcess(site, rows)
    backend = inner if how == "raises" else Workers(inner, 2)
    logs: dict[tuple[int, ...], list[dict[str, Any]]] = {}

    def run(clients: tuple[int, ...]) -> Training:
        logs[clients] = []
        begun = TrainingState(algorithm.init(tuned.start))
        return run_of(
            "fedavg",
            clients,
            site.method("fedavg").stages[0].settings,
            algorithm=algorithm,
            training_state=begun,
            rounds=2,
            after_round=lambda _, log: logs[clients].append(log),
        )

    together = run_rounds([run((0, 1)), run((2, 3, 4))], backend)
    missing = {
        clients: {one["client"] for log in rounds for one in log["missing"]}
        for clients, rounds in logs.items()
    }
    assert 1 in missing[0, 1]
    if how == "raises":
        assert missing == {(0, 1): {1}, (2, 3, 4): set()}
        (alone,) = run_rounds([run((2, 3, 4))], backend)
        left, right = (one.state.params.flat - tuned.start.flat for one in (together[1], alone))
        assert float((left - right).norm()) <= 1e-3 * float(right.norm())
        if rows == 1:
            assert torch.equal(left, right)
    assert all(one.state.round == 2 for one in together)


class Again(Plain):
    """A backend in which client 4, the last one, answers twice."""

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        for answer in super().train(assignments, clock):
            yield from [answer] * (1 + (answer.client == 4))


@pytest.mark.parametrize("split", [[(0, 1, 2, 3, 4)], [(0, 1), (2, 3, 4)]])
def test_stray_answers_after_all_others_are_counted(split: list[tuple[int, ...]]) -> None:
    """A second answer costs its bytes and is refused, the last client's as any other's."""
    results: dict[type, list[dict[str, Any]]] = {}
    for kind in (Plain, Again):
        results[kind] = []
        runs = [
            run_of(
                "fedavg", who, LONG, rounds=1, after_round=lambda _, log, kind=kind: results[kind].append(log)
            )
            for who in split
        ]
        run_rounds(runs, kind(site_of(make("fedavg", CLIENTS), LONG)))
    up = {kind: sum(log["bytes_up"] for log in logs) for kind, logs in results.items()}
    last = Plain(site_of(make("fedavg", CLIENTS), LONG)).client(Assignment("fedavg", 0, 0, 4, start_of()))
    assert isinstance(last, Update)
    assert up[Again] - up[Plain] == len(last.to_bytes())
    assert [one["client"] for log in results[Again] for one in log["refused"]] == [4]


@pytest.mark.parametrize(
    "odd",
    [
        {"extras": {"control": torch.ones(3, dtype=torch.complex64)}},
        {"extras": {str(k): torch.ones(1) for k in range(99)}},
        {"delta": Params(start_of().layout, torch.zeros(2, start_of().layout.size))},
        {"weight": "many"},
    ],
)
def test_an_update_that_no_message_can_hold_waits_for_its_refusal(odd: dict[str, Any]) -> None:
    answers = [replace(Update(1, start_of(), 1.0), **odd), Update(0, start_of(), 1.0)]
    results = list(in_order(answers, [0, 1], lambda *_: None, waiting_bytes=0))
    assert [one.client for one in results] == [0, 1]
    assert results[1] is answers[0]


def test_a_run_that_lags_behind_and_fails_stops_no_more_than_one_in_step() -> None:
    """Killed between the commits of two trainings, the one behind fails as it would have beside the other."""
    site = site_of(make("fedavg", CLIENTS), LONG)
    backend = Corrupted(site, {4: broken}, tuple(range(9)))

    def runs() -> list[Training]:
        return [run_of("fedavg", (client,), LONG, rounds=4) for client in (0, 4)]

    whole = run_rounds(runs(), backend)
    three = run_rounds([replace(run, schedule=replace(run.schedule, rounds=3)) for run in runs()], backend)
    two = run_rounds([replace(run, schedule=replace(run.schedule, rounds=2)) for run in runs()], backend)
    behind = [
        replace(run, training_state=training_state)
        for run, training_state in zip(runs(), (three[0], two[1]), strict=True)
    ]
    again = run_rounds(behind, backend)
    assert [one.state.round for one in again] == [4, 4]
    assert all(same(left, right) for left, right in zip(whole, again, strict=True))


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
@pytest.mark.parametrize(
    "extras",
    [
        {"a": torch.ones(3, dtype=torch.complex64)},
        {"a": torch.ones(2).to_sparse()},
        {str(k): torch.ones(1) for k in range(99)},
        {3: torch.ones(1)},
    ],
)
def test_a_rule_that_sends_what_no_message_can_hold_makes_its_client_missing_everywhere(
    extras: Tensors, tuned: Tuned
) -> None:
    site = real_site(tuned)

    @dataclass(frozen=True, eq=False)
    class Odd(Site):
        def job(self, assignment: Assignment) -> Job:
            job = super().job(assignment)
            rule = job.rule._replace(finish=lambda carry, steps: (extras, {"b": torch.ones(1)}))
            return replace(job, rule=rule) if job.client == 1 else job

    memory = InMemory()
    odd = Odd(tuned, site.seed, site.method, memory)
    for backend in (InProcess(odd), InProcess(odd, 2), Workers(InProcess(odd), 2)):
        answers = list(backend.train(assigned(tuned), Clock()))
        (missing,) = [one for one in answers if isinstance(one, Missing)]
        assert missing.client == 1
        assert "cannot be sent" in missing.reason
    assert not memory.memories


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_gradient_of_another_shape_is_not_spread_over_all_values(
    shape: tuple[int, ...], tuned: Tuned
) -> None:
    @dataclass(frozen=True, eq=False)
    class Odd(Spoiled):
        def correct(self, grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
            return torch.ones(shape), carry

    site = real_site(tuned)
    odd = Odd(tuned, site.seed, site.method, site.memory)
    answers = list(InProcess(odd).train(assigned(tuned), Clock()))
    (missing,) = [one for one in answers if isinstance(one, Missing)]
    assert missing.client == 1
    assert "gradient" in missing.reason
