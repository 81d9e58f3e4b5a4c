"""Two clients worked out by hand from each paper's equations."""

from dataclasses import replace
from functools import partial
from math import sqrt

import pytest
import torch
from tests.clients import EXCHANGING, TRAIN, held, site_of, train_without_model

from fedloom.algorithms.adaptive_regularizer import adaptive
from fedloom.algorithms.algorithm import with_rule
from fedloom.algorithms.compose import make
from fedloom.algorithms.fedprox import proximal
from fedloom.params import Layout, Params
from fedloom.types import Broadcast
from fedloom.wire.messages import Assignment, Update

LAYOUT = Layout.of({"x": (1,)})


def one(value):
    return Params(LAYOUT, torch.tensor([float(value)]))


def run(algorithm, rounds, weights=(1.0, 1.0), extras=({}, {}), start=0.0):
    """Apply rounds of two deltas each; return the parameter after every round."""
    state, path = algorithm.init(one(start)), []
    for deltas in rounds:
        rows = zip(deltas, weights, extras, strict=True)
        state, _ = algorithm.apply(state, [Update(k, one(d), w, e) for k, (d, w, e) in enumerate(rows)])
        path.append(state.params.flat.item())
    return path


def test_fedavg():
    # One example pulls by 1, three pull by 5: (1·1 + 3·5) / 4 = 4.
    assert run(make("fedavg", 2), [(1, 5)], (1, 3), start=1) == [5.0]
    assert run(make("fedavg", 2, {"lr": 0.5}), [(1, 5)], (1, 3), start=1) == [3.0]
    assert run(make("fedavg", 2, {"uniform": True}), [(1, 5)], (1, 3), start=1) == [4.0]


def test_fedavg_as_published():
    # Tensor a, the first, becomes the average; b becomes its old value plus the average.
    layout = Layout.of({"a": (1,), "b": (2,)})
    state = make("fedavg", 2, {"published": True}).init(Params(layout, torch.tensor([1.0, 1.0, 2.0])))
    for expected in ([5.0, 6.0, 10.0], [9.0, 16.0, 26.0]):
        deltas = ([1.0, 1.0, 3.0], [5.0, 5.0, 7.0])  # the mean is 4, 4, 6
        updates = [
            Update(k, Params(layout, torch.tensor(delta)), w)
            for k, (delta, w) in enumerate(zip(deltas, (1.0, 3.0), strict=True))
        ]
        plain, _ = make("fedavg", 2).apply(state, updates)
        state, _ = make("fedprox", 2, {"published": True}).apply(state, updates)
        assert state.params.flat.tolist() == expected
        assert state.params["a"].item() == plain.params["a"].item()
    assert make("fedavg", 2, {"published": True}).local == make("fedavg", 2).local


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


def test_fedadagrad_as_published():
    # The mean ignores sizes: 4 and 12 whoever is the larger; otherwise as the paper has it.
    algorithm = make("fedadagrad", 2, {"lr": 1.0, "tau": 3.0, "published": True})
    assert run(algorithm, [(2, 6), (10, 14)], (1, 3)) == pytest.approx([0.5, 1.25])


def test_fedadam():
    # m: 3.5, 2.25; v: 0.5·1 + 0.5·49 = 25, 0.5·25 + 0.5·1 = 13.
    algorithm = make("fedadam", 2, {"lr": 1.0, "tau": 1.0, "beta1": 0.5, "beta2": 0.5})
    first, second = 3.5 / (5 + 1), 2.25 / (sqrt(13) + 1)
    assert run(algorithm, [(6, 8), (0, 2)]) == pytest.approx([first, first + second])


def test_fedadam_as_published():
    # The mean ignores sizes, and m starts as the whole first delta: 7, then 0.5·7 + 0.5·1 = 4.
    # v follows m²: 0.5·1 + 0.5·49 = 25, then 0.5·25 + 0.5·16 = 20.5.
    algorithm = make("fedadam", 2, {"lr": 1.0, "tau": 1.0, "beta1": 0.5, "beta2": 0.5, "published": True})
    first, second = 7 / (5 + 1), 4 / (sqrt(20.5) + 1)
    assert run(algorithm, [(6, 8), (0, 2)], (1, 3)) == pytest.approx([first, first + second])


def test_fedyogi():
    # Δ² = 4 > v = 1, so v = 1 + 0.5·4 = 3; then Δ² = 1 < 3, so v = 3 − 0.5·1 = 2.5. m: 1, 1.
    algorithm = make("fedyogi", 2, {"lr": 1.0, "tau": 1.0, "beta1": 0.5, "beta2": 0.5})
    first, second = 1 / (sqrt(3) + 1), 1 / (sqrt(2.5) + 1)
    assert run(algorithm, [(1, 3), (0, 2)]) == pytest.approx([first, first + second])


def test_fedyogi_as_published():
    # m: 2, then 0.5·2 + 0.5·1 = 1.5. v follows m²: 4 > 1, so 1 + 0.5·4 = 3; 2.25 < 3, so 3 − 0.5·2.25.
    algorithm = make("fedyogi", 2, {"lr": 1.0, "tau": 1.0, "beta1": 0.5, "beta2": 0.5, "published": True})
    first, second = 2 / (sqrt(3) + 1), 1.5 / (sqrt(1.875) + 1)
    assert run(algorithm, [(1, 3), (0, 2)], (1, 3)) == pytest.approx([first, first + second])


def test_scaffold():
    # Two of four clients. Client 0 sees gradients 1 and 3, client 1 sees 5; local step 0.5.
    algorithm, paths = make("scaffold", 4), [(1.0, 3.0), (5.0,)]
    state = algorithm.init(one(0))
    settings = TRAIN.model_copy(update={"optimizer": "sgd", "lr": 0.5, "clip": None})
    site = site_of(algorithm, settings, layout=LAYOUT)

    def along(path, job, probe, params, carry):
        return torch.zeros(()), torch.tensor([next(path)]), carry

    def work(number):
        sent, updates = algorithm.broadcast(state), []
        for k, path in enumerate(paths):
            job = site.job(Assignment("m", 0, number, k, sent.params, sent.extras, number - 1))
            job = replace(job, conversations=held(len(path) - 1))
            end = train_without_model(job, partial(along, iter(path)))
            updates.append(replace(site.update(job, end), weight=1.0 + k))
        memories = [site.memory.read(("m", k, number)) for k in range(len(paths))]
        return updates, [memory["rule/control"].item() for memory in memories]

    # Variates are zero: Δ = −2 and −2.5, c₀ = 2, c₁ = 5, c = (2/4) · (2 + 5)/2.
    updates, memories = work(0)
    state, _ = algorithm.apply(state, updates)
    assert memories == [2.0, 5.0]
    assert state.params.flat.item() == -2.25
    assert state.slots["control"].item() == 1.75
    # Corrected gradients: 1 − 2 + 1.75, 3 − 2 + 1.75 and 5 − 5 + 1.75; own gradients are as before.
    updates, _ = work(1)
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
        algorithm.apply(state, [Update(0, one(1), 1.0, {"steps": torch.tensor(0.0)})])


FACTORS = Layout.of(
    {
        "llm/q:lora_a": (1, 2),
        "llm/q:lora_b": (2, 1),
        "llm/v:lora_a": (1, 2),
        "llm/v:lora_b": (3, 1),
        "w": (1,),
    }
)


def factors(q_a, q_b, v_a, v_b, w):
    return Params(FACTORS, torch.tensor([*q_a, *q_b, *v_a, *v_b, w]))


def test_yoco_at_the_server():
    # A of q: two clients go the same way, the third across it: weights ½, ½, 0, however far each goes.
    # A of v: the third goes the way of the first, the second did not move: ½, 0, ½. The rest: plain means.
    deltas = [
        factors([1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [1.0, 0.0, 0.0], 1.0),
        factors([5.0, 0.0], [0.0, 6.0], [0.0, 0.0], [1.0, 3.0, 0.0], 1.0),
        factors([0.0, 7.0], [0.0, 0.0], [0.0, 4.0], [1.0, 0.0, 6.0], 4.0),
    ]
    algorithm = make("yoco", 3)
    updates = [Update(k, delta, 10.0 ** (2 - k)) for k, delta in enumerate(deltas)]
    state, _ = algorithm.apply(algorithm.init(Params.zeros(FACTORS)), updates)
    expected = factors([3.0, 0.0], [1.0, 2.0], [0.0, 3.0], [1.0, 1.0, 2.0], 2.0)
    torch.testing.assert_close(state.params.flat, expected.flat)
    # By size as well, weights of q are in proportion 100 : 10 and of v 100 : 1.
    state, _ = make("yoco", 3, {"uniform": False}).apply(algorithm.init(Params.zeros(FACTORS)), updates)
    assert state.params["llm/q:lora_a"].tolist() == [pytest.approx([150 / 110, 0.0])]
    assert state.params["llm/v:lora_a"].tolist() == [pytest.approx([0.0, 204 / 101])]


def test_two_clients_of_yoco_weigh_the_same():
    # Two directions always lie symmetrically about their principal axis: of two clients, A is averaged too.
    delta = [
        factors([1.0, 3.0], [1.0, 1.0], [-2.0, 1.0], [0.0] * 3, 0.0),
        factors(*[[4.0, -1.0]] * 3, [0.0] * 3, 0.0),
    ]
    algorithm, mean = make("yoco", 2), make("fedmean", 2)
    updates = [Update(k, each, 1.0 + k) for k, each in enumerate(delta)]
    start = Params.zeros(FACTORS)
    actual, expected = (each.apply(each.init(start), updates)[0].params.flat for each in (algorithm, mean))
    torch.testing.assert_close(actual, expected)


def test_yocos_local_rule_is_the_gradient_of_its_penalties():
    sign, sparse, sharpness = 0.7, 0.3, 2.0
    start = factors([1.0, -1.0], [0.5, -0.2], [0.1, 0.4], [1.0, -2.0, 0.3], 5.0)
    values = torch.tensor([0.3, -2.0, 0.4, 0.1, -0.6, 1.0, 0.8, 0.2, -0.1, 4.0], requires_grad=True)
    local = Params(FACTORS, values)
    penalty = torch.zeros(())
    for name in ("llm/q", "llm/v"):
        signs = start[f"{name}:lora_b"].sign()
        gap = torch.tanh(sharpness * local[f"{name}:lora_b"]) - signs
        penalty = penalty + sign * gap.norm() / signs.norm() + sparse * local[f"{name}:lora_a"].abs().sum()
    (expected,) = torch.autograd.grad(penalty, values)

    rule = make("yoco", 2, {"sign": sign, "sparse": sparse, "sharpness": sharpness}).local
    actual, _ = rule.correct(torch.zeros(10), values.detach(), rule.begin(Broadcast(start), {}))
    torch.testing.assert_close(actual, expected)
    # Values of B that crossed zero are pushed back, and one that kept its sign further out.
    assert [actual[place].sign().item() for place in (2, 3, 6)] == [-1.0, 1.0, -1.0]


def test_yoco_has_no_sign_to_keep_where_b_starts_at_zero():
    rule = make("yoco", 2, {"sparse": 0.0}).local
    values = torch.arange(10.0)
    carry = rule.begin(Broadcast(Params.zeros(FACTORS)), {})
    assert not rule.correct(torch.zeros(10), values, carry)[0].any()


LAYERS = Layout.of(
    {
        **{f"llm/model.layers.{layer}.self_attn.q_proj:lora_{f}": (2,) for layer in range(6) for f in "ab"},
        "connector/linear": (3,),
        "connector/layers.2.linear": (3,),
        "llm/model.embed_tokens": (2,),
        "encoder/layers.3.q_proj:lora_a": (2,),
        "llm/lm_head": (2,),
    }
)


@pytest.mark.parametrize(("skip", "middle"), [(0, range(6)), (1, range(1, 5)), (2, range(2, 4))])
def test_adaptive_regularizer_is_the_gradient_of_its_penalty(skip, middle):
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
    actual, _ = rule.correct(torch.zeros(LAYERS.size), values.detach(), carry)
    torch.testing.assert_close(actual, expected)
    assert actual.count_nonzero() == 4 * len(middle)


def test_adaptive_regularizer_on_all_layers_is_fedprox_on_them():
    layout = Layout.of({"llm/layers.0.q:lora_a": (2,), "llm/layers.1.q:lora_a": (2,)})
    sent, grads, params = Broadcast(Params.zeros(layout)), torch.ones(4), torch.arange(4.0)
    rules = adaptive(layout, mu=0.2, weight=1.0, skip=0), proximal(0.2)
    actual, expected = (rule.correct(grads, params, rule.begin(sent, {}))[0] for rule in rules)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("optimizer", EXCHANGING)
def test_adaptive_regularizer_composes_with_every_algorithm(optimizer):
    layout = Layout.of({f"llm/layers.{layer}.q:lora_a": (2,) for layer in range(3)})
    rule = adaptive(layout, mu=0.5, weight=0.5, skip=1)
    plain = make(optimizer, 2)
    added = with_rule(plain, rule)
    sent = plain.broadcast(plain.init(Params.zeros(layout)))
    local = torch.full((6,), 3.0)
    alone, _ = plain.local.correct(torch.ones(6), local, plain.local.begin(sent, {}))
    result, _ = added.local.correct(torch.ones(6), local, added.local.begin(sent, {}))
    assert (result - alone).tolist() == pytest.approx([0, 0, 0.75, 0.75, 0, 0])
    assert added._replace(local=plain.local) == plain


@pytest.mark.parametrize(
    ("layers", "skip", "middle", "published"),
    [
        (28, 4, range(4, 24), range(4, 24)),
        (32, 4, range(4, 28), range(4, 24)),
        (32, 0, range(32), range(28)),
        (4, 1, range(1, 3), range(1, 4)),
    ],
)
def test_adaptive_regularizer_counts_layers_where_published_code_takes_28(layers, skip, middle, published):
    layout = Layout.of({f"llm/layers.{layer}.q:lora_a": (1,) for layer in range(layers)})

    def held(**arguments):
        rule = adaptive(layout, mu=1.0, weight=1.0, skip=skip, **arguments)
        carry, local = rule.begin(Broadcast(Params.zeros(layout)), {}), torch.ones(layers)
        pull, _ = rule.correct(rule.penalize(torch.zeros(layers), local, carry)[0], local, carry)
        return {n for n in range(layers) if Params(layout, pull)[f"llm/layers.{n}.q:lora_a"].item() == 1.0}

    assert held() == set(middle)
    assert held(published=True) == set(published)


@pytest.mark.parametrize("skip", [3, 4, 100, -1])
def test_adaptive_regularizer_refuses_to_hold_nothing(skip):
    with pytest.raises(ValueError, match=f"skip is {skip}"):
        adaptive(LAYERS, skip=skip)
    with pytest.raises(ValueError, match="none of the language model's 0"):
        adaptive(Layout.of({"encoder/layers.0.q:lora_a": (2,), "connector/w": (1,)}), skip=0)
