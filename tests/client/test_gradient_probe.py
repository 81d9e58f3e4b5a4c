"""What a rule with a gradient of its own asks about a batch, and what training does with the gradient that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clients import Result, job_of, named, real_site, results, tune
from tests.shares import each_once

from fedloom.algorithms.compose import make
from fedloom.algorithms.local_rule import PLAIN, Gradient, LocalRule, Probe
from fedloom.client.client_memory import InMemory
from fedloom.client.gradient_probe import BatchProbe
from fedloom.client.local_job import Job
from fedloom.client.local_training import train
from fedloom.config.schema import Train
from fedloom.data.drawn_shapes import MAKERS
from fedloom.engine.in_process import InProcess, blocks
from fedloom.params import Part
from fedloom.seeds import stream
from fedloom.system.timing import Clock
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned
from fedloom.types import Conversation, Presence, Tensors
from fedloom.wire.messages import Assignment, Update

SGD = Train(
    rounds=4,
    epochs=2,
    batch_size=3,
    lr=1e-2,
    schedule="constant",
    optimizer="sgd",
    clip=0.5,
    weight_decay=0.01,
)
ADAMW = SGD.model_copy(update={"optimizer": "adamw"})


def conversations(count: int = 4) -> list[Conversation]:
    """Return conversations of different lengths, some without an image."""
    examples = [MAKERS["vqa"](stream(2, "t", step=k), str(k)) for k in range(count)]
    present = [Presence(k % 3 != 1, k % 2 == 0) for k in range(count)]
    return [
        TASKS["vqa"].render(one, seen, answer_form="text")
        for one, seen in zip(examples, present, strict=True)
    ]


def away(tuned: Tuned, seed: int = 1) -> torch.Tensor:
    """Return parameters other than the model's live ones."""
    return (
        tuned.start.flat + torch.randn(tuned.layout.size, generator=torch.Generator().manual_seed(seed)) / 20
    )


def probe_of(
    tuned: Tuned, step: int = 0, count: int = 4, trained: Part | None = None, **place: int
) -> BatchProbe:
    job = job_of(tuned, PLAIN, conversations(count), SGD, trained=trained, **place)
    mask = torch.ones(tuned.layout.size) if trained is None else trained.mask.float()
    return BatchProbe(tuned, job, conversations(count), step, mask, Clock())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 4])
def test_rows_of_examples_have_the_batchs_gradient_as_their_mean(
    count: int, dropout: float, tiny_model: Path
) -> None:
    tuned = tune(tiny_model, dropout=dropout)
    probe, params = probe_of(tuned, count=count), away(tuned)
    loss, grads = probe.gradient(params)
    losses, rows = probe.per_example(params)
    assert rows.shape == (count, tuned.layout.size)
    torch.testing.assert_close(losses.mean(), loss, rtol=1e-6, atol=0)
    assert float((rows.mean(0) - grads).norm()) <= 1e-6 * float(grads.norm())
    torch.testing.assert_close(rows.mean(0), grads, rtol=0, atol=4e-7)
    assert probe.loss(params) == loss


def test_a_row_is_the_gradient_of_its_example_alone(tuned: Tuned) -> None:
    probe, params = probe_of(tuned), away(tuned)
    losses, rows = probe.per_example(params)
    for k, one in enumerate(conversations()):
        loss, grads = replace(probe, conversations=[one]).gradient(params)
        torch.testing.assert_close(losses[k], loss, rtol=1e-5, atol=0)
        assert float((rows[k] - grads).norm()) <= 1e-5 * float(grads.norm())


def test_rows_have_the_scale_of_the_clients_adapters(tuned: Tuned) -> None:
    """A client with adapters of its own scale asks about a model of that scale, however its examples are grouped."""
    plain, params = probe_of(tuned), away(tuned)
    half = replace(plain, job=replace(plain.job, scale=0.5))
    before = plain.gradient(params)[1]
    loss, grads = half.gradient(params)
    losses, rows = half.per_example(params)
    torch.testing.assert_close(losses.mean(), loss, rtol=1e-6, atol=0)
    assert float((rows.mean(0) - grads).norm()) <= 1e-6 * float(grads.norm())
    assert float((grads - before).norm()) > 0.01 * float(before.norm())
    assert torch.equal(plain.gradient(params)[1], before)


def test_asking_changes_nothing_of_the_client(tuned: Tuned) -> None:
    probe, live = probe_of(tuned), away(tuned, 2)
    tuned.flat[0].copy_(live)
    expected = probe.gradient(live)
    for ask in (probe.loss, probe.gradient, probe.per_example):
        ask(away(tuned))
        assert torch.equal(tuned.flat[0], live)
    actual = probe.gradient(live)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(actual, expected, strict=True))
    kept = expected[1].clone()
    probe.gradient(away(tuned))
    assert torch.equal(expected[1], kept)  # what was returned belongs to the rule


def test_all_evaluations_of_a_step_have_the_same_dropout(tiny_model: Path) -> None:
    tuned = tune(tiny_model, dropout=0.3)
    params = away(tuned)
    first, again, other = (probe_of(tuned, step).loss(params) for step in (0, 0, 1))
    assert first == again == probe_of(tuned).gradient(params)[0]
    assert first != other
    assert first != replace(probe_of(tuned), job=probe_of(tuned, client=1).job).loss(params)


@pytest.mark.parametrize("part", ["connector/", "llm/"])
def test_nothing_but_what_is_trained_has_a_gradient(part: str, tuned: Tuned) -> None:
    trained = Part.of(tuned.layout.mask(lambda name: name.startswith(part)))
    probe, params = probe_of(tuned, trained=trained), away(tuned)
    for grads in (probe.gradient(params)[1], *probe.per_example(params)[1]):
        assert not grads[trained.complement.mask].any()
    assert probe.gradient(params)[1][trained.mask].any()


def test_a_batch_without_images_gives_the_connector_no_gradient(tiny_model: Path) -> None:
    tuned = tune(tiny_model, strategy="connector")
    probe = replace(probe_of(tuned), conversations=[conversations()[1]] * 2)
    assert not probe.gradient(away(tuned))[1].any()
    assert not probe.per_example(away(tuned))[1].any()


def test_streams_are_named_by_purpose_stage_round_client_and_step(tuned: Tuned) -> None:
    def drawn(purpose: str = "noise", step: int = 0, **place: int) -> int:
        generator = probe_of(tuned, step, **place).stream(purpose)
        assert generator.device.type == "cpu"
        return int(torch.randint(2**60, (1,), generator=generator))

    results = [
        drawn(), drawn("other"), drawn(step=1), drawn(round=1), drawn(client=1), drawn(stage=1), drawn(seed=1)
    ]  # fmt: skip
    assert len(set(results)) == len(results)
    assert drawn() == results[0]


# In training ----------------------------------------------------------------------------------------


def rule_of(gradient: Gradient) -> LocalRule:
    return LocalRule(gradient=gradient)


def plain(probe: Probe, params: torch.Tensor, carry: Tensors) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
    loss, grads = probe.gradient(params)
    return loss, grads, carry


def trained(tuned: Tuned, rule: LocalRule, settings: Train = SGD, **other: Any) -> Result:
    return results(tuned, [job_of(tuned, rule, conversations(7), settings, client=3, **other)])[0]


def alike(actual: Result, expected: Result) -> bool:
    return torch.equal(actual[0].delta.flat, expected[0].delta.flat) and (
        actual[0].metrics["loss"] == expected[0].metrics["loss"]
    )


@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(("name", "dropout"), each_once(("itself", "sam"), (0.0, 0.3)))
def test_the_gradient_of_the_loss_is_plain_training_to_the_last_bit(
    name: str, dropout: float, settings: Train, tiny_model: Path
) -> None:
    tuned = tune(tiny_model, dropout=dropout)
    rule: LocalRule = rule_of(plain) if name == "itself" else make("sam", 5, {"rho": 0.0})
    assert alike(trained(tuned, rule, settings), trained(tuned, PLAIN, settings))
    if name == "sam":
        assert not alike(trained(tuned, make("sam", 5), settings), trained(tuned, PLAIN, settings))


def test_dp_sgd_without_noise_and_with_a_huge_bound_is_plain_training(tuned: Tuned) -> None:
    expected = trained(tuned, PLAIN)[0].delta.flat
    actual = trained(tuned, make("dp-sgd", 5, {"noise": 0.0, "bound": 1e9}))[0].delta.flat
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    for arguments in ({"noise": 1e-3, "bound": 1.0}, {"noise": 0.0, "bound": 1e-2}):
        other = trained(tuned, make("dp-sgd", 5, arguments))[0].delta.flat
        assert float((other - expected).norm()) > 1e-2 * float(expected.norm())


def test_pfedme_with_one_inner_step_follows_the_gradient(tuned: Tuned) -> None:
    """λ (w − θ) = λ η_p g after one step from θ = w: plain training where λ η_p = 1."""
    rule: LocalRule = make("pfedme", 5, {"lam": 8.0, "inner": 1, "rate": 0.125})
    actual, expected = (trained(tuned, one)[0].delta.flat for one in (rule, PLAIN))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-7)
    other = trained(tuned, make("pfedme", 5))[0].delta.flat
    assert float((other - expected).norm()) > 1e-2 * float(expected.norm())


def test_what_a_rule_makes_is_penalized_masked_clipped_and_corrected(tuned: Tuned) -> None:
    """One step by hand, with rate 1: 10 and a penalty of 5 on what is trained are clipped to norm 0.5, then 2 is added."""
    settings = SGD.model_copy(update={"lr": 1.0, "weight_decay": 0.0, "epochs": 1})
    part = Part.of(tuned.layout.mask(lambda name: name.startswith("connector/")))

    def gradient(
        probe: Probe, params: torch.Tensor, carry: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
        assert torch.equal(probe.trained, part.mask.float())
        assert (probe.rate, probe.examples) == (1.0, 3)
        return torch.tensor(7.0), torch.full_like(params, 10.0), carry

    rule = LocalRule(
        penalize=lambda grads, params, carry: (grads + 5, carry),
        correct=lambda grads, params, carry: (grads + 2, carry),
        gradient=gradient,
    )
    job = job_of(tuned, rule, conversations(3), settings, trained=part)
    (end,) = train(tuned, [job])
    clipped = 0.5 / part.count**0.5
    moved = end.end - tuned.start.flat
    torch.testing.assert_close(moved[part.mask], torch.full((part.count,), -(2 + clipped)), rtol=1e-4, atol=0)
    assert not moved[part.complement.mask].any()
    assert end.loss == 7.0


def test_a_gradient_of_another_shape_is_refused(tuned: Tuned) -> None:
    for odd in (torch.zeros(()), torch.zeros(3)):
        rule = rule_of(lambda probe, params, carry, odd=odd: (torch.zeros(()), odd, carry))
        with pytest.raises(ValueError, match="a rule returned a gradient of shape"):
            trained(tuned, rule)


def test_a_rule_may_change_what_it_is_given(tuned: Tuned) -> None:
    """It gets copies: what it does to them changes neither the client nor the next evaluation."""

    def gradient(
        probe: Probe, params: torch.Tensor, carry: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
        loss, grads = probe.gradient(params)
        params.zero_()
        return loss, grads, carry

    assert alike(trained(tuned, rule_of(gradient)), trained(tuned, PLAIN))


# Beside others --------------------------------------------------------------------------------------

GRADIENTS = ("fedavg+sam", "fedavg+dp-sgd", "fedavg+pfedme", "fedkseed", "scaffold+sam")


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_client_has_equal_bits_whoever_trains_with_it(name: str, tuned: Tuned) -> None:
    algorithm = named(name)
    sent = algorithm.broadcast(algorithm.init(tuned.start))
    part = None if algorithm.exchanges else Part(tuned.layout.size, ())

    def go(clients: Sequence[int], rows: int) -> dict[int, tuple[Update, Tensors]]:
        memory = InMemory()
        backend = InProcess(real_site(tuned, name, memory=memory), rows)
        todo = [
            Assignment(name, 0, 0, client, sent.params, sent.extras, down=part, up=part) for client in clients
        ]
        answers = list(backend.train(todo, Clock()))
        assert all(isinstance(one, Update) for one in answers)
        return {one.client: (one, memory.memories.get((name, one.client, 0), {})) for one in answers}  # type: ignore[misc]

    alone, together, beside = go([3], 1), go(range(5), 4), go([1, 3, 4], 1)
    for other in (together, beside):
        (mine, kept), (theirs, remembered) = alone[3], other[3]
        assert torch.equal(mine.delta.flat, theirs.delta.flat)
        assert kept.keys() == remembered.keys()
        assert all(torch.equal(value, remembered[key]) for key, value in kept.items())
        assert all(torch.equal(value, theirs.extras[key]) for key, value in mine.extras.items())
    assert len({float(one.metrics["loss"]) for one, _ in together.values()}) == 5


def test_a_rule_with_its_own_gradient_shares_no_block(tuned: Tuned) -> None:
    rules = [PLAIN, make("sam", 5), PLAIN, make("dp-sgd", 5), PLAIN]
    jobs: list[Job] = [job_of(tuned, rule, conversations(3), SGD, client=k) for k, rule in enumerate(rules)]
    assert sorted(map(sorted, blocks(dict(enumerate(jobs)), 4))) == [[0, 2, 4], [1], [3]]
    with pytest.raises(ValueError, match="no rule with its own gradient"):
        train(tuned, jobs[:2])
