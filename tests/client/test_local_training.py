"""The local loop does what a plain PyTorch loop over the same batches does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.answer_loss import answer_loss
from tests.clients import Result, deltas, job_of, results
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from fedloom.algorithms.adaptive_regularizer import adaptive
from fedloom.algorithms.compose import make
from fedloom.algorithms.fedprox import proximal
from fedloom.algorithms.local_rule import PLAIN, LocalRule, chain, clipped
from fedloom.client import local_training
from fedloom.client.learning_rate import learning_rate, local_rate
from fedloom.client.local_job import draw_batches
from fedloom.client.local_training import train
from fedloom.config.schema import Train
from fedloom.data.drawn_shapes import MAKERS
from fedloom.params import Params, Part
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned
from fedloom.types import Broadcast, Conversation, Presence

SETTINGS = Train(
    rounds=4,
    epochs=2,
    batch_size=3,
    lr=1e-2,
    schedule="cosine",
    local_schedule="constant",
    optimizer="adamw",
    beta2=0.999,
    weight_decay=0.01,
    batches="shuffled",
    clip=1.0,
)


def varied(settings: Train = SETTINGS, **other: Any) -> Train:
    """Return the settings with the given values changed."""
    return settings.model_copy(update=other)


COSINE = varied(local_schedule="cosine")
BROADCAST = Broadcast(Params.of({"x": torch.zeros(1)}))


def conversations(count: int = 7) -> list[Conversation]:
    examples = [MAKERS["vqa"](stream(2, "t", step=k), str(k)) for k in range(count)]
    present = Presence(True, True)
    return [TASKS["vqa"].render(one, present, answer_form="text") for one in examples]


def train_client(
    tuned: Tuned,
    rule: LocalRule,
    examples: list[Conversation],
    settings: Train,
    place: tuple[int, int, int],
) -> Result:
    seed, round, client = place
    return results(tuned, [job_of(tuned, rule, examples, settings, seed=seed, round=round, client=client)])[0]


@pytest.mark.parametrize(("local", "beta2"), [("constant", 0.999), ("cosine", 0.999), ("published", 0.95)])
def test_training_is_a_plain_loop_with_torchs_adamw(local: str, beta2: float, tuned: Tuned) -> None:
    settings, examples = varied(local_schedule=local, beta2=beta2), conversations()
    update, memory = train_client(tuned, PLAIN, examples, settings, (3, 1, 5))
    plain = torch.nn.Parameter(tuned.start.flat.clone())
    stock = torch.optim.AdamW(
        [plain], lr=learning_rate(settings, 1), weight_decay=0.01, betas=(0.9, settings.beta2)
    )
    rates = torch.optim.lr_scheduler.LambdaLR(stock, lambda step: local_rate(local, step, 6))
    for epoch in range(2):
        order = stream(3, "batches", round=1, client=5, step=epoch).permutation(7)
        for begin in range(0, 7, 3):
            tuned.flat.copy_(plain.detach())
            tuned.grads.zero_()
            answer_loss(tuned.vlm, [examples[k] for k in order[begin : begin + 3]]).backward()
            plain.grad = tuned.grads[0].clone()
            torch.nn.utils.clip_grad_norm_([plain], 1.0)
            stock.step()
            rates.step()
    torch.testing.assert_close(update.delta.flat, plain.detach() - tuned.start.flat, rtol=1e-4, atol=1e-6)
    assert (update.client, update.weight, memory) == (5, 7.0, {})
    assert update.metrics["steps"] == 6


def trained_like_a_trainer(
    tuned: Tuned, examples: list[Conversation], settings: Train, client: int, pull: torch.Tensor
) -> torch.Tensor:
    """Train as a Trainer of transformers whose loss has the penalty ½ Σ pull · (w − x)² in it; return w − x."""
    start = tuned.start.flat
    plain = torch.nn.Parameter(start.clone())
    stock = torch.optim.AdamW([plain], lr=learning_rate(settings, 1), weight_decay=settings.weight_decay)
    for epoch in range(settings.epochs):
        order = stream(3, "batches", round=1, client=client, step=epoch).permutation(len(examples))
        for begin in range(0, len(examples), settings.batch_size):
            stock.zero_grad()
            (pull * (plain - start).square()).sum().div(2).backward()
            tuned.flat.copy_(plain.detach())
            tuned.grads.zero_()
            batch = [examples[k] for k in order[begin : begin + settings.batch_size]]
            answer_loss(tuned.vlm, batch).backward()
            assert plain.grad is not None
            plain.grad += tuned.grads[0]
            assert settings.clip is not None
            assert torch.nn.utils.clip_grad_norm_([plain], settings.clip) > settings.clip  # it does clip
            stock.step()
    return plain.detach() - start


MU = 20.0
SMALL = varied(clip=0.1, lr=3e-3)


def held(tuned: Tuned, name: str) -> tuple[LocalRule, torch.Tensor]:
    """Return an algorithm's rule as published, and how strongly it pulls each value back."""
    if name == "fedprox":
        return make("fedprox", 2, {"mu": MU, "published": True}).local, torch.full_like(tuned.start.flat, MU)
    layout = tuned.start.layout
    rule = adaptive(layout, mu=MU, weight=1.0, skip=0, published=True)
    return rule, MU * layout.mask(lambda value: value.startswith("llm/") and "layers." in value)


@pytest.mark.parametrize("name", ["fedprox", "adaptive"])
def test_as_published_loss_and_penalty_are_clipped_together_as_a_trainer_does(
    name: str, tuned: Tuned
) -> None:
    rule, pull = held(tuned, name)
    held_by = {5: conversations(7), 6: conversations(4)}
    jobs = [
        job_of(tuned, rule, examples, SMALL, seed=3, round=1, client=client)
        for client, examples in held_by.items()
    ]
    actual = deltas(tuned, jobs)  # side by side
    for (client, examples), delta in zip(held_by.items(), actual, strict=True):
        expected = trained_like_a_trainer(tuned, examples, SMALL, client, pull)
        torch.testing.assert_close(delta, expected, rtol=1e-3, atol=1e-6)


def test_corrected_penalties_are_not_clipped(tuned: Tuned) -> None:
    """One step by hand: SGD with rate 1 moves by the gradient that it gets."""
    settings = varied(SMALL, optimizer="sgd", schedule="constant", lr=1.0, weight_decay=0.0, epochs=1)
    away = torch.full_like(tuned.start.flat, 0.5)
    rule = PLAIN._replace(correct=lambda grads, params, carry: (grads + away, carry))
    plain, corrected, published = (
        train_client(tuned, one, conversations(3), settings, (3, 1, 5))[0].delta.flat
        for one in (PLAIN, rule, clipped(rule))
    )
    assert float(plain.norm()) == pytest.approx(SMALL.clip)  # the gradient of the loss, clipped
    torch.testing.assert_close(corrected, plain - away)
    assert float(published.norm()) == pytest.approx(SMALL.clip)


def test_rules_in_a_chain_are_each_clipped_or_not() -> None:
    def adds(value: float) -> LocalRule:
        return PLAIN._replace(correct=lambda grads, params, carry: (grads + value, {**carry, "n": grads}))

    rule = chain(adds(1.0), clipped(adds(2.0)))
    zero, carry = torch.zeros(1), rule.begin(BROADCAST, {})
    before, carry = rule.penalize(zero, zero, carry)
    after, carry = rule.correct(before, zero, carry)
    assert (before.item(), after.item()) == (2.0, 3.0)
    assert {name: value.item() for name, value in carry.items()} == {"0.n": 2.0, "1.n": 0.0}


def test_training_does_not_change_the_broadcast(tuned: Tuned) -> None:
    before = tuned.start.flat.clone()
    train_client(tuned, proximal(0.1), conversations(), SETTINGS, (0, 0, 0))
    assert torch.equal(tuned.start.flat, before)


def test_earlier_training_changes_nothing(tuned: Tuned) -> None:
    first, _ = train_client(tuned, PLAIN, conversations(), SETTINGS, (0, 0, 1))
    train_client(tuned, PLAIN, conversations(4), SETTINGS, (0, 0, 2))
    again, _ = train_client(tuned, PLAIN, conversations(), SETTINGS, (0, 0, 1))
    other, _ = train_client(tuned, PLAIN, conversations(), SETTINGS, (0, 1, 1))
    assert torch.equal(first.delta.flat, again.delta.flat)
    assert not torch.equal(first.delta.flat, other.delta.flat)


def test_losses_are_added_up_in_float64_step_by_step(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, for clients with different numbers of steps side by side."""
    steps, take = list[torch.Tensor](), local_training._step

    def noted(*given: Any) -> torch.Tensor:
        steps.append(take(*given))
        return steps[-1]

    monkeypatch.setattr(local_training, "_step", noted)
    jobs = [job_of(tuned, PLAIN, conversations(count), SETTINGS, client=count) for count in (7, 2)]
    ends = train(tuned, jobs)
    assert len(steps) == jobs[0].steps > jobs[1].steps
    for row, (job, end) in enumerate(zip(jobs, ends, strict=True)):
        total = 0.0
        for losses in steps[: job.steps]:
            total += float(losses[row])
        assert end.loss == total / job.steps


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_nothing_but_the_trained_part_moves(optimizer: str, tuned: Tuned) -> None:
    """Weight decay, a rule and an optimizer's memory would move the rest too."""
    settings = varied(optimizer=optimizer, weight_decay=0.5)
    rule = PLAIN._replace(correct=lambda grads, params, carry: (grads + 0.5, carry))
    for chosen in ("connector/", "llm/"):
        part = Part.of(tuned.layout.mask(lambda name, chosen=chosen: name.startswith(chosen)))
        job = job_of(tuned, rule, conversations(3), settings, trained=part)
        (end,) = train(tuned, [job])
        moved = end.end != tuned.start.flat
        assert moved[part.mask].any()
        assert not moved[part.complement.mask].any()


def test_a_strong_pull_keeps_a_client_near_the_global_model(tuned: Tuned) -> None:
    settings = varied(optimizer="sgd", lr=0.1, weight_decay=0.0)
    norms = []
    for mu in (0.0, 2.0):
        update, _ = train_client(tuned, proximal(mu), conversations(), settings, (0, 0, 0))
        norms.append(float(update.delta.flat.norm()))
    assert norms[1] < norms[0]


def test_the_learning_rate_falls_over_rounds() -> None:
    rates = [learning_rate(SETTINGS, round) for round in range(4)]
    assert rates[0] == SETTINGS.lr
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
    assert learning_rate(varied(schedule="constant"), 3) == SETTINGS.lr


@pytest.mark.parametrize(("rounds", "times"), [(25, 4.0), (40, 2.5), (50, 2.0), (100, 1.0)])
def test_the_published_schedule_starts_too_high(rounds: int, times: float) -> None:
    settings = varied(rounds=rounds, schedule="published")
    rates = [learning_rate(settings, round) for round in range(rounds)]
    assert rates[0] == pytest.approx(times * settings.lr)
    # From the second round on it is the cosine that was meant, shifted by a hundredth of the rounds.
    assert rates[1] <= settings.lr
    assert rates[1:] == sorted(rates[1:], reverse=True)
    middle = rounds // 2
    shifted = (middle - 0.01 * rounds) / (0.99 * rounds)
    assert rates[middle] == pytest.approx(settings.lr * math.cos(math.pi / 2 * shifted) ** 2)


def test_the_published_schedule_warms_up_where_there_are_rounds_enough() -> None:
    settings = varied(rounds=400, schedule="published")
    rates = [learning_rate(settings, round) / settings.lr for round in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def stock_rates(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    """Return the learning rates of a scheduler's steps, as shares of the optimizer's rate."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, result = make(optimizer), []
    for _ in range(steps):
        result.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return result


@pytest.mark.parametrize("steps", [1, 2, 7, 150, 1073])
def test_the_rate_inside_a_round_is_that_of_stock_schedules(steps: int) -> None:
    def ours(schedule: str) -> list[float]:
        return [local_rate(schedule, step, steps) for step in range(steps)]

    def cosine(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)

    def published(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return get_cosine_schedule_with_warmup(optimizer, math.ceil(0.01 * steps), steps)

    assert ours("constant") == [1.0] * steps
    assert ours("cosine") == pytest.approx(stock_rates(cosine, steps), abs=1e-9)
    assert ours("published") == pytest.approx(stock_rates(published, steps), abs=1e-9)


def test_the_rate_inside_a_round_by_hand() -> None:
    assert [local_rate("cosine", step, 4) for step in range(4)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    # One of three steps to warm up, from nothing; then half a wave over the two that are left.
    assert [local_rate("published", step, 3) for step in range(3)] == pytest.approx([0, 1, 0.5])


def test_as_published_a_client_with_one_step_stays_where_it_was(tuned: Tuned) -> None:
    settings = varied(local_schedule="published", epochs=1)
    one, _ = train_client(tuned, PLAIN, conversations(3), settings, (0, 0, 0))
    two, _ = train_client(tuned, PLAIN, conversations(4), settings, (0, 0, 0))
    assert not one.delta.flat.any()
    assert two.delta.flat.any()


def test_every_round_begins_anew(tuned: Tuned) -> None:
    jobs = [job_of(tuned, PLAIN, conversations(), COSINE, round=round) for round in (0, 3)]
    first, last = ([job.rate(step) for step in range(job.steps)] for job in jobs)
    falls = [learning_rate(COSINE, round) for round in (0, 3)]
    assert [rate / falls[0] for rate in first] == pytest.approx([rate / falls[1] for rate in last])
    assert (first[0], last[0]) == (falls[0], falls[1])


def mixed(count: int) -> list[Conversation]:
    """Return conversations of which half have an image and a long text, and half a short text only."""
    long = [replace(one, user="what is that " * (3 + k % 4)) for k, one in enumerate(conversations(count))]
    return [
        replace(one, picture=None, user="what" * (1 + k % 3)) if k % 2 else one for k, one in enumerate(long)
    ]


def padding(examples: list[Conversation], batches: list[list[int]]) -> float:
    sizes = [
        [len(examples[k].user) + (100 if examples[k].picture else 0) for k in batch] for batch in batches
    ]
    return sum(max(batch) * len(batch) for batch in sizes) / sum(map(sum, sizes))


@pytest.mark.parametrize("kind", ["shuffled", "bucketed"])
@pytest.mark.parametrize("count", [1, 3, 4, 50, 300])
def test_every_example_is_in_one_batch(kind: str, count: int) -> None:
    result = draw_batches((mixed(4) * 75)[:count], 4, kind, stream(0, "t"))
    assert sorted(k for batch in result for k in batch) == list(range(count))
    assert len(result) == -(-count // 4)
    assert sorted(map(len, result))[1:] == [4] * (len(result) - 1)


def test_buckets_pad_less_and_still_change_from_epoch_to_epoch() -> None:
    examples = mixed(8) * 20
    shuffled, bucketed = (
        draw_batches(examples, 4, kind, stream(0, "t")) for kind in ("shuffled", "bucketed")
    )
    assert padding(examples, bucketed) < 1.1 < padding(examples, shuffled)
    assert bucketed != draw_batches(examples, 4, "bucketed", stream(1, "t"))
    assert bucketed == draw_batches(examples, 4, "bucketed", stream(0, "t"))
