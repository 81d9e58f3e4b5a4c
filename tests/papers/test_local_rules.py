"""Rules with a gradient of their own and second passes, against values that were worked out by hand from their papers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.clients import (
    LAYOUT,
    TRAIN,
    Corrupted,
    Plain,
    Quadratic,
    named,
    run_of,
    same,
    site_of,
    start_of,
    trained,
)

from fedloom.algorithms.algorithm import ServerState
from fedloom.algorithms.compose import make
from fedloom.algorithms.fedkseed import direction, replay
from fedloom.algorithms.local_rule import LocalRule
from fedloom.client.site import OWN
from fedloom.engine.rounds import run_rounds
from fedloom.params import Params, Part
from fedloom.system.errors import UserError
from fedloom.types import Broadcast
from fedloom.wire.messages import Assignment, Update

SGD = TRAIN.model_copy(update={"optimizer": "sgd", "clip": None, "weight_decay": 0.0})


def sent(*values: float, **extras: torch.Tensor) -> Broadcast:
    return Broadcast(Params.of({"x": torch.tensor(values)}), extras)


def ones(count: int = 1) -> torch.Tensor:
    return torch.ones(count)


@pytest.mark.parametrize(("inner", "rate"), [(1, 0.5), (200, 0.1)])
def test_pfedme_by_hand(inner: int, rate: float) -> None:
    """F = (θ − 1)² / 2, w = 0, λ = 1: θ = 0.5, and with η = 0.1 w becomes 0.05."""
    rule: LocalRule = make("pfedme", 1, {"lam": 1.0, "inner": inner, "rate": rate})
    assert rule.gradient is not None
    assert rule.own is not None
    loss, grads, carry = rule.gradient(Quadratic(1.0, ones()), torch.zeros(1), rule.begin(sent(0.0), {}))
    assert float(loss) == 0.5
    assert (-0.1 * grads).tolist() == pytest.approx([0.05])
    assert rule.own(-0.1 * grads, carry).tolist() == pytest.approx([0.5])


def test_pfedme_moves_nothing_that_is_not_trained() -> None:
    rule: LocalRule = make("pfedme", 1)
    assert rule.gradient is not None
    probe = Quadratic(1.0, torch.tensor([1.0, 0.0]))
    _, grads, carry = rule.gradient(probe, torch.zeros(2), rule.begin(sent(0.0, 0.0), {}))
    assert (grads[1], carry["own"][1]) == (0.0, 0.0)
    assert grads[0] < 0 < carry["own"][0]


def test_ditto_by_hand() -> None:
    """v = 0, w = 0.2, F = (v − 1)² / 2, λ = 1, η = 0.1: v becomes 0.12, beside a shared model that knows nothing of it."""
    site = site_of(named("fedavg+ditto", arguments={"ditto": {"lam": 1.0, "epochs": 1}}), SGD)
    site.memory.write(("m", 1, 0), {OWN: torch.zeros(LAYOUT.size)}, ())
    w = Params(LAYOUT, torch.full((LAYOUT.size,), 0.2))
    job = site.job(Assignment("m", 0, 1, 1, w, since=0))
    job = replace(job, conversations=job.conversations[:1])  # one step
    assert job.second is not None
    end = trained(replace(job, second=replace(job.second, conversations=job.conversations)))
    assert end.own is not None
    torch.testing.assert_close(end.own, torch.full((LAYOUT.size,), 0.12))
    torch.testing.assert_close(end.end, torch.full((LAYOUT.size,), 0.28))
    assert torch.equal(end.end, trained(replace(job, second=None)).end)


def test_sam_by_hand() -> None:
    """F = ½‖w‖² at w = (3, 4), ρ = 0.5: g / ‖g‖ = (0.6, 0.8), so the worst point nearby is (3.3, 4.4)."""
    rule: LocalRule = make("sam", 1, {"rho": 0.5})
    assert rule.gradient is not None
    loss, grads, _ = rule.gradient(Quadratic(0.0, ones(2)), torch.tensor([3.0, 4.0]), {})
    assert float(loss) == 12.5
    assert grads.tolist() == pytest.approx([3.3, 4.4])
    assert not rule.gradient(Quadratic(0.0, ones(2)), torch.zeros(2), {})[1].any()


@dataclass(frozen=True)
class Two(Quadratic):
    """A probe of two examples with gradients (3, 4) and (0.3, 0.4)."""

    examples: int = 2

    def per_example(self, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [0.3, 0.4]])


def test_dp_sgd_clips_each_example_by_hand() -> None:
    rule: LocalRule = make("dp-sgd", 1, {"noise": 0.0, "bound": 1.0})
    assert rule.gradient is not None
    loss, grads, _ = rule.gradient(Two(0.0, ones(2)), torch.zeros(2), {})
    assert float(loss) == 1.5
    assert grads.tolist() == pytest.approx([(0.6 + 0.3) / 2, (0.8 + 0.4) / 2])


def test_dp_sgds_noise_has_the_standard_deviation_that_it_says() -> None:
    """σ C / B = 3 · 0.5 / 4; the standard error of the estimate from a million values is 0.07 %."""
    rule: LocalRule = make("dp-sgd", 1, {"noise": 3.0, "bound": 0.5})
    assert rule.gradient is not None
    params = torch.zeros(10**6)
    probe = Quadratic(0.0, torch.ones_like(params), examples=4)
    _, grads, _ = rule.gradient(probe, params, {})
    assert float(grads.std()) == pytest.approx(3 * 0.5 / 4, rel=0.005)
    assert float(grads.mean()) == pytest.approx(0.0, abs=0.002)
    assert torch.equal(rule.gradient(probe, params, {})[1], grads)


# FedKSeed -------------------------------------------------------------------------------------------


def test_fedkseeds_estimate_is_the_slope_along_its_direction() -> None:
    """On a quadratic the two-point estimate is exact: g = ∇F · z."""
    algorithm = make("fedkseed", 1, {"seeds": 1, "eps": 0.01})
    rule: LocalRule = algorithm.local
    assert rule.gradient is not None
    z, params = direction(0, 0, 2), torch.tensor([3.0, -1.0])
    broadcast = algorithm.broadcast(algorithm.init(Params.of({"x": params})))
    probe = Quadratic(1.0, ones(2), rate=0.1)
    _, grads, carry = rule.gradient(probe, params, rule.begin(broadcast, {}))
    slope = float((params - 1) @ z)
    torch.testing.assert_close(grads, slope * z, rtol=1e-3, atol=0)
    for factor in (1.0, 0.25):  # what clipping leaves is what counts
        _, later = rule.correct(factor * grads, params, carry)
        extras, memory = rule.finish(later, 1)
        assert extras["sums"].tolist() == pytest.approx([0.1 * factor * slope], rel=1e-3)
        assert memory == {}


def test_sums_of_clients_with_the_same_seed_add() -> None:
    """x = x₀ − (¾ · 2 + ¼ · 4) z after the first round, and the second one goes on from there."""
    algorithm = make("fedkseed", 2, {"seeds": 2})
    start = Params.of({"x": torch.tensor([1.0, 2.0, 3.0])})
    nothing = Params.zeros(start.layout)
    state = algorithm.init(start)
    for round in range(2):
        updates = [
            Update(0, nothing, 3.0, {"sums": torch.tensor([0.0, 2.0])}),
            Update(1, nothing, 1.0, {"sums": torch.tensor([0.0, 4.0])}),
        ]
        state, _ = algorithm.apply(state, updates)
        expected = start.flat - (round + 1) * 2.5 * direction(0, 1, 3)
        torch.testing.assert_close(state.params.flat, expected)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_replay_ends_where_the_client_ends(schedule: str, clip: float | None) -> None:
    """Whatever the learning rate of each step and what clipping leaves of it."""
    settings = SGD.model_copy(update={"local_schedule": schedule, "clip": clip, "epochs": 3, "lr": 0.01})
    algorithm = named("fedkseed", arguments={"fedkseed": {"seeds": 4}})
    site = site_of(algorithm, settings)
    state = algorithm.init(start_of())
    for round in range(2):
        broadcast, nothing = algorithm.broadcast(state), Part(LAYOUT.size, ())
        blank = Params.zeros(LAYOUT)  # the site rebuilds the parameters without them
        asked = Assignment("m", 0, round, 4, blank, broadcast.extras, down=nothing, up=nothing)
        job = site.job(asked)
        assert torch.equal(job.start.flat, broadcast.params.flat)  # the server's, bit for bit
        end = trained(job)
        update = site.update(job, end)
        assert not update.delta.flat.any()
        assert update.metrics["norm"] == pytest.approx(float((end.end - broadcast.params.flat).norm()))
        assert update.extras["sums"].count_nonzero() > 1
        rebuilt = replay(job.start.flat, update.extras["sums"], 0)
        torch.testing.assert_close(rebuilt, end.end, rtol=1e-5, atol=1e-5)
        state, _ = algorithm.apply(state, [update])
        torch.testing.assert_close(state.params.flat, end.end, rtol=1e-5, atol=1e-5)
        assert torch.equal(state.params.flat, replay(start_of().flat, state.slots["sums"], 0))


def test_fedkseed_learns_what_clients_hold() -> None:
    """The mean loss of clients that pull toward their numbers falls from round to round."""
    settings = SGD.model_copy(update={"rounds": 4, "lr": 0.02, "clip": 1.0, "epochs": 2})
    algorithm = named("fedkseed", arguments={"fedkseed": {"seeds": 32}})
    losses: list[float] = []
    run = run_of(
        "fedkseed",
        train=settings,
        algorithm=algorithm,
        after_round=lambda now, log: losses.append(log["loss"]),
    )
    end = run_rounds([run], Plain(site_of(algorithm, settings)))[0]
    assert losses == sorted(losses, reverse=True)
    assert torch.equal(end.state.params.flat, replay(start_of().flat, end.state.slots["sums"], 0))


@pytest.mark.parametrize("factor", [1e6, float("nan")])
def test_sums_that_no_honest_client_has_are_refused(factor: float) -> None:
    """Gradients are clipped to 1, so a client's steps bound its sums; the round is that without the client."""
    settings = SGD.model_copy(update={"clip": 1.0})
    algorithm, logs = named("fedkseed"), list[dict[str, Any]]()

    def wild(update: Update) -> Update:
        return replace(update, extras={"sums": update.extras["sums"] * factor})

    def missing(update: Update) -> None:
        return None

    run = run_of("fedkseed", train=settings, after_round=lambda now, log: logs.append(log))
    result, without = (
        run_rounds([run], Corrupted(site_of(algorithm, settings), {3: bad}))[0] for bad in (wild, missing)
    )
    assert [[row["client"] for row in log["refused"]] for log in logs[:3]] == [[3]] * 3
    assert same(result, without)


def test_fedkseeds_server_gives_the_same_bits_in_any_order_and_after_a_restart() -> None:
    algorithm, start = make("fedkseed", 3, {"seeds": 5}), start_of()

    def cohort(round: int) -> list[Update]:
        draws = torch.randn(3, 5, generator=torch.Generator().manual_seed(round))
        return [Update(k, Params.zeros(LAYOUT), 1.0 + k, {"sums": row}) for k, row in enumerate(draws)]

    state = algorithm.init(start)
    given = {name: value.clone() for name, value in state.slots.items()}
    first, figures = algorithm.apply(state, cohort(0))
    turned, other = algorithm.apply(state, cohort(0)[::-1])
    assert torch.equal(first.params.flat, turned.params.flat)
    assert figures == other
    assert all(torch.equal(value, state.slots[name]) for name, value in given.items())
    assert torch.equal(start.flat, start_of().flat)
    resumed = ServerState(
        first.params.with_flat(first.params.flat.clone()),
        first.round,
        {name: value.clone() for name, value in first.slots.items()},
    )
    on, again = (algorithm.apply(one, cohort(1))[0].params.flat for one in (first, resumed))
    assert torch.equal(on, again)
    with pytest.raises(ValueError, match=r"client 0 .*'sums'"):
        algorithm.apply(state, [Update(0, Params.zeros(LAYOUT), 1.0)])


def test_fedkseeds_messages_are_as_long_for_a_million_values_as_for_one() -> None:
    def lengths(size: int, seeds: int) -> tuple[int, int]:
        algorithm = make("fedkseed", 1, {"seeds": seeds})
        params, nothing = Params.of({"x": torch.zeros(size)}), Part(size, ())
        sums = algorithm.broadcast(algorithm.init(params)).extras
        asked = Assignment("fedkseed", 0, 0, 0, params, sums, down=nothing, up=nothing)
        update = Update(0, Params.zeros(params.layout), 1.0, {"sums": torch.ones(seeds)}, up=nothing)
        for message in (asked, update):
            assert message.length == len(message.to_bytes())
        back = Update.from_bytes(update.to_bytes(), params.layout)
        assert torch.equal(back.extras["sums"], update.extras["sums"])
        assert back.up == nothing
        return asked.length, update.length

    assert lengths(1, 64) == lengths(10**6, 64)
    (down, up), (twice_down, twice_up) = lengths(1000, 100), lengths(1000, 200)
    assert (twice_down - down, twice_up - up) == (400, 400)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sam", {"rho": -1.0}, "rho is -1.0"),
        ("dp-sgd", {"noise": -1.0}, "noise is -1.0"),
        ("dp-sgd", {"bound": 0.0}, "bound is 0.0"),
        ("pfedme", {"lam": -1.0}, "lam is -1.0"),
        ("pfedme", {"inner": 0}, "inner is 0"),
        ("pfedme", {"rate": 0.0}, "rate is 0.0"),
        ("ditto", {"lam": -1.0}, "lam is -1.0"),
        ("ditto", {"epochs": -1}, "epochs is -1"),
        ("ditto", {"rate": 0.0}, "rate is 0.0"),
        ("fedkseed", {"seeds": 0}, "seeds is 0"),
        ("fedkseed", {"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=f"algorithms.{name}: {message}"):
        make(name, 2, arguments)
