"""What honest work comes to stays within what the server derives from the settings, whatever the gradients are."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.hostile.updates import LAYOUT, held

from fedloom.algorithms import make
from fedloom.algorithms.base import PLAIN
from fedloom.algorithms.fedprox import proximal
from fedloom.client.optimizers import OPTIMIZERS, adamw_reach, clip
from fedloom.client.train import Work
from fedloom.engine.limits import TIMES, Expected, norm, reach
from fedloom.params import Layout, Params
from fedloom.sections import Train
from fedloom.types import Broadcast, Conversation

SIZE = 12


def work(train: Train, start: torch.Tensor, steps: int, round: int = 0) -> Work:
    sent = Broadcast(Params(Layout.of({"w": (start.numel(),)}), start))
    conversations = [Conversation("", "")] * steps
    return Work(0, round, 0, PLAIN, sent, {}, conversations, train.model_copy(update={"batch_size": 1}))


def walked(one: Work, gradients: torch.Tensor) -> torch.Tensor:
    """What the real optimizer makes of gradients, shape [steps, P]."""
    start, optimizer = one.broadcast.params.flat, OPTIMIZERS[one.settings.optimizer]
    flat = start.clone()[None]
    slots = {name: torch.zeros_like(flat) for name in optimizer.slots}
    for step, gradient in enumerate(gradients):
        grads = gradient.clone()[None]
        clip(grads, one.settings.clip)
        settings = one.settings
        optimizer.step(flat, grads, slots, step + 1, one.rate(step), settings.weight_decay, settings.beta2)
    return flat[0] - start


@st.composite
def trainings(draw: st.DrawFn) -> Train:
    return Train(
        rounds=draw(st.integers(1, 200)),
        lr=draw(st.sampled_from([1e-7, 1e-4, 1e-3, 0.1, 3.0])),
        schedule=draw(st.sampled_from(["cosine", "constant", "published"])),
        local_schedule=draw(st.sampled_from(["cosine", "constant", "published"])),
        optimizer=draw(st.sampled_from(["adamw", "sgd"])),
        beta2=draw(st.sampled_from([0.81, 0.9, 0.95, 0.999, 1 - 1e-12])),
        weight_decay=draw(st.sampled_from([0.0, 0.01, 1.0])),
        clip=draw(st.sampled_from([1e-6, 0.1, 1.0, 100.0])),
    )


@st.composite
def gradients(draw: st.DrawFn) -> torch.Tensor:
    """Steady, random, growing, fading and rare gradients of any size."""
    steps = draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    noise = torch.randn(steps, SIZE, generator=generator)
    kind = draw(st.sampled_from(["steady", "random", "growing", "fading", "rare"]))
    place = torch.arange(steps, dtype=torch.float64)[:, None]
    found = {
        "steady": torch.ones(steps, SIZE, dtype=torch.float64),
        "random": noise.double(),
        "growing": noise.double().abs() * draw(st.sampled_from([1.05, 1.2, 2.0])) ** place,
        "fading": noise.double().abs() * draw(st.sampled_from([0.9, 0.5])) ** place,
        "rare": noise.double() * (torch.rand(steps, 1, generator=generator) < 0.1),
    }[kind]
    return (found * 10.0 ** draw(st.integers(-30, 20))).clamp(-1e30, 1e30).float()


@given(trainings(), gradients(), st.sampled_from([0.0, 1e-3, 1.0, 1e6]))
def test_no_gradients_lead_beyond_the_bound(train: Train, given: torch.Tensor, size: float) -> None:
    start = size * torch.linspace(-1, 1, SIZE)
    one = work(train, start, len(given), round=train.rounds // 3)
    most, _ = reach(one, SIZE, norm(start))
    assert most < inf
    if most < 1e38:  # beyond, float32 values end
        assert norm(walked(one, given)) <= most


def test_the_bound_is_reached() -> None:
    """A bound that nothing comes near would let outsized updates in."""
    steady = torch.ones(8, SIZE)
    for train in (Train(lr=0.1), Train(lr=0.1, optimizer="sgd", clip=2.0)):
        one = work(train, torch.zeros(SIZE), 8)
        assert norm(walked(one, steady)) >= 0.9 * reach(one, SIZE, 0.0)[0]


@pytest.mark.parametrize("beta2", [0.85, 0.95, 0.999])
def test_the_worst_gradients_for_adamw(beta2: float) -> None:
    """Where Cauchy and Schwarz hold with equality: gradients that grow by β1 / β2 into the past."""
    steps = 20
    given = ((0.9 / beta2) ** torch.arange(steps - 1, -1, -1.0))[:, None].expand(-1, SIZE)
    one = work(Train(lr=1.0, beta2=beta2, schedule="constant", clip=None), torch.zeros(SIZE), steps)
    last = walked(one, given) - walked(one, given[:-1])
    assert norm(last) == pytest.approx(adamw_reach(steps, SIZE, inf, beta2), rel=1e-4)


@pytest.mark.parametrize(
    "train",
    [
        Train(optimizer="sgd", clip=None),
        Train(beta2=0.5),
        Train(optimizer="sgd", clip=None, weight_decay=0.1),
    ],
)
def test_where_the_settings_bound_nothing_the_parameters_do(train: Train) -> None:
    one = work(train, torch.ones(SIZE), 5)
    assert reach(one, SIZE, 3.0)[0] == TIMES * 3.0 + sqrt(SIZE)


def test_a_rule_that_corrects_clipped_gradients_is_not_bounded_by_the_clip() -> None:
    one = replace(work(Train(optimizer="sgd"), torch.ones(SIZE), 5), rule=proximal(100.0))
    assert reach(one, SIZE, 3.0)[0] == TIMES * 3.0 + sqrt(SIZE)


def test_bounds_are_of_what_is_exchanged() -> None:
    algorithm, params = make("fedavg", 3), Params(LAYOUT, torch.ones(LAYOUT.size))
    shared = LAYOUT.mask(lambda name: name.startswith("llm/"))
    trained = LAYOUT.mask(lambda name: not name.endswith("_b"))
    works = [
        Work(
            client,
            0,
            0,
            algorithm.local,
            algorithm.broadcast(algorithm.init(params)),
            {},
            held(client),
            Train(),
        )
        for client in range(3)
    ]
    expected = Expected(algorithm, params, (trained, shared))
    assert list(expected.noted(works)) == works
    found = [expected.take() for _ in works]
    assert [(one.client, one.examples) for one in found] == [(0, 1), (1, 2), (2, 3)]
    assert found[0].most == reach(works[0], 4, 2.0)[0]  # of 12 values the 4 of llm/…lora_a are exchanged
    assert expected.silent == (slice(0, 6), slice(10, 12))
