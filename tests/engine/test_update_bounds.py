"""Honest work stays within the bounds that the server derives from the settings, whatever the gradients are."""

from __future__ import annotations

from math import inf, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clients import LAYOUT, profiles

from fedloom.algorithms.algorithm import with_rule
from fedloom.algorithms.compose import make
from fedloom.algorithms.fedprox import proximal
from fedloom.client.learning_rate import rate_of
from fedloom.client.optimizers import OPTIMIZERS, adamw_reach, clip
from fedloom.config.schema import Train
from fedloom.engine.update_bounds import TIMES, UpdateBounds, delta_bound, norm
from fedloom.params import Params, Part

SIZE = 12


def walked(train: Train, gradients: torch.Tensor, start: torch.Tensor, round: int = 0) -> torch.Tensor:
    """Return the delta that the real optimizer makes of gradients, shape [steps, P]."""
    optimizer, flat = OPTIMIZERS[train.optimizer], start.clone()[None]
    slots = {name: torch.zeros_like(flat) for name in optimizer.slots}
    for step, gradient in enumerate(gradients):
        grads = gradient.clone()[None]
        clip(grads, train.clip)
        rate = rate_of(train, round, step, len(gradients))
        optimizer.step(flat, grads, slots, step + 1, rate, train.weight_decay, train.beta2)
    return flat[0] - start


def bound(train: Train, steps: int, start: float, round: int = 0) -> float:
    return delta_bound(train, round, steps, inf if train.clip is None else train.clip, SIZE, start)[0]


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
    """Draw steady, random, growing, fading or rare gradients of any size."""
    steps = draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    noise = torch.randn(steps, SIZE, generator=generator)
    kind = draw(st.sampled_from(["steady", "random", "growing", "fading", "rare"]))
    place = torch.arange(steps, dtype=torch.float64)[:, None]
    results = {
        "steady": torch.ones(steps, SIZE, dtype=torch.float64),
        "random": noise.double(),
        "growing": noise.double().abs() * draw(st.sampled_from([1.05, 1.2, 2.0])) ** place,
        "fading": noise.double().abs() * draw(st.sampled_from([0.9, 0.5])) ** place,
        "rare": noise.double() * (torch.rand(steps, 1, generator=generator) < 0.1),
    }[kind]
    return (results * 10.0 ** draw(st.integers(-30, 20))).clamp(-1e30, 1e30).float()


@given(trainings(), gradients(), st.sampled_from([0.0, 1e-3, 1.0, 1e6]))
def test_no_gradients_lead_beyond_the_bound(train: Train, given: torch.Tensor, size: float) -> None:
    start = size * torch.linspace(-1, 1, SIZE)
    most = bound(train, len(given), norm(start), train.rounds // 3)
    assert most < inf
    if most < 1e38:  # beyond, float32 values end
        assert norm(walked(train, given, start, train.rounds // 3)) <= most


def test_the_bound_is_reached() -> None:
    """A bound that nothing comes near would let outsized updates in."""
    steady = torch.ones(8, SIZE)
    for train in (Train(lr=0.1), Train(lr=0.1, optimizer="sgd", clip=2.0)):
        assert norm(walked(train, steady, torch.zeros(SIZE))) >= 0.9 * bound(train, 8, 0.0)


@pytest.mark.parametrize("beta2", [0.85, 0.95, 0.999])
def test_the_worst_gradients_for_adamw(beta2: float) -> None:
    """Where Cauchy and Schwarz hold with equality: gradients that grow by β1 / β2 into the past."""
    steps = 20
    given = ((0.9 / beta2) ** torch.arange(steps - 1, -1, -1.0))[:, None].expand(-1, SIZE)
    train, start = Train(lr=1.0, beta2=beta2, schedule="constant", clip=None), torch.zeros(SIZE)
    last = walked(train, given, start) - walked(train, given[:-1], start)
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
    assert bound(train, 5, 3.0) == TIMES * 3.0 + sqrt(SIZE)


def test_a_rule_that_corrects_clipped_gradients_is_not_bounded_by_the_clip() -> None:
    train, start = Train(optimizer="sgd", batch_size=1), Params(LAYOUT, torch.ones(LAYOUT.size))
    free, held = (
        UpdateBounds(algorithm, start, train, 0, profiles(), lambda client: None)
        for algorithm in (make("fedavg", 5), with_rule(make("fedavg", 5), proximal(100.0)))
    )
    assert held.of(4).most == TIMES * norm(start.flat) + sqrt(LAYOUT.size)
    assert free.of(4).most < held.of(4).most / 100


def test_bounds_are_those_of_the_part_that_a_client_reports() -> None:
    algorithm, params = make("fedavg", 3), Params(LAYOUT, torch.ones(LAYOUT.size))
    own = Part.of(LAYOUT.mask(lambda name: name.endswith("lora_a")))
    expected = UpdateBounds(algorithm, params, Train(), 0, profiles(), lambda client: own if client else None)
    actual = [expected.of(client) for client in range(3)]
    assert [one.examples for one in actual] == [1, 2, 3]
    assert [one.up for one in actual] == [Part.whole(LAYOUT.size), own, own]
    for one, values in zip(actual, (LAYOUT.size, 4, 4), strict=True):  # of 12 values the 4 of llm/…lora_a
        assert (one.most, one.usual) == pytest.approx(delta_bound(Train(), 0, 1, 1.0, values, sqrt(values)))
