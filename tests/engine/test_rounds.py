"""Rounds and checkpoints, with clients that are plain functions."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from tests.clients import (
    CLIENTS,
    EXCHANGING,
    LAYOUT,
    TRAIN,
    Corrupted,
    Plain,
    run_of,
    same,
    site_of,
    start_of,
)

from fedloom.algorithms import SERVERS
from fedloom.algorithms.algorithm import ServerState
from fedloom.algorithms.compose import make
from fedloom.client.client_memory import Files, InMemory, Memory
from fedloom.config.schema import Limits
from fedloom.engine import checkpoints
from fedloom.engine.checkpoints import last_checkpoint, write_checkpoint
from fedloom.engine.client_sampling import Schedule, draw_cohort
from fedloom.engine.rounds import Best, TrainingState, assignments_of, run_rounds
from fedloom.params import Layout, Params, Part
from fedloom.runs.verify_files import verify
from fedloom.system.errors import UserError
from fedloom.system.manifest import Manifest, read_sealed, write_manifest, write_sealed
from fedloom.system.timing import Clock
from fedloom.tuning.strategy_parts import Parts
from fedloom.version import __version__
from fedloom.wire.messages import Answer, Assignment, Update

LONG = TRAIN.model_copy(update={"rounds": 9})


def whole_run(
    name: str,
    rounds: int = 4,
    training_state: TrainingState | None = None,
    memory: Memory | None = None,
    after_round: Any = lambda now, log: None,
    cohort: int | None = None,
    seed: int = 0,
    backend: Plain | None = None,
    clients: Any = range(CLIENTS),
    **fields: Any,
) -> TrainingState:
    backend = backend or Plain(site_of(make(name, CLIENTS), LONG, memory))
    run = run_of(
        name, clients, LONG, after_round=after_round, training_state=training_state, rounds=rounds, cohort=cohort, seed=seed, **fields
    )  # fmt: skip
    return run_rounds([run], backend)[0]


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_and_going_on_from_a_checkpoint_changes_no_bit(name: str, stop: int, tmp_path: Path) -> None:
    """The site is ahead: it keeps memory of a round of which the server wrote no checkpoint."""
    whole = whole_run(name)

    def after_round(now: TrainingState, log: dict[str, object]) -> None:
        if now.state.round == stop + 1:
            raise KeyboardInterrupt
        write_checkpoint(tmp_path, now)

    with pytest.raises(KeyboardInterrupt):
        whole_run(name, memory=Files(tmp_path), after_round=after_round)
    back = last_checkpoint(tmp_path, LAYOUT)
    assert back is not None
    assert back.state.round == stop
    rest = whole_run(name, training_state=back, memory=Files(tmp_path))
    assert same(rest, whole)
    assert (rest.norms, rest.bytes_up, rest.bytes_down, rest.kept) == (
        whole.norms,
        whole.bytes_up,
        whole.bytes_down,
        whole.kept,
    )


def test_a_refused_client_leaves_the_round_as_if_it_had_not_come() -> None:
    logs: list[dict[str, Any]] = []

    def nan(update: Update) -> Update:
        return replace(update, delta=Params(LAYOUT, update.delta.flat * float("nan")))

    backend = Corrupted(site_of(make("fedavg", CLIENTS), LONG), {2: nan}, (1,))
    with_bad = whole_run("fedavg", 2, after_round=lambda now, log: logs.append(log), backend=backend)
    first = whole_run("fedavg", 1)
    second = whole_run("fedavg", 2, first, clients=(0, 1, 3, 4))
    assert torch.equal(with_bad.state.params.flat, second.state.params.flat)
    assert [row["client"] for row in logs[1]["refused"]] == [2]
    assert logs[0]["refused"] == []


@pytest.mark.parametrize("name", ["scaffold", "fedavg"])
def test_a_refused_update_rolls_the_clients_memory_back(name: str) -> None:
    """A site writes memory before it replies; that of a refused update is not used."""

    def outsized(update: Update) -> Update:
        return replace(update, delta=Params(LAYOUT, update.delta.flat * 1e30))

    personal = Part(LAYOUT.size, ((6, 12),))
    parts = Parts(personal.complement, personal.complement, personal, Part.whole(LAYOUT.size))
    algorithm = make(name, CLIENTS)
    site = site_of(algorithm, LONG, parts=parts)
    fields: dict[str, Any] = {
        "down": lambda client: parts.down,
        "up": lambda client: parts.up,
        "limits": Limits(),
    }
    refused = whole_run(name, 3, backend=Corrupted(site, {2: outsized}, (1,)), **fields)
    silent_site = site_of(algorithm, LONG, parts=parts)
    silent = whole_run(name, 3, backend=Corrupted(silent_site, {2: lambda _: None}, (1,)), **fields)
    assert same(refused, silent)
    assert refused.kept[2] == silent.kept[2] == (0, 2)
    for (_, client, round), kept in silent_site.memory.memories.items():  # type: ignore[attr-defined]
        if round == silent.since[client]:
            result = site.memory.read((name, client, round))
            assert result.keys() == kept.keys()
            assert all(torch.equal(value, result[key]) for key, value in kept.items())


def test_a_run_stops_without_admitted_updates() -> None:
    def nan(update: Update) -> Update:
        return replace(update, delta=Params(LAYOUT, update.delta.flat * float("nan")))

    backend = Corrupted(site_of(make("fedavg", CLIENTS), LONG), dict.fromkeys(range(CLIENTS), nan), (1,))
    with pytest.raises(UserError, match=r"round 1: every client.*client 3: delta"):
        whole_run("fedavg", backend=backend)


@pytest.mark.parametrize("damage", ["flip", "truncate", "no tensors", "half json"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(damage: str, tmp_path: Path) -> None:
    whole_run("scaffold", memory=Files(tmp_path), after_round=lambda now, _: write_checkpoint(tmp_path, now))
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
    back = last_checkpoint(tmp_path, LAYOUT)
    assert back is not None
    assert back.state.round == 3
    rest = whole_run("scaffold", training_state=back, memory=Files(tmp_path))
    assert same(rest, whole_run("scaffold"))


def test_only_two_checkpoints_are_kept(tmp_path: Path) -> None:
    whole_run("fedavg", after_round=lambda now, _: write_checkpoint(tmp_path, now))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"round-000{number}.{end}" for number in (3, 4) for end in ("json", "safetensors")
    ]


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    """As text, round-10000 comes before round-9999."""
    training_state = TrainingState(ServerState(start_of()))
    for number in range(9_998, 10_003):
        kept = {0: (number - 1, number), 7: (3,)}
        training_state = replace(training_state, state=replace(training_state.state, round=number), kept=kept)
        write_checkpoint(tmp_path, training_state)
        result = last_checkpoint(tmp_path)
        assert result is not None
        assert (result.state.round, result.kept) == (number, kept)
    kept_files = [f"round-{number}.{end}" for number in (10_001, 10_002) for end in ("json", "safetensors")]
    assert sorted(file.name for file in tmp_path.glob("round-*")) == kept_files


def test_the_best_round_is_in_the_checkpoint(tmp_path: Path) -> None:
    best = Best(3, 0.5, Params(LAYOUT, torch.arange(12.0)), {0: 2, 4: 1})
    write_checkpoint(tmp_path, TrainingState(ServerState(start_of(), 5), best=best))
    training_state = last_checkpoint(tmp_path, LAYOUT)
    assert training_state is not None
    assert training_state.best is not None
    assert (training_state.best.round, training_state.best.score, training_state.best.since) == (
        3,
        0.5,
        {0: 2, 4: 1},
    )
    assert torch.equal(training_state.best.params.flat, torch.arange(12.0))


def test_a_checkpoint_of_another_layout_is_not_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TrainingState(ServerState(start_of())))
    assert last_checkpoint(tmp_path, Layout.of({"v": (6,)})) is None


def test_cohorts_depend_on_the_seed_and_round_alone() -> None:
    schedule = Schedule(50, tuple(range(20)), 5, seed=1)
    drawn = [draw_cohort(schedule, round) for round in range(50)]
    assert drawn == [draw_cohort(schedule, round) for round in range(50)]
    assert all(len(set(cohort)) == 5 and cohort == tuple(sorted(cohort)) for cohort in drawn)
    assert len(set(drawn)) > 40
    assert drawn != [draw_cohort(Schedule(50, tuple(range(20)), 5, seed=2), round) for round in range(50)]


@dataclass(frozen=True)
class Bytes(Plain):
    """A backend whose assignments and updates go through bytes."""

    sent: list[bytes] = field(default_factory=list)
    came: list[bytes] = field(default_factory=list)

    def client(self, assignment: Assignment) -> Answer:
        self.sent.append(assignment.to_bytes())
        answer = super().client(Assignment.from_bytes(self.sent[-1], LAYOUT))
        self.came.append(answer.to_bytes())
        return Update.from_bytes(self.came[-1], LAYOUT)


@pytest.mark.parametrize("name", SERVERS)
def test_recorded_bytes_are_the_lengths_of_the_messages(name: str) -> None:
    """This holds whatever part of the parameters travels."""
    down, up = Part(LAYOUT.size, ((0, 3), (6, 12))), Part(LAYOUT.size, ((7, 9),))
    parts = Parts(down, down, Part(LAYOUT.size, ()), down)
    for fields in ({}, {"down": lambda client: down, "up": lambda client: up if client % 2 else down}):
        logs: list[dict[str, Any]] = []
        sites = [site_of(make(name, CLIENTS), LONG, parts=parts if fields else None) for _ in range(2)]
        by_bytes = Bytes(sites[0])
        sent, came = by_bytes.sent, by_bytes.came
        training_state = whole_run(
            name, 3, after_round=lambda now, log, logs=logs: logs.append(log), backend=by_bytes, **fields
        )
        plain = whole_run(name, 3, backend=Plain(sites[1]), **fields)
        assert same(training_state, plain)
        assert (
            (training_state.bytes_up, training_state.bytes_down)
            == (plain.bytes_up, plain.bytes_down)
            == (
                sum(map(len, came)),
                sum(map(len, sent)),
            )
        )
        assert [log["bytes_up"] for log in logs] == [
            sum(map(len, came[start : start + CLIENTS])) for start in range(0, 3 * CLIENTS, CLIENTS)
        ]


def test_a_value_counts_only_clients_whose_part_has_it() -> None:
    """Two clients with the same weight, of whom one reports the first half: by hand."""
    start, half = torch.zeros(LAYOUT.size), Part(LAYOUT.size, ((0, 6),))
    one = Update(0, Params(LAYOUT, torch.full((12,), 2.0)), 3.0)
    other = Update(1, Params(LAYOUT, half.zero_outside(torch.full((12,), 4.0))), 3.0, up=half)
    for name in ("fedavg", "fedmean", "fedprox"):
        algorithm = make(name, 2)
        after, _ = algorithm.apply(algorithm.init(Params(LAYOUT, start)), [one, other])
        assert after.params.flat.tolist() == [3.0] * 6 + [2.0] * 6
    third = replace(other, client=2, weight=6.0)  # (3·2 + 3·4 + 6·4) / 12
    after, _ = make("fedavg", 3).apply(make("fedavg", 3).init(Params(LAYOUT, start)), [one, other, third])
    assert after.params.flat.tolist() == [3.5] * 6 + [2.0] * 6


@pytest.mark.parametrize("name", EXCHANGING)
def test_a_value_that_nobody_reports_keeps_its_value_and_its_slots(name: str) -> None:
    up, memory = Part(LAYOUT.size, ((3, 12),)), InMemory()
    before = whole_run(name, 1, memory=memory)
    after = whole_run(name, 2, before, up=lambda client: up, memory=memory)
    silent = up.complement.mask
    assert torch.equal(after.state.params.flat[silent], before.state.params.flat[silent])
    for key, value in after.state.slots.items():
        if value.shape == (LAYOUT.size,):
            assert torch.equal(value[silent], before.state.slots[key][silent])
    assert not torch.equal(after.state.params.flat[up.mask], before.state.params.flat[up.mask])


def test_several_runs_in_step_give_what_each_gives_by_itself() -> None:
    runs = [
        run_of(name, clients, LONG, rounds=rounds, cohort=cohort, seed=seed)
        for name, clients, rounds, cohort, seed in (
            ("fedavg", (0, 1, 2), 3, 2, 0),
            ("fedadam", (3,), 4, None, 1),
            ("fedavgm", (4,), 2, None, 2),
        )
    ]
    site = site_of(make("fedavg", CLIENTS), LONG)
    together = run_rounds(runs, Plain(site))
    for run, result in zip(runs, together, strict=True):
        alone = run_rounds([run], Plain(site))[0]
        assert same(result, alone)
        assert (result.norms, result.bytes_up, result.bytes_down) == (
            alone.norms,
            alone.bytes_up,
            alone.bytes_down,
        )


def test_updates_that_an_aggregate_does_not_read_are_no_other_runs() -> None:
    """An aggregate that takes the first update only changes neither who trains nor what runs in step with it give."""

    def first(updates: Iterable[Update], state: ServerState) -> tuple[torch.Tensor, dict[str, float]]:
        return next(iter(updates)).delta.flat.clone(), {}

    logs: list[dict[str, Any]] = []
    hasty = run_of("fedavg", (0, 1, 2), LONG, after_round=lambda now, log: logs.append(log))
    hasty = replace(hasty, algorithm=hasty.algorithm._replace(aggregate=first))
    other = run_of("fedavg", (3, 4), LONG)
    site = site_of(make("fedavg", CLIENTS), LONG)
    together = run_rounds([hasty, other], Plain(site))
    assert all([one["client"] for one in log["clients"]] == [0, 1, 2] for log in logs) and logs
    assert same(together[1], run_rounds([other], Plain(site))[0])


def test_the_timers_explain_the_round() -> None:
    logs: list[dict] = []
    whole_run("fedavg", after_round=lambda now, log: logs.append(log))
    assert len(logs) == 4  # one for each round
    for log in logs:
        assert set(log["timers"]) == {"step", "aggregate"}
        assert sum(log["timers"].values()) == pytest.approx(log["seconds"])


def test_a_round_holds_few_updates_however_many_clients_there_are() -> None:
    class Counting(Plain):
        def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
            for one in assignments:
                flat = torch.ones(LAYOUT.size)
                counts.append(counts[-1] + 1)
                weakref.finalize(flat, lambda: counts.append(counts[-1] - 1))
                yield Update(one.client, Params(LAYOUT, flat), 1.0)
                del flat

    counts = [0]
    whole_run("fedavg", 1, backend=Counting(site_of(make("fedavg", 500), clients=500)), clients=range(500))
    assert max(counts) < 64


def test_what_clients_keep_is_in_files_and_bounded(tmp_path: Path) -> None:
    memory = InMemory()
    files = Files(tmp_path)
    stored = whole_run("scaffold", 5, memory=files, cohort=2, seed=3)
    held = whole_run("scaffold", 5, memory=memory, cohort=2, seed=3)
    assert stored.kept == held.kept
    for client, rounds in held.kept.items():
        assert len(rounds) <= 2
        for round in rounds:
            mine, theirs = (one.read(("scaffold", client, round)) for one in (files, memory))
            assert set(mine) == set(theirs) == {"rule/control"}
            assert torch.equal(mine["rule/control"], theirs["rule/control"])
        assert len(list((tmp_path / "scaffold/memory/0" / str(client)).iterdir())) <= 3


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    files, key = Files(tmp_path), ("scaffold", 3, 1)
    files.write(key, {"control": torch.ones(4)}, ())
    file = files.file(key)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="client 3"):
        files.read(key)


def test_the_memory_of_another_client_or_round_is_named(tmp_path: Path) -> None:
    files, right = Files(tmp_path), ("scaffold", 3, 1)
    for wrong in (("scaffold", 4, 1), ("scaffold", 3, 2)):
        files.write(right, {"control": torch.ones(4)}, ())
        files.write(("scaffold", 4, 1), {"control": torch.zeros(4)}, ())
        assert torch.equal(files.read(right)["control"], torch.ones(4))
        files.file(wrong).write_bytes(files.file(right).read_bytes())
        with pytest.raises(UserError, match=f"client {wrong[1]}"):
            files.read(wrong)


def test_slots_that_are_one_tensor_go_into_a_checkpoint(tmp_path: Path) -> None:
    """An algorithm may remember the parameters themselves, or views of them."""
    params = start_of()
    slots = {"anchor": params.flat, "again": params.flat, "head": params.flat[:2]}
    write_checkpoint(tmp_path, TrainingState(ServerState(params, 1, slots)))
    training_state = last_checkpoint(tmp_path)
    assert training_state is not None
    assert training_state.state.slots.keys() == slots.keys()
    assert all(torch.equal(training_state.state.slots[name], value) for name, value in slots.items())


def test_a_run_killed_after_a_better_round_is_whole(tmp_path: Path) -> None:
    """What clients kept of the round that was best before is forgotten; no checkpoint that is used needs it."""

    folder = tmp_path / "methods/scaffold"
    folder.mkdir(parents=True)

    def after_round(now: TrainingState, log: dict[str, Any]) -> TrainingState:
        if now.state.round in (1, 3):
            now = replace(
                now, best=Best(now.state.round, float(now.state.round), now.state.params, now.since)
            )
        write_checkpoint(folder, now)
        return now

    files = Files(tmp_path / "methods")
    backend = Plain(site_of(make("scaffold", CLIENTS), memory=files))
    (third,) = run_rounds([run_of("scaffold", after_round=after_round)], backend)
    for client in range(CLIENTS):  # the fourth round begins, and does not end
        (asked,) = assignments_of(run_of("scaffold", training_state=third, rounds=4), [client])
        backend.client(asked)
    checkpoints = sorted(folder.glob("round-*.json"))
    assert [file.name for file in checkpoints] == ["round-0002.json", "round-0003.json"]
    write_manifest(tmp_path, Manifest(__version__))
    assert verify(tmp_path)[1] == []
    assert third.best is not None
    gone = files.file(("scaffold", 0, third.best.since[0]))
    gone.unlink()
    (fault,) = verify(tmp_path)[1]
    assert "missing or damaged" in fault


def test_a_checkpoint_with_another_index_of_memories_is_named(tmp_path: Path) -> None:
    """Before a client's last two rounds were kept there was one round for each client."""
    training_state = TrainingState(make("fedavg", CLIENTS).init(start_of()), kept={3: (0, 1)})
    write_checkpoint(tmp_path, training_state)
    file = tmp_path / "round-0000.json"
    content = save(
        {
            **load_file(file.with_suffix(".safetensors")),
            **dict(zip(checkpoints.INDEX, torch.tensor([[3], [1]]), strict=True)),
        }
    )
    file.with_suffix(".safetensors").write_bytes(content)
    write_sealed(file, {**read_sealed(file), "tensors": hashlib.sha256(content).hexdigest()})
    with pytest.raises(UserError, match=r"round-0000.*another version"):
        checkpoints.read_checkpoint(tmp_path / "round-0000.json")
