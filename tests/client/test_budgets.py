"""Clients that hold, train and report a budget of all that is trained, with real sites, runs and admission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clients import CLIENTS, Plain, assigned, profiles, real_site, run_of, same, site_of, start_of

from fedloom.algorithms.algorithm import EVERYTHING, Budget
from fedloom.algorithms.compose import Given, make
from fedloom.client.client_memory import InMemory
from fedloom.client.local_training import train
from fedloom.client.site import Question, Site
from fedloom.config.schema import Limits, Train
from fedloom.engine.admission import Admission
from fedloom.engine.in_process import InProcess
from fedloom.engine.rounds import TrainingState, run_rounds
from fedloom.engine.update_bounds import UpdateBounds
from fedloom.models.load_model import load_vlm
from fedloom.params import Layout, Params, Part
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategies import LoRA, merged_stage, stage, strategy
from fedloom.tuning.strategy_parts import parts_of
from fedloom.types import Broadcast
from fedloom.wire.messages import Answer, Assignment, Update

LAYERS = 3
LAYOUT = Layout.of(
    {"connector/w": (3, 2)}
    | {f"llm/layers.{k}.q:lora_a": (4, 3) for k in range(LAYERS)}
    | {f"llm/layers.{k}.q:lora_b": (5, 4) for k in range(LAYERS)}
)
RANKS, BUDGETS = [1, 2, 4, 3, 1], [1, 2, 3, 2, 1]


def budget_of(name: str, values: Sequence[int], layout: Layout = LAYOUT) -> Budget:
    argument = {"layers": "budgets", "ranks": "ranks"}[name]
    return make(name, Given(len(values), layout=layout), {argument: list(values)})


BUDGETS = {"ranks": budget_of("ranks", RANKS), "layers": budget_of("layers", BUDGETS)}


def with_budget(site: Site, budget: Budget) -> Site:
    known = replace(site.method("m"), budget=budget)
    return replace(site, method=lambda method: known)


@dataclass(frozen=True)
class Bytes(Plain):
    """A backend to whose clients assignments, and from whose clients updates, go as bytes."""

    sent: list[int] = field(default_factory=list)
    came: list[int] = field(default_factory=list)

    def client(self, assignment: Assignment) -> Answer:
        message = assignment.to_bytes()
        answer = super().client(Assignment.from_bytes(message, LAYOUT))
        assert isinstance(answer, Update)
        self.sent.append(len(message))
        self.came.append(len(answer.to_bytes()))
        return Update.from_bytes(answer.to_bytes(), LAYOUT)


def rounds(
    budget: Budget, settings: Train, name: str = "fedavg", **fields: Any
) -> tuple[TrainingState, Bytes, list[Any]]:
    """Run rounds of clients with a budget; return where they end, the backend, and what the record would hold."""
    algorithm, logs = make(name, CLIENTS), list[Any]()
    backend = Bytes(with_budget(site_of(algorithm, settings, layout=LAYOUT), budget))
    begun = TrainingState(algorithm.init(start_of(LAYOUT)))
    run = run_of(
        name,
        train=settings,
        training_state=begun,
        down=budget.down,
        up=budget.up,
        scale=budget.scale,
        after_round=lambda now, log: logs.append(log),
        **fields,
    )
    (end,) = run_rounds([run], backend)
    return end, backend, logs


OPTIMIZERS = [
    Train(rounds=3, batch_size=1, lr=0.1, schedule="constant"),
    Train(rounds=3, batch_size=1, lr=0.1, schedule="constant", optimizer="sgd", weight_decay=0.1),
]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("settings", OPTIMIZERS, ids=["adamw", "sgd"])
@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedprox"])
def test_honest_updates_are_admitted_and_counted_as_their_messages(
    budget: str, settings: Train, name: str
) -> None:
    end, backend, logs = rounds(BUDGETS[budget], settings, name, limits=Limits())
    assert len(logs) == 3
    for log in logs:
        assert log["refused"] == log["missing"] == []
    assert (end.bytes_up, end.bytes_down) == (sum(backend.came), sum(backend.sent))
    everything, _, _ = rounds(EVERYTHING, settings, name)
    assert end.bytes_up < everything.bytes_up
    assert (end.bytes_down < everything.bytes_down) == (budget == "ranks")


@pytest.mark.parametrize(("name", "values"), [("ranks", [4] * CLIENTS), ("layers", [LAYERS] * CLIENTS)])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedyogi"])
def test_full_budgets_give_the_bits_of_no_budgets(name: str, values: list[int], algorithm: str) -> None:
    training_state, backend, _ = rounds(budget_of(name, values), OPTIMIZERS[0], algorithm)
    plain, beside, _ = rounds(EVERYTHING, OPTIMIZERS[0], algorithm)
    assert same(training_state, plain) and (training_state.bytes_up, training_state.bytes_down) == (
        plain.bytes_up,
        plain.bytes_down,
    )
    assert backend.came == beside.came and backend.sent == beside.sent


def test_admission_measures_a_clients_own_factors() -> None:
    """B arrives twice as long from a client of rank 2 of 4; that is neither outsized nor unusual, but twice as much is."""
    budget, start = budget_of("ranks", [2, 4]), start_of(LAYOUT)
    settings = OPTIMIZERS[0]

    expected = UpdateBounds(make("fedavg", 2), start, settings, 0, profiles(2), budget.up, budget.scale)
    allowed, part = expected.of(0), budget.up(0)
    assert part is not None and allowed.scale == 2.0
    b = LAYOUT.mask(lambda name: name.endswith(":lora_b"))
    own = part.zero_outside(b)
    own *= allowed.most / own.norm()  # the largest norm that honest training can produce, all of it in B
    for factor, refused in ((0.99, False), (1.01, True)):
        update = Update(0, Params(LAYOUT, 2 * factor * own), 1.0, up=part)
        ((_, why),) = Admission(expected, (), Limits()).check([update])
        assert (why is not None) == refused
    arrived = Update(0, Params(LAYOUT, 2 * 0.99 * own), 1.0, up=part)
    limit = 1.5 * float(allowed.most)  # what a user limits is what reaches the server
    ((_, why),) = Admission(expected, (), Limits(max_norm=limit)).check([arrived])
    assert why is not None and "admission.max_norm" in why


# Personal parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_client_trains_nothing_beyond_its_budget_of_its_personal_values_either(budget: str) -> None:
    """The adapters are personal: round after round a client's own adapters change within its budget only."""
    parts = parts_of(LAYOUT, strategy("share-connector", LoRA()), 0)
    memory, own = InMemory(), BUDGETS[budget]
    site = with_budget(site_of(make("fedavg", CLIENTS), OPTIMIZERS[0], memory, parts, LAYOUT), own)
    connector, sent = parts.up, start_of(LAYOUT)
    for client in range(CLIENTS):
        held = own.up(client) or Part.whole(LAYOUT.size)
        begun = None
        for round in range(2):
            asked = Assignment("m", 0, round, client, sent, {}, round - 1, down=connector, up=connector)
            job = site.job(asked)
            if begun is not None:  # it goes on from where its own values were
                torch.testing.assert_close(parts.personal.take(job.broadcast.params.flat), begun)
            assert (job.trained or Part.whole(LAYOUT.size)) == held
            answer = Plain(site).client(asked)
            assert isinstance(answer, Update) and answer.keeps
            moved = (
                site.job(replace(asked, round=round + 1, since=round)).broadcast.params.flat
                - job.broadcast.params.flat
            )
            assert held.is_zero_outside(parts.personal.zero_outside(moved))
            assert (parts.personal & held).take(moved)[:-1].all()  # the last value is where client 1 pulls it
            begun = parts.personal.take(job.broadcast.params.flat + moved)
        # What it is evaluated with is for adapters of the plain scale.
        model = site.model(Question("m", 0, sent, client, 1))
        assert begun is not None
        b = LAYOUT.mask(lambda name: name.endswith(":lora_b")).bool()
        factor = torch.where(b, own.scale(client), 1.0)
        torch.testing.assert_close(parts.personal.take(model.flat), parts.personal.take(factor) * begun)


# With a real model ------------------------------------------------------------------------------------


def tune(path: Path, rank: int, dropout: float = 0.0) -> Tuned:
    stages = strategy("both", LoRA(rank=rank, alpha=8.0, dropout=dropout))
    return prepare(load_vlm(str(path)), merged_stage(stages), seed=0)


SETTINGS = Train(rounds=2, epochs=2, batch_size=1, lr=1e-2, optimizer="sgd", clip=0.5, weight_decay=0.01)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_client_of_a_smaller_rank_trains_as_a_model_of_that_rank(
    rank: int, dropout: float, tiny_model: Path
) -> None:
    """Its slots end where the factors of a model with this rank, and so with the scale α / r, end."""
    large = tune(tiny_model, 4, dropout)
    budget = budget_of("ranks", [rank] * CLIENTS, large.layout)
    asked = replace(assigned(large)[2], down=budget.down(2), up=budget.up(2))
    site = with_budget(real_site(large, train=SETTINGS), budget)
    job = site.job(asked)
    actual = site.update(job, train(large, [job])[0]).delta

    small = tune(tiny_model, rank, dropout)
    assert budget.scale(2) == 4 / rank
    start = Params(small.layout, small.start.flat.clone())
    for name, value in start.items():
        value.copy_(
            asked.params[name][:rank]
            if name.endswith(":lora_a")
            else asked.params[name][..., : value.shape[-1]]
        )
    beside = real_site(small, train=SETTINGS)
    plain = beside.job(replace(asked, params=start, down=None, up=None))
    expected = beside.update(plain, train(small, [plain])[0]).delta
    for name, value in expected.items():
        mine = actual[name]
        if name.endswith(":lora_a"):
            assert not mine[rank:].any()
            mine = mine[:rank]
        elif name.endswith(":lora_b"):
            assert not mine[:, rank:].any()
            mine = mine[:, :rank] * rank / 4
        torch.testing.assert_close(mine, value, rtol=1e-3, atol=1e-6)
    assert expected.flat.norm() > 1e-3


def test_clients_of_several_ranks_share_a_block(tiny_model: Path) -> None:
    """Side by side they send what they send one after the other."""
    tuned = tune(tiny_model, 4)
    budget = budget_of("ranks", RANKS, tuned.layout)
    todo = [replace(one, down=budget.down(one.client), up=budget.up(one.client)) for one in assigned(tuned)]
    answers = {}
    for rows in (1, 5):
        site = with_budget(real_site(tuned, train=SETTINGS), budget)
        answers[rows] = list(InProcess(site, rows).train(iter(todo), Clock()))
    for mine, theirs in zip(answers[5], answers[1], strict=True):
        assert isinstance(mine, Update) and isinstance(theirs, Update)
        size = float(theirs.delta.flat.norm())
        assert size > 0
        assert float((mine.delta.flat - theirs.delta.flat).norm()) <= 1e-5 * size
        assert mine.up == theirs.up == budget.up(mine.client)


@pytest.mark.parametrize("job_of_client", [1, 2])
def test_a_scale_is_that_of_another_alpha(job_of_client: int, tiny_model: Path) -> None:
    """With twice the scale a client measures and trains what a model with twice the alpha does, bit for bit."""
    results = []
    for alpha, scale in ((8.0, 2.0), (16.0, 1.0)):
        tuned = prepare(load_vlm(str(tiny_model)), stage("both", LoRA(rank=4, alpha=alpha)), seed=0)
        start = tuned.start.with_flat(tuned.start.flat + 0.01)  # B is not zero, so A has a gradient
        site = real_site(tuned, train=SETTINGS)
        job = site.job(assigned(tuned)[job_of_client])
        job = replace(job, broadcast=Broadcast(start), start=start, scale=scale)
        norms = site.measure(job, "gradient_norms").extras["norms"]
        results.append((norms, train(tuned, [job])[0].end))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
