"""At a site: what a client begins with, what it sends and keeps, and how it goes back to an earlier round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clients import LAYOUT, TRAIN, held, site_of, start_of, trained

from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.compose import make
from fedloom.algorithms.local_rule import PLAIN
from fedloom.client.client_memory import Files, InMemory, Memory
from fedloom.client.local_training import Trained
from fedloom.client.site import Question, Site
from fedloom.params import Params, Part
from fedloom.system.errors import UserError
from fedloom.tuning.strategies import LoRA, strategy
from fedloom.tuning.strategy_parts import Parts, parts_of
from fedloom.types import Tensors
from fedloom.wire.messages import Assignment, Update

SIZE = LAYOUT.size
CONNECTOR = Part.of(LAYOUT.mask(lambda name: name.startswith("connector/")))
SHARED = parts_of(LAYOUT, strategy("share-connector", LoRA()), 0)
SENT = Params(LAYOUT, torch.full((SIZE,), 5.0))


@pytest.fixture(params=["memory", "files"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Memory:
    return InMemory() if request.param == "memory" else Files(tmp_path)


def asked(
    round: int = 0, client: int = 1, since: int = -1, parts: Parts = SHARED, **other: Any
) -> Assignment:
    return Assignment("m", 0, round, client, SENT, {}, since, down=parts.down, up=parts.up, **other)


def answer(site: Site, assignment: Assignment) -> Update:
    job = site.job(assignment)
    return site.update(job, trained(job))


def site(
    memory: Memory | None = None, algorithm: FederatedAlgorithm | None = None, parts: Parts = SHARED
) -> Site:
    return site_of(algorithm or make("fedavg", 5), memory=memory, parts=parts)


def test_a_client_begins_with_what_is_sent_and_its_own_values(memory: Memory) -> None:
    here = site(memory)
    first = here.job(asked()).broadcast.params.flat
    assert torch.equal(first, torch.where(CONNECTOR.mask, SENT.flat, start_of().flat))
    end = trained(here.job(asked())).end
    update = answer(here, asked())
    assert update.keeps
    second = here.job(asked(1, since=0)).broadcast.params.flat
    assert torch.equal(second, torch.where(CONNECTOR.mask, SENT.flat, end))
    assert not torch.equal(second[~CONNECTOR.mask], first[~CONNECTOR.mask])


def test_what_a_client_keeps_is_not_in_its_message() -> None:
    """Nothing of the update, as bytes or in this process, depends on the client's own values."""
    update = answer(site(), asked())
    assert update.up == CONNECTOR
    assert update.delta.flat[CONNECTOR.mask].all()
    assert not update.delta.flat[~CONNECTOR.mask].any()
    everything = answer(
        site(parts=parts_of(LAYOUT, strategy("both", LoRA()), 0)), replace(asked(), down=None, up=None)
    )
    assert everything.length - update.length > 4 * CONNECTOR.complement.count - 64


def test_no_client_reads_the_memory_of_another(memory: Memory) -> None:
    here = site(memory)
    answer(here, asked(client=1))
    with pytest.raises(UserError, match="client 2"):
        here.job(asked(1, client=2, since=0))
    other = here.job(asked(1, client=2)).broadcast.params.flat
    assert torch.equal(other[~CONNECTOR.mask], start_of().flat[~CONNECTOR.mask])


def test_a_refused_update_leaves_no_trace(memory: Memory) -> None:
    """Round 1 is refused: round 2 goes on from round 0, and gives what it gives where round 1 never was."""
    tried, never = site(memory), site(InMemory())
    for here in (tried, never):
        answer(here, asked(0))
    answer(tried, asked(1, since=0))
    actual, expected = (answer(here, asked(2, since=0)) for here in (tried, never))
    assert torch.equal(actual.delta.flat, expected.delta.flat)
    assert torch.equal(*(here.job(asked(3, since=2)).broadcast.params.flat for here in (tried, never)))


def test_a_server_may_go_back_to_the_rounds_that_it_asked_to_keep(memory: Memory) -> None:
    here = site(memory)
    for round in range(4):
        answer(here, asked(round, since=round - 1, keep=(1,) if round > 1 else ()))
    for since in (1, 2, 3):  # that to keep, the one it began with, and its own
        here.job(asked(4, since=since))
    with pytest.raises(UserError, match="client 1"):
        here.job(asked(4, since=0))


def test_a_rules_memory_is_separate_from_personal_values(memory: Memory) -> None:
    rule = PLAIN._replace(
        begin=lambda sent, kept: {"count": kept.get("personal", torch.zeros(())) + 1},
        finish=lambda carry, steps: ({}, {"personal": carry["count"]}),
    )
    here = site(memory, make("fedavg", 5)._replace(local=rule))
    for round in range(3):
        assert answer(here, asked(round, since=round - 1)).keeps
    assert here.job(asked(3, since=2)).memory["personal"] == 3.0


def test_a_client_that_keeps_nothing_says_so(memory: Memory) -> None:
    parts = parts_of(LAYOUT, strategy("both", LoRA()), 0)
    here = site(memory, parts=parts)
    assert not answer(here, asked(parts=parts)).keeps
    with pytest.raises(UserError, match="client 1"):
        here.job(asked(1, since=0, parts=parts))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_kept(value: float, memory: Memory) -> None:
    here = site(memory)
    answer(here, asked())
    job = here.job(asked(1, since=0))
    end = trained(job)
    broken = replace(end, end=torch.where(CONNECTOR.mask, end.end, value))
    with pytest.raises(UserError, match="not finite"):
        here.update(job, broken)
    here.job(asked(2, since=0))
    with pytest.raises(UserError, match="client 1"):
        here.job(asked(2, since=1))


def test_a_server_cannot_ask_for_what_stays_with_clients() -> None:
    for up in (None, CONNECTOR.complement, Part.whole(SIZE)):
        with pytest.raises(UserError, match="stay with clients"):
            site().job(replace(asked(), up=up))
    some = Part(SIZE, ((0, 2),))
    job = site().job(replace(asked(), up=some))
    assert job.trained == some | CONNECTOR.complement


def test_a_personal_model_is_the_global_one_with_the_clients_own_values(memory: Memory) -> None:
    here = site(memory)
    end = trained(here.job(asked())).end
    answer(here, asked())
    other = Params(LAYOUT, torch.full((SIZE,), -3.0))
    result = here.model(Question("m", 0, other, client=1, since=0)).flat
    assert torch.equal(result, torch.where(CONNECTOR.mask, other.flat, end))
    assert here.model(Question("m", 0, other)).flat is other.flat


def test_a_rules_vectors_are_zero_outside_what_is_exchanged() -> None:
    rule = PLAIN._replace(finish=lambda carry, steps: ({"all": torch.ones(SIZE)}, {"all": torch.ones(SIZE)}))
    memory = InMemory()
    update = answer(site(memory, make("fedavg", 5)._replace(local=rule)), asked())
    assert torch.equal(update.extras["all"], CONNECTOR.mask.float())
    assert torch.equal(memory.read(("m", 1, 0))["rule/all"], CONNECTOR.mask.float())


def test_weight_and_metrics_are_those_of_the_work() -> None:
    for client in range(3):
        update = answer(site(), asked(client=client))
        assert update.weight == len(held(client))
        assert update.metrics["steps"] == TRAIN.epochs * len(held(client))
        assert update.metrics["norm"] == pytest.approx(float(update.delta.flat.norm()))


def test_a_rule_may_keep_one_tensor_under_two_names_and_of_any_number_type(memory: Memory) -> None:
    """A site with files keeps what one without them keeps."""
    value = torch.linspace(0, 1, 4)
    kept = {
        "a": value,
        "b": value,
        "c": value[1:3],
        "d": value.bfloat16(),
        "e": value.clone().requires_grad_(),
    }
    memory.write(("m", 1, 0), kept, ())
    result = memory.read(("m", 1, 0))
    assert result.keys() == kept.keys()
    assert all(
        torch.equal(value, result[name]) and value.dtype == result[name].dtype for name, value in kept.items()
    )


def test_what_a_rule_sends_does_not_change_when_the_model_trains_on() -> None:
    """With one client at a time the end of its training is the model's own buffer."""
    live = torch.ones(LAYOUT.size)

    def finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        return {"end": live[:3], "other": torch.zeros(2)}, {"own": live}

    memory = InMemory()
    here = site(memory, make("fedavg", 5)._replace(local=PLAIN._replace(finish=finish)))
    update = here.update(here.job(asked()), Trained(live, {}, 0.0, 0.0))
    live.zero_()
    assert update.extras["end"].tolist() == [1.0] * 3
    (kept,) = memory.memories.values()
    assert torch.equal(kept["rule/own"], CONNECTOR.mask.float())
    assert bool(kept["personal"].all())
