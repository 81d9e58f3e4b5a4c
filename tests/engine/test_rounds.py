"""Rounds and commits, with clients that are plain functions."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from fedloom.algorithms import ALGORITHMS, make
from fedloom.algorithms.base import FederatedAlgorithm
from fedloom.client.train import Result, Work
from fedloom.engine.rounds import Run, Schedule, Standing, draw_cohort, in_memory, run_rounds
from fedloom.engine.store import Stored, commit, last_commit, opened
from fedloom.messages import Update
from fedloom.params import Layout, Params
from fedloom.record import Clock
from fedloom.sections import Train
from fedloom.types import Conversation, UserError

LAYOUT = Layout.of({"w": (6,)})
TRAIN = Train(epochs=3, batch_size=1000, lr=0.1, optimizer="sgd", schedule="constant", clip=None)


def held(client: int) -> list[Conversation]:
    """What a client holds: one example more than its number says."""
    return [Conversation("", "")] * (client + 1)


@dataclass(frozen=True)
class Limits:
    max_norm: float | None = None
    max_ratio: float = 1e9


@dataclass(frozen=True)
class Pull:
    """Client k takes three gradient steps towards k; a client named in `bad` sends NaN in round 1."""

    bad: tuple[int, ...] = ()

    def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Result]:
        for work in works:
            client, rule, start = work.client, work.rule, work.broadcast.params.flat
            carry, flat = rule.begin(work.broadcast, work.memory), start.clone()
            for _ in range(3):
                grads, carry = rule.correct(flat - client, flat, carry)
                flat = flat - 0.1 * grads
            extras, memory = rule.finish(carry, 3)
            delta = flat - start
            if client in self.bad and work.round == 1:
                delta = delta * float("nan")
            clock.lap("step")
            yield Update(client, Params(LAYOUT, delta), client + 1.0, extras, {"loss": 1.0}), memory


def start(name: str) -> Standing:
    return Standing(make(name, 4).init(Params(LAYOUT, torch.linspace(-1, 1, 6))))


def whole_run(
    algorithm: FederatedAlgorithm,
    backend: Pull,
    standing: Standing,
    schedule: Schedule,
    committed: Callable[[Standing, dict], None] = lambda now, log: None,
    folder: Path | None = None,
) -> Standing:
    keep = in_memory if folder is None else partial(opened, folder)
    run = Run(algorithm, standing, schedule, held, TRAIN, Limits(), keep, committed)
    return run_rounds([run], backend)[0]


SCHEDULE = Schedule(rounds=4, clients=(0, 1, 2, 3), cohort=None, seed=0)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_and_going_on_from_a_commit_changes_no_bit(name: str, stop: int, tmp_path: Path) -> None:
    algorithm = make(name, 4)
    whole = whole_run(algorithm, Pull(), start(name), SCHEDULE)

    def committed(now: Standing, log: dict[str, object]) -> None:
        commit(tmp_path, now)
        if now.state.round == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole_run(algorithm, Pull(), start(name), SCHEDULE, committed, tmp_path)
    back = last_commit(tmp_path, LAYOUT)
    assert back is not None
    assert back.state.round == stop
    rest = whole_run(algorithm, Pull(), back, SCHEDULE)
    assert torch.equal(rest.state.params.flat, whole.state.params.flat)
    assert rest.norms == whole.norms
    assert (rest.up, rest.down) == (whole.up, whole.down)


def test_a_refused_client_leaves_the_round_as_if_it_had_not_come() -> None:
    algorithm, logs = make("fedavg", 4), []

    def committed(now: Standing, log: dict[str, object]) -> None:
        logs.append(log)

    with_bad = whole_run(
        algorithm, Pull(bad=(2,)), start("fedavg"), Schedule(2, (0, 1, 2, 3), None, 0), committed
    )
    first = whole_run(algorithm, Pull(), start("fedavg"), Schedule(1, (0, 1, 2, 3), None, 0))
    second = whole_run(algorithm, Pull(), first, Schedule(2, (0, 1, 3), None, 0))
    assert torch.equal(with_bad.state.params.flat, second.state.params.flat)
    assert [row["client"] for row in logs[1]["refused"]] == [2]
    assert logs[0]["refused"] == []


def test_a_run_stops_when_nobody_is_left() -> None:
    algorithm = make("fedavg", 4)
    with pytest.raises(UserError, match=r"round 1: every client.*client 3: delta"):
        whole_run(algorithm, Pull(bad=(0, 1, 2, 3)), start("fedavg"), SCHEDULE)


@pytest.mark.parametrize("damage", ["flip", "truncate", "no tensors", "half json"])
def test_a_damaged_commit_is_passed_over_for_the_one_before(damage: str, tmp_path: Path) -> None:
    algorithm = make("scaffold", 4)
    whole_run(
        algorithm,
        Pull(),
        start("scaffold"),
        SCHEDULE,
        lambda now, _: commit(tmp_path, now),
        tmp_path,
    )
    tensors, figures = tmp_path / "round-0004.safetensors", tmp_path / "round-0004.json"
    content = bytearray(tensors.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        tensors.write_bytes(content)
    elif damage == "truncate":
        tensors.write_bytes(content[:-10])
    elif damage == "no tensors":
        tensors.unlink()
    else:
        figures.write_text(figures.read_text()[:40])
    back = last_commit(tmp_path, LAYOUT)
    assert back is not None
    assert back.state.round == 3
    rest = whole_run(algorithm, Pull(), back, SCHEDULE)
    whole = whole_run(algorithm, Pull(), start("scaffold"), SCHEDULE)
    assert torch.equal(rest.state.params.flat, whole.state.params.flat)


def test_only_two_commits_are_kept(tmp_path: Path) -> None:
    algorithm = make("fedavg", 4)
    whole_run(algorithm, Pull(), start("fedavg"), SCHEDULE, lambda now, _: commit(tmp_path, now))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"round-000{number}.{end}" for number in (3, 4) for end in ("json", "safetensors")
    ]


def test_checkpoints_and_memories_are_ordered_by_number(tmp_path: Path) -> None:
    """As texts, round-10000 stands before round-9999."""
    standing = start("fedavg")
    for number in range(9_998, 10_003):
        stored = opened(tmp_path, replace(standing, state=replace(standing.state, round=number - 1)))
        stored[0] = {"control": torch.full((6,), float(number))}
        standing = replace(standing, state=replace(standing.state, round=number), memories=stored)
        commit(tmp_path, standing)
        found = last_commit(tmp_path)
        assert found is not None and found.state.round == number
        assert torch.equal(found.memories[0]["control"], torch.full((6,), float(number)))
    kept = [f"round-{number}.{end}" for number in (10_001, 10_002) for end in ("json", "safetensors")]
    assert sorted(file.name for file in tmp_path.glob("round-*")) == kept
    memories = sorted(file.name for file in (tmp_path / "memory/0/0").iterdir())
    assert memories[-2:] == ["round-10001.safetensors", "round-10002.safetensors"] and len(memories) <= 3


def test_another_layout_reads_no_commit(tmp_path: Path) -> None:
    commit(tmp_path, start("fedavg"))
    assert last_commit(tmp_path, Layout.of({"v": (6,)})) is None


def test_cohorts_depend_on_the_seed_and_round_alone() -> None:
    schedule = Schedule(50, tuple(range(20)), 5, seed=1)
    drawn = [draw_cohort(schedule, round) for round in range(50)]
    assert drawn == [draw_cohort(schedule, round) for round in range(50)]
    assert all(len(set(cohort)) == 5 and cohort == tuple(sorted(cohort)) for cohort in drawn)
    assert len(set(drawn)) > 40
    assert drawn != [draw_cohort(Schedule(50, tuple(range(20)), 5, seed=2), round) for round in range(50)]


def test_bytes_are_what_travels() -> None:
    algorithm = make("fedavg", 4)
    end = whole_run(algorithm, Pull(), start("fedavg"), SCHEDULE)
    assert end.up == end.down == 4 * 4 * LAYOUT.size * 4  # rounds × clients × values × bytes


def test_several_runs_in_step_are_the_runs_by_themselves() -> None:
    runs = [
        Run(
            make(name, 4),
            start(name),
            Schedule(rounds, (0, 1, 2, 3), cohort, seed),
            held,
            TRAIN,
            Limits(),
        )
        for name, rounds, cohort, seed in (
            ("fedavg", 3, None, 0),
            ("scaffold", 4, 2, 1),
            ("fedadam", 2, 3, 2),
        )
    ]
    together = run_rounds(runs, Pull())
    for run, found in zip(runs, together, strict=True):
        alone = run_rounds([run], Pull())[0]
        assert torch.equal(found.state.params.flat, alone.state.params.flat)
        assert (found.norms, found.up, found.down) == (alone.norms, alone.up, alone.down)


def test_the_timers_explain_the_round() -> None:
    logs: list[dict] = []

    def committed(now: Standing, log: dict) -> None:
        logs.append(log)

    whole_run(make("fedavg", 4), Pull(), start("fedavg"), SCHEDULE, committed)
    assert len(logs) == 4  # one for each round
    for log in logs:
        assert set(log["timers"]) == {"step", "aggregate"}
        assert sum(log["timers"].values()) == pytest.approx(log["seconds"])


def test_a_round_holds_few_updates_however_many_clients_there_are() -> None:
    class Counting:
        alive = most = 0

        def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Result]:
            for work in works:
                flat = torch.ones(LAYOUT.size)
                self.alive += 1
                self.most = max(self.most, self.alive)
                weakref.finalize(flat, self.gone)
                yield Update(work.client, Params(LAYOUT, flat), 1.0), {}
                del flat

        def gone(self) -> None:
            self.alive -= 1

    counting = Counting()
    whole_run(make("fedavg", 500), counting, start("fedavg"), Schedule(1, range(500), None, 0))
    assert counting.most < 64


@pytest.mark.parametrize("name", ["scaffold"])
def test_what_clients_keep_lies_in_files_and_is_bounded(name: str, tmp_path: Path) -> None:
    algorithm = make(name, 4)

    def committed(now: Standing, log: dict[str, object]) -> None:
        commit(tmp_path, now)

    schedule = Schedule(5, (0, 1, 2, 3), 2, seed=3)
    stored = whole_run(algorithm, Pull(), start(name), schedule, committed, tmp_path)
    kept = whole_run(algorithm, Pull(), start(name), schedule)
    assert isinstance(stored.memories, Stored)
    assert list(stored.memories) == sorted(kept.memories)
    for client, memory in kept.memories.items():
        assert set(memory) == {"control"}
        assert all(torch.equal(stored.memories[client][key], value) for key, value in memory.items())
        assert len(list((tmp_path / "memory/0" / str(client)).iterdir())) <= 3


def test_a_damaged_memory_is_told(tmp_path: Path) -> None:
    stored = Stored(tmp_path, 1)
    stored[3] = {"control": torch.ones(4)}
    file = next(tmp_path.rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="client 3"):
        stored[3]


def test_the_memory_of_another_client_or_round_is_told(tmp_path: Path) -> None:
    for right, wrong in (("0/3/round-0001", "0/4/round-0001"), ("0/3/round-0001", "0/3/round-0002")):
        stored = Stored(tmp_path, 1)
        stored[3] = {"control": torch.ones(4)}
        stored[4] = {"control": torch.zeros(4)}
        assert torch.equal(stored[3]["control"], torch.ones(4))
        files = [tmp_path / "memory" / f"{name}.safetensors" for name in (right, wrong)]
        files[1].write_bytes(files[0].read_bytes())
        client, round = int(wrong.split("/")[1]), int(wrong[-4:])
        with pytest.raises(UserError, match=f"client {client}"):
            Stored(tmp_path, round, {client: round})[client]
