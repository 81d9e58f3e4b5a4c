"""Rounds and commits, with clients that are plain functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedloom.algorithms import ALGORITHMS, make
from fedloom.engine.rounds import Memories, Schedule, Standing, draw_cohort, run_rounds
from fedloom.engine.store import commit, last_commit
from fedloom.params import Layout, Params
from fedloom.types import Broadcast, ClientUpdate, Tensors, UserError

LAYOUT = Layout.of({"w": (6,)})


@dataclass(frozen=True)
class Limits:
    max_norm: float | None = None
    max_ratio: float = 1e9


@dataclass(frozen=True)
class Pull:
    """Client k takes three gradient steps towards k; a client named in `bad` sends NaN in round 1."""

    algorithm: object
    bad: tuple[int, ...] = ()

    def map(
        self, broadcast: Broadcast, cohort: Sequence[int], round: int, memories: Memories
    ) -> Iterator[tuple[ClientUpdate, Tensors]]:
        rule = self.algorithm.local  # type: ignore[attr-defined]
        for client in cohort:
            carry, flat = rule.begin(broadcast, memories.get(client, {})), broadcast.params.flat.clone()
            for _ in range(3):
                grads, carry = rule.correct(flat - client, flat, carry)
                flat = flat - 0.1 * grads
            extras, memory = rule.finish(carry, 3)
            delta = flat - broadcast.params.flat
            if client in self.bad and round == 1:
                delta = delta * float("nan")
            yield ClientUpdate(client, Params(LAYOUT, delta), client + 1.0, extras, {"loss": 1.0}), memory


def start(name: str) -> Standing:
    return Standing(make(name, 4).init(Params(LAYOUT, torch.linspace(-1, 1, 6))))


SCHEDULE = Schedule(rounds=4, clients=(0, 1, 2, 3), cohort=None, seed=0)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_and_going_on_from_a_commit_changes_no_bit(name: str, stop: int, tmp_path: Path) -> None:
    algorithm = make(name, 4)
    whole = run_rounds(algorithm, Pull(algorithm), start(name), SCHEDULE, Limits(), lambda *_: None)

    def committed(now: Standing, log: dict[str, object]) -> None:
        commit(tmp_path, now)
        if now.state.round == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds(algorithm, Pull(algorithm), start(name), SCHEDULE, Limits(), committed)
    back = last_commit(tmp_path, LAYOUT)
    assert back is not None
    assert back.state.round == stop
    rest = run_rounds(algorithm, Pull(algorithm), back, SCHEDULE, Limits(), lambda *_: None)
    assert torch.equal(rest.state.params.flat, whole.state.params.flat)
    assert rest.norms == whole.norms
    assert (rest.up, rest.down) == (whole.up, whole.down)


def test_a_refused_client_leaves_the_round_as_if_it_had_not_come() -> None:
    algorithm, logs = make("fedavg", 4), []
    with_bad = run_rounds(
        algorithm, Pull(algorithm, bad=(2,)), start("fedavg"), Schedule(2, (0, 1, 2, 3), None, 0), Limits(),
        lambda now, log: logs.append(log),
    )  # fmt: skip
    first = run_rounds(
        algorithm,
        Pull(algorithm),
        start("fedavg"),
        Schedule(1, (0, 1, 2, 3), None, 0),
        Limits(),
        lambda *_: None,
    )
    second = run_rounds(
        algorithm, Pull(algorithm), first, Schedule(2, (0, 1, 3), None, 0), Limits(), lambda *_: None
    )
    assert torch.equal(with_bad.state.params.flat, second.state.params.flat)
    assert [row["client"] for row in logs[1]["refused"]] == [2]
    assert logs[0]["refused"] == []


def test_a_run_stops_when_nobody_is_left() -> None:
    algorithm = make("fedavg", 4)
    with pytest.raises(UserError, match=r"round 1: every client.*client 3: delta"):
        run_rounds(
            algorithm, Pull(algorithm, bad=(0, 1, 2, 3)), start("fedavg"), SCHEDULE, Limits(), lambda *_: None
        )


@pytest.mark.parametrize("damage", ["flip", "truncate", "no tensors", "half json"])
def test_a_damaged_commit_is_passed_over_for_the_one_before(damage: str, tmp_path: Path) -> None:
    algorithm = make("scaffold", 4)
    run_rounds(
        algorithm,
        Pull(algorithm),
        start("scaffold"),
        SCHEDULE,
        Limits(),
        lambda now, _: commit(tmp_path, now),
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
    rest = run_rounds(algorithm, Pull(algorithm), back, SCHEDULE, Limits(), lambda *_: None)
    whole = run_rounds(algorithm, Pull(algorithm), start("scaffold"), SCHEDULE, Limits(), lambda *_: None)
    assert torch.equal(rest.state.params.flat, whole.state.params.flat)


def test_only_two_commits_are_kept(tmp_path: Path) -> None:
    algorithm = make("fedavg", 4)
    run_rounds(
        algorithm, Pull(algorithm), start("fedavg"), SCHEDULE, Limits(), lambda now, _: commit(tmp_path, now)
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"round-000{number}.{end}" for number in (3, 4) for end in ("json", "safetensors")
    ]


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
    end = run_rounds(algorithm, Pull(algorithm), start("fedavg"), SCHEDULE, Limits(), lambda *_: None)
    assert end.up == end.down == 4 * 4 * LAYOUT.size * 4  # rounds × clients × values × bytes
