"""Models that clients keep for themselves: from a rule or a second pass, over rounds and stages, and after refused updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.clients import (
    CLIENTS,
    LAYOUT,
    TRAIN,
    Corrupted,
    Plain,
    all_parts,
    assigned,
    held,
    named,
    profiles,
    real_site,
    run_of,
    same,
    site_of,
    start_of,
    trained,
)

from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.local_rule import PLAIN, Second
from fedloom.client.client_memory import Files, InMemory, Memory
from fedloom.client.local_training import train
from fedloom.client.site import OWN, RULE, Question, Site, SiteMethod, SiteStage
from fedloom.config.schema import Train
from fedloom.engine.checkpoints import last_checkpoint, write_checkpoint
from fedloom.engine.in_process import InProcess
from fedloom.engine.rounds import TrainingState, run_rounds
from fedloom.params import Params, Part
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.strategies import LoRA, strategy
from fedloom.tuning.strategy_parts import parts_of
from fedloom.wire.messages import Answer, Assignment, Missing, Update

KEEPING = (
    "fedavg+keep-last",
    "fedavg+ditto",
    "fedavg+pfedme",
    "scaffold+ditto",
    "fedadam+proximal+keep-last",
)


@pytest.fixture(params=["memory", "files"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Memory:
    return InMemory() if request.param == "memory" else Files(tmp_path)


def ask(algorithm: FederatedAlgorithm, round: int = 0, since: int = -1, **other: Any) -> Assignment:
    sent = algorithm.broadcast(algorithm.init(Params(LAYOUT, torch.full((LAYOUT.size,), 5.0 - round))))
    return Assignment("m", 0, round, 1, sent.params, sent.extras, since, **other)


def answer(site: Site, assignment: Assignment) -> Update:
    job = site.job(assignment)
    return site.update(job, trained(job))


def own_of(site: Site, since: int, client: int = 1, stage: int = 0) -> torch.Tensor:
    elsewhere = Params(LAYOUT, torch.full((LAYOUT.size,), -3.0))
    return site.model(Question("m", stage, elsewhere, client, since)).flat


@pytest.mark.parametrize("name", KEEPING)
def test_a_client_is_evaluated_with_its_own_model_where_it_has_one(name: str, memory: Memory) -> None:
    algorithm = named(name)
    site = site_of(algorithm, memory=memory)
    assert algorithm.personal
    elsewhere = torch.full((LAYOUT.size,), -3.0)
    assert torch.equal(own_of(site, -1), elsewhere)
    job = site.job(ask(algorithm))
    end = trained(job)
    assert site.update(job, end).keeps
    own = own_of(site, 0)
    assert not torch.equal(own, elsewhere)
    assert torch.equal(own, end.end) is ("keep-last" in name)
    assert (end.own is not None and torch.equal(own, end.own)) is ("ditto" in name)
    assert torch.equal(site.model(Question("m", 0, Params(LAYOUT, elsewhere))).flat, elsewhere)


@pytest.mark.parametrize("name", KEEPING)
def test_a_refused_update_leaves_the_own_model_as_it_was(name: str, memory: Memory) -> None:
    algorithm = named(name)
    tried, never = site_of(algorithm, memory=memory), site_of(algorithm)
    for site in (tried, never):
        answer(site, ask(algorithm))
    before = own_of(tried, 0)
    answer(tried, ask(algorithm, 1, 0))
    assert not torch.equal(own_of(tried, 1), before)
    assert torch.equal(own_of(tried, 0), before)
    actual, expected = (answer(site, ask(algorithm, 2, 0)) for site in (tried, never))
    assert torch.equal(actual.delta.flat, expected.delta.flat)
    assert torch.equal(own_of(tried, 2), own_of(never, 2))


def test_a_second_pass_goes_on_from_the_own_model_of_the_round_before(memory: Memory) -> None:
    algorithm = named("fedavg+ditto")
    site = site_of(algorithm, memory=memory)
    first = site.job(ask(algorithm))
    assert first.second is not None
    assert torch.equal(first.second.start.flat, first.broadcast.params.flat)
    site.update(first, trained(first))
    second = site.job(ask(algorithm, 1, 0)).second
    assert second is not None
    assert torch.equal(second.start.flat, own_of(site, 0))
    assert bool((second.broadcast.params.flat == 4.0).all())  # what was sent, toward which it is pulled


def test_an_own_model_survives_a_change_of_stage_and_control_variates_do_not() -> None:
    algorithm = named("scaffold+ditto")
    stages = [SiteStage(TRAIN.model_copy(update={"rounds": 1}), all_parts(LAYOUT.size))] * 2
    local = SiteMethod(algorithm.local, start_of(), stages, profiles(), held, second=algorithm.second)
    site = Site(cast("Any", None), 0, lambda method: local, InMemory())
    answer(site, ask(algorithm))
    kept = site.memory.read(("m", 1, 0))
    assert kept.keys() == {OWN, f"{RULE}control"}
    job = site.job(replace(ask(algorithm, 0, 0), stage=1))
    assert job.memory == {}
    assert job.second is not None
    assert torch.equal(job.second.start.flat, kept[OWN])
    assert torch.equal(own_of(site, 0, stage=1), kept[OWN])
    site.update(job, trained(job))
    assert not torch.equal(site.memory.read(("m", 1, 1))[OWN], kept[OWN])


def test_a_client_keeps_both_an_own_model_and_personal_values(memory: Memory) -> None:
    parts = parts_of(LAYOUT, strategy("share-connector", LoRA()), 0)
    algorithm = named("fedavg+keep-last")
    site = site_of(algorithm, memory=memory, parts=parts)
    job = site.job(ask(algorithm, down=parts.down, up=parts.up))
    end = trained(job)
    update = site.update(job, end)
    assert not update.delta.flat[parts.personal.mask].any()
    assert torch.equal(own_of(site, 0), end.end)
    begun = site.job(ask(algorithm, 1, 0, down=parts.down, up=parts.up)).broadcast.params.flat
    assert torch.equal(begun[parts.personal.mask], end.end[parts.personal.mask])
    assert bool((begun[~parts.personal.mask] == 4.0).all())


def test_own_models_that_are_not_finite_or_of_another_shape_are_not_kept() -> None:
    for odd, message in (
        (torch.full((LAYOUT.size,), torch.nan), "own .*not finite"),
        (torch.zeros(2), "shape"),
    ):
        rule = PLAIN._replace(own=lambda end, carry, odd=odd: odd)
        algorithm = named("fedavg")._replace(local=rule)
        site = site_of(algorithm)
        with pytest.raises((UserError, ValueError), match=message):
            answer(site, ask(algorithm))
        assert not cast("InMemory", site.memory).memories


def test_a_second_pass_has_epochs_a_rate_and_streams_of_its_own() -> None:
    second = named("fedavg+ditto", arguments={"ditto": {"epochs": 3, "rate": 0.25}}).second
    algorithm = named("fedavg")._replace(second=second)
    job = site_of(algorithm).job(ask(algorithm))
    second = job.second
    assert second is not None
    assert second.steps == 3 * job.steps
    assert [second.rate(0), second.factor] == [job.rate(0) / 4, 0.25]
    draws = [
        [torch.rand(3, generator=one.dropout_masks(0).stream("layer")).tolist() for one in (job, second)],
        [torch.rand(3, generator=one.stream("noise", 0)).tolist() for one in (job, second)],
    ]
    assert all(first != other for first, other in draws)
    assert site_of(named("fedavg+ditto")).job(ask(algorithm)).second.steps == job.steps  # type: ignore[union-attr]


# Whole runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["keep-last", "ditto"])
@pytest.mark.parametrize("base", ["fedavg", "scaffold", "fedyogi"])
def test_the_shared_model_is_that_of_the_algorithm_to_the_last_bit(base: str, part: str) -> None:
    actual, expected = (
        run_rounds([run_of(name)], Plain(site_of(named(name))))[0] for name in (f"{base}+{part}", base)
    )
    assert same(actual, expected)
    assert set(actual.kept) == set(range(CLIENTS))


def broken(update: Update) -> Answer:
    return replace(update, delta=update.delta.with_flat(update.delta.flat * torch.nan))


def silent(update: Update) -> Answer:
    return Missing(update.client, "it broke")


@pytest.mark.parametrize("how", [broken, silent])
@pytest.mark.parametrize("name", KEEPING)
def test_own_models_go_back_with_updates_that_are_not_accepted(
    name: str, how: Callable[[Update], Answer]
) -> None:
    """Client 2's update of round 1 does not count: its own model is the one of round 0 until round 2."""
    site = site_of(named(name))
    seen: list[dict[int, int]] = []
    models: list[torch.Tensor] = []

    def after_round(now: TrainingState, log: dict[str, Any]) -> None:
        seen.append(now.since)
        question = Question(name, 0, now.state.params, 2, now.since[2])
        models.append(site.model(question).flat)

    backend = Corrupted(site, {2: how}, (1,))
    run_rounds([run_of(name, after_round=after_round)], backend)
    assert [one[2] for one in seen] == [0, 0, 2]
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[1], models[2])


@pytest.mark.parametrize("name", KEEPING)
def test_going_on_from_a_checkpoint_changes_no_bit(name: str, tmp_path: Path) -> None:
    (folders := [tmp_path / "whole", tmp_path / "cut"])[0].mkdir()
    folders[1].mkdir()

    def go(folder: Path, training_state: TrainingState | None, stop: int | None) -> TrainingState:
        def after_round(now: TrainingState, log: dict[str, Any]) -> None:
            if now.state.round == stop:
                raise KeyboardInterrupt
            write_checkpoint(folder, now)

        site = site_of(named(name), memory=Files(folder))
        return run_rounds(
            [run_of(name, after_round=after_round, training_state=training_state)], Plain(site)
        )[0]

    whole = go(folders[0], None, None)
    with pytest.raises(KeyboardInterrupt):
        go(folders[1], None, 2)
    rest = go(folders[1], last_checkpoint(folders[1], LAYOUT), None)
    assert same(rest, whole)
    for client in range(CLIENTS):
        mine, theirs = (Files(folder).read((name, client, 2)) for folder in folders)
        assert mine.keys() == theirs.keys() >= {OWN}
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())


# With a real model ----------------------------------------------------------------------------------

SETTINGS = Train(batch_size=2, optimizer="sgd", lr=0.05, clip=0.5, epochs=2)


def owns(tuned: Tuned, name: str, rows: int) -> tuple[list[Answer], list[torch.Tensor]]:
    memory = InMemory()
    backend = InProcess(real_site(tuned, name, memory=memory, train=SETTINGS), rows)
    answers = list(backend.train(assigned(tuned, name), Clock()))
    return answers, [memory.memories[(name, client, 0)][OWN] for client in range(CLIENTS)]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("part", ["keep-last", "ditto"])
def test_what_is_sent_is_fedavgs_to_the_last_bit(part: str, rows: int, tuned: Tuned) -> None:
    actual, own = owns(tuned, f"fedavg+{part}", rows)
    site = real_site(tuned, train=SETTINGS)
    expected = list(InProcess(site, rows).train(assigned(tuned), Clock()))
    for mine, theirs, model in zip(actual, expected, own, strict=True):
        assert isinstance(mine, Update)
        assert isinstance(theirs, Update)
        assert torch.equal(mine.delta.flat, theirs.delta.flat)
        assert mine.metrics["loss"] == theirs.metrics["loss"]
        moved = model - tuned.start.flat
        assert torch.equal(moved, theirs.delta.flat) is (part == "keep-last")
        assert moved.any()


def test_a_second_pass_side_by_side_is_that_of_one_after_the_other(tuned: Tuned) -> None:
    (_, alone), (_, together) = (owns(tuned, "fedavg+ditto", rows) for rows in (1, 3))
    for mine, theirs in zip(together, alone, strict=True):
        size = float((theirs - tuned.start.flat).norm())
        assert float((mine - theirs).norm()) <= 1e-5 * size


def test_a_second_pass_without_a_pull_is_the_first_with_other_batches(tuned: Tuned) -> None:
    """With one batch an epoch nothing is left of the order but rounding: both passes end at the same place."""
    one = SETTINGS.model_copy(update={"batch_size": 8})
    for lam, near in ((0.0, True), (5.0, False)):
        algorithm = named("fedavg+ditto", arguments={"ditto": {"lam": lam}})
        site = real_site(tuned, "fedavg", train=one)
        local = replace(site.method("fedavg"), second=algorithm.second)
        site = replace(site, method=lambda method, local=local: local)
        job = site.job(assigned(tuned)[2])
        (end,) = train(tuned, [job])
        assert end.own is not None
        far = float((end.end - tuned.start.flat).norm())
        assert (float((end.own - end.end).norm()) <= 1e-4 * far) is near


def test_what_a_rule_carries_lies_apart_from_the_model_that_the_second_pass_trains(tuned: Tuned) -> None:
    """A rule that carries the live parameters sends those at which the first pass ended."""
    rule = PLAIN._replace(
        correct=lambda grads, params, carry: (grads, {"live": params}),
        finish=lambda carry, steps: ({}, {"live": carry["live"]}),
    )
    memory = InMemory()
    site = real_site(tuned, rule=rule, memory=memory, train=SETTINGS)
    local = replace(site.method("fedavg"), second=Second("further", PLAIN, rate=0.5))
    site = replace(site, method=lambda method: local)
    (update,) = InProcess(site).train(assigned(tuned)[:1], Clock())
    assert isinstance(update, Update)
    kept = memory.memories["fedavg", 0, 0]
    assert torch.equal(kept[f"{RULE}live"] - tuned.start.flat, update.delta.flat)
    assert not torch.equal(kept[OWN], kept[f"{RULE}live"])


def test_time_of_a_second_pass_counts(tuned: Tuned) -> None:
    site = real_site(tuned, "fedavg+ditto", train=SETTINGS)
    job = site.job(assigned(tuned, "fedavg+ditto")[0])
    clock = Clock()
    (end,) = train(tuned, [job], clock)
    both = sum(seconds for name, seconds in clock.seconds.items() if name in ("forward", "backward", "step"))
    assert end.seconds >= both > 0


def test_a_part_that_is_not_trained_stays_in_the_own_model_too(tuned: Tuned) -> None:
    part = Part.of(tuned.layout.mask(lambda name: name.startswith("connector/")))
    site = real_site(tuned, "fedavg+ditto", train=SETTINGS)
    (todo, *_) = assigned(tuned, "fedavg+ditto")
    (end,) = train(tuned, [site.job(replace(todo, up=part))])
    assert end.own is not None
    moved = end.own != tuned.start.flat
    assert moved[part.mask].any()
    assert not moved[part.complement.mask].any()
