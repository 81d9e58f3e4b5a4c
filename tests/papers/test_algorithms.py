"""Two clients worked out by hand from each paper's equations."""

from math import sqrt

import pytest
import torch

from fedloom.algorithms import make
from fedloom.algorithms.fedprox import proximal
from fedloom.algorithms.wrap import adaptive
from fedloom.params import Layout, Params
from fedloom.types import Broadcast, ClientUpdate

LAYOUT = Layout.of({"x": (1,)})


def one(value):
    return Params(LAYOUT, torch.tensor([float(value)]))


def run(algorithm, rounds, weights=(1.0, 1.0), extras=({}, {}), start=0.0):
    """Apply rounds of two deltas each; return the parameter after every round."""
    state, path = algorithm.init(one(start)), []
    for deltas in rounds:
        rows = zip(deltas, weights, extras, strict=True)
        state, _ = algorithm.apply(state, [ClientUpdate(k, one(d), w, e) for k, (d, w, e) in enumerate(rows)])
        path.append(state.params.flat.item())
    return path


def test_fedavg():
    # One example pulls by 1, three pull by 5: (1·1 + 3·5) / 4 = 4.
    assert run(make("fedavg", 2), [(1, 5)], (1, 3), start=1) == [5.0]
    assert run(make("fedavg", 2, {"lr": 0.5}), [(1, 5)], (1, 3), start=1) == [3.0]
    assert run(make("fedavg", 2, {"uniform": True}), [(1, 5)], (1, 3), start=1) == [4.0]


def test_fedprox():
    # ∇[f + (0.5/2)(w − 1)²] at w = 3 with f' = 2: 2 + 0.5 · 2.
    rule = make("fedprox", 2, {"mu": 0.5}).local
    grads, carry = rule.correct(torch.tensor([2.0]), torch.tensor([3.0]), rule.begin(Broadcast(one(1)), {}))
    assert grads.item() == 3.0
    assert rule.finish(carry, 1) == ({}, {})
    assert run(make("fedprox", 2), [(1, 5)], (1, 3)) == [4.0]


def test_fedavgm():
    # v: 4, then 0.5·4 + 2 = 4, then 0.5·4 + 0 = 2.
    rounds = [(2, 6), (1, 3), (-1, 1)]
    assert run(make("fedavgm", 2, {"momentum": 0.5}), rounds) == [4.0, 8.0, 10.0]
    assert run(make("fedavgm", 2, {"momentum": 0.5, "lr": 0.5}), rounds) == [2.0, 4.0, 5.0]


def test_fedavgm_as_published():
    # v: 4, then 0.5·4 + 0.5·2 = 3, then 0.5·3 + 0 = 1.5.
    algorithm = make("fedavgm", 2, {"momentum": 0.5, "published": True})
    assert run(algorithm, [(2, 6), (1, 3), (-1, 1)]) == [4.0, 7.0, 8.5]


def test_fedadagrad():
    # v: 3² + 4² = 5², then 5² + 12² = 13²; steps 4 / (5 + 3) and 12 / (13 + 3).
    algorithm = make("fedadagrad", 2, {"lr": 1.0, "tau": 3.0})
    assert run(algorithm, [(2, 6), (10, 14)]) == pytest.approx([0.5, 1.25])


def test_fedadam():
    # m: 3.5, 2.25; v: 0.5·1 + 0.5·49 = 25, 0.5·25 + 0.5·1 = 13.
    algorithm = make("fedadam", 2, {"lr": 1.0, "tau": 1.0, "beta1": 0.5, "beta2": 0.5})
    first, second = 3.5 / (5 + 1), 2.25 / (sqrt(13) + 1)
    assert run(algorithm, [(6, 8), (0, 2)]) == pytest.approx([first, first + second])


def test_fedadam_as_published():
    # The mean ignores sizes, and m starts as the whole first delta: 7, then 0.5·7 + 0.5·1 = 4.
    algorithm = make("fedadam", 2, {"lr": 1.0, "tau": 1.0, "beta1": 0.5, "beta2": 0.5, "published": True})
    first, second = 7 / (5 + 1), 4 / (sqrt(13) + 1)
    assert run(algorithm, [(6, 8), (0, 2)], (1, 3)) == pytest.approx([first, first + second])


def test_fedyogi():
    # Δ² = 4 > v = 1, so v = 1 + 0.5·4 = 3; then Δ² = 1 < 3, so v = 3 − 0.5·1 = 2.5. m: 1, 1.
    algorithm = make("fedyogi", 2, {"lr": 1.0, "tau": 1.0, "beta1": 0.5, "beta2": 0.5})
    first, second = 1 / (sqrt(3) + 1), 1 / (sqrt(2.5) + 1)
    assert run(algorithm, [(1, 3), (0, 2)]) == pytest.approx([first, first + second])


def test_scaffold():
    # Two of four clients. Client 0 sees gradients 1 and 3, client 1 sees 5; local step 0.5.
    algorithm, paths, step = make("scaffold", 4), [(1.0, 3.0), (5.0,)], 0.5
    state = algorithm.init(one(0))

    def work(memories):
        sent, updates, kept = algorithm.broadcast(state), [], []
        for k, (path, memory) in enumerate(zip(paths, memories, strict=True)):
            local, carry = sent.params.flat, algorithm.local.begin(sent, memory)
            for grad in path:
                grads, carry = algorithm.local.correct(torch.tensor([grad]), local, carry)
                local = local - step * grads
            extras, memory = algorithm.local.finish(carry, len(path))
            updates.append(ClientUpdate(k, one((local - sent.params.flat).item()), 1.0 + k, extras))
            kept.append(memory)
        return updates, kept

    # Variates are zero: Δ = −2 and −2.5, c₀ = 2, c₁ = 5, c = (2/4) · (2 + 5)/2.
    updates, memories = work([{}, {}])
    state, _ = algorithm.apply(state, updates)
    assert [memory["control"].item() for memory in memories] == [2.0, 5.0]
    assert state.params.flat.item() == -2.25
    assert state.slots["control"].item() == 1.75
    # Corrected gradients: 1 − 2 + 1.75, 3 − 2 + 1.75 and 5 − 5 + 1.75; own gradients are as before.
    updates, memories = work(memories)
    assert [update.delta.flat.item() for update in updates] == [-0.5 * 3.5, -0.5 * 1.75]
    assert [update.extras["control"].item() for update in updates] == [0.0, 0.0]
    state, _ = algorithm.apply(state, updates)
    assert state.slots["control"].item() == 1.75


def test_fednova():
    # p = ¼, ¾; τ = 1, 3; τ_eff = 2.5; 2.5 · (¼ · 2/1 + ¾ · 12/3) = 8.75, where FedAvg gives 9.5.
    algorithm = make("fednova", 2)
    extras = [
        algorithm.local.finish(algorithm.local.begin(Broadcast(one(0)), {}), steps)[0] for steps in (1, 3)
    ]
    assert run(algorithm, [(2, 12)], (1, 3), extras) == [8.75]
    state = algorithm.init(one(0))
    with pytest.raises(ValueError, match="at least one"):
        algorithm.apply(state, [ClientUpdate(0, one(1), 1.0, {"steps": torch.tensor(0.0)})])


LAYERS = Layout.of(
    {
        **{f"llm/model.layers.{layer}.self_attn.q_proj:lora_{f}": (2,) for layer in range(6) for f in "ab"},
        "connector/linear": (3,),
        "encoder/layers.3.q_proj:lora_a": (2,),
        "llm/lm_head": (2,),
    }
)


@pytest.mark.parametrize(("skip", "middle"), [(0, range(6)), (1, range(1, 5)), (2, range(2, 4))])
def test_adaptive_regulariser_is_the_gradient_of_its_penalty(skip, middle):
    mu, weight = 0.3, 0.5
    generator = torch.Generator().manual_seed(0)
    start = Params(LAYERS, torch.randn(LAYERS.size, generator=generator))
    values = torch.randn(LAYERS.size, generator=generator, requires_grad=True)
    local = Params(LAYERS, values)
    held = [
        name for name in LAYERS.names if name.startswith("llm/") and any(f".{n}." in name for n in middle)
    ]
    penalty = sum(mu / 2 * weight * (local[name] - start[name]).square().sum() for name in held)
    (expected,) = torch.autograd.grad(penalty, values)

    rule = adaptive(LAYERS, mu=mu, weight=weight, skip=skip)
    carry = rule.begin(Broadcast(start), {})
    found, _ = rule.correct(torch.zeros(LAYERS.size), values.detach(), carry)
    torch.testing.assert_close(found, expected)
    assert found.count_nonzero() == 4 * len(middle)


def test_adaptive_regulariser_on_all_layers_is_fedprox_on_them():
    layout = Layout.of({"llm/layers.0.q:lora_a": (2,), "llm/layers.1.q:lora_a": (2,)})
    sent, grads, params = Broadcast(Params.zeros(layout)), torch.ones(4), torch.arange(4.0)
    rules = adaptive(layout, mu=0.2, weight=1.0, skip=0), proximal(0.2)
    found, expected = (rule.correct(grads, params, rule.begin(sent, {}))[0] for rule in rules)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("skip", [3, 4, 100, -1])
def test_adaptive_regulariser_refuses_to_hold_nothing(skip):
    with pytest.raises(ValueError, match=f"skip is {skip}"):
        adaptive(LAYERS, skip=skip)
    with pytest.raises(ValueError, match="none of the language model's 0"):
        adaptive(Layout.of({"encoder/layers.0.q:lora_a": (2,), "connector/w": (1,)}), skip=0)
