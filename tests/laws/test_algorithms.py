"""The laws that every federated algorithm keeps, whatever its paper says."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from fedloom.algorithms import SERVERS
from fedloom.algorithms.adaptive import adaptive
from fedloom.algorithms.aggregate import mean_delta, means, ordered
from fedloom.algorithms.base import PLAIN, LocalWork, ServerState, chain, with_rule
from fedloom.algorithms.compose import configured, make
from fedloom.algorithms.fedprox import proximal
from fedloom.messages import Update
from fedloom.params import Layout, Params
from fedloom.seeds import torch_stream
from fedloom.types import Broadcast, UserError

LAYOUT = Layout.of({"llm/layers.0.q:lora_a": (2, 3), "llm/layers.0.q:lora_b": (4,), "connector/w": (1, 2)})
CLIENTS = 3
WEIGHTS = (1.0, 5.0, 2.5)
STEPS = (2, 1, 4)
CASES = {
    **{name: (name, {}) for name in SERVERS},
    "fedavg uniform": ("fedavg", {"uniform": True, "lr": 0.5}),
    "fedavgm published": ("fedavgm", {"published": True}),
    "fedadagrad published": ("fedadagrad", {"published": True}),
    "fedadam published": ("fedadam", {"published": True}),
    "fedyogi published": ("fedyogi", {"published": True}),
    "scaffold weighted": ("scaffold", {"uniform": False}),
}


@pytest.fixture(params=CASES)
def algorithm(request):
    name, arguments = CASES[request.param]
    return make(name, CLIENTS, arguments)


def random(purpose, step=-1, layout=LAYOUT):
    return torch.randn(layout.size, generator=torch_stream(0, purpose, step=step))


def update(algorithm, state, client, delta, seed=0, weight=None):
    """Let a client see random gradients and send the given delta."""
    sent, rule = algorithm.broadcast(state), algorithm.local
    carry = rule.begin(sent, {})
    for step in range(STEPS[client]):
        _, carry = rule.correct(random(f"{seed} gradient {client}", step), sent.params.flat, carry)
    extras, _ = rule.finish(carry, STEPS[client])
    return Update(client, Params(LAYOUT, delta), weight or WEIGHTS[client], extras)


def cohort(algorithm, state, seed=0):
    return [update(algorithm, state, k, random(f"{seed} delta", k), seed) for k in range(CLIENTS)]


def after(algorithm, rounds=2):
    """Return a state that has left its starting values."""
    state = algorithm.init(Params(LAYOUT, random("start")))
    for round in range(rounds):
        state, _ = algorithm.apply(state, cohort(algorithm, state, seed=round))
    return state


def tensors(state):
    return {"params": state.params.flat, **{f"slot.{name}": slot for name, slot in state.slots.items()}}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def close(left, right):
    return torch.allclose(left.params.flat, right.params.flat, rtol=1e-5, atol=1e-6)


def test_zero_deltas_leave_the_parameters_unchanged(algorithm):
    state = algorithm.init(Params(LAYOUT, random("start")))
    updates = [update(algorithm, state, client, torch.zeros(LAYOUT.size)) for client in range(CLIENTS)]
    following, _ = algorithm.apply(state, updates)
    assert torch.equal(following.params.flat, state.params.flat)


def test_arrival_order_does_not_matter(algorithm):
    state = after(algorithm)
    updates = cohort(algorithm, state, seed=7)
    expected, report = algorithm.apply(state, updates)
    for order in permutations(updates):
        found, other = algorithm.apply(state, order)
        assert_same(tensors(found), tensors(expected))
        assert other == report


def test_a_stream_is_summed_as_a_list_is(algorithm):
    state = after(algorithm)
    updates = cohort(algorithm, state, seed=7)
    expected, report = algorithm.apply(state, updates)
    found, other = algorithm.apply(state, iter(sorted(updates, key=lambda update: update.client)))
    assert_same(tensors(found), tensors(expected))
    assert other == report


def test_a_stream_out_of_order_is_refused(algorithm):
    state = after(algorithm)
    updates = sorted(cohort(algorithm, state, seed=7), key=lambda update: -update.client)
    with pytest.raises(ValueError, match="goes by client id"):
        algorithm.apply(state, iter(updates))


def test_apply_changes_nothing_it_was_given(algorithm):
    state = after(algorithm)
    updates = cohort(algorithm, state, seed=7)
    given = [tensors(state), *(u.extras for u in updates), *({"delta": u.delta.flat} for u in updates)]
    before = [{name: value.clone() for name, value in part.items()} for part in given]
    algorithm.apply(state, updates)
    for part, kept in zip(given, before, strict=True):
        assert_same(dict(part), kept)


def test_the_local_rule_changes_nothing_it_was_given(algorithm):
    sent, rule = algorithm.broadcast(after(algorithm)), algorithm.local
    memory = {"control": random("memory")}
    grads, params = random("grads"), random("params")
    carry = rule.begin(sent, memory)
    given = {
        "g": grads, "p": params, "sent": sent.params.flat, "memory": memory["control"], **sent.extras, **carry
    }  # fmt: skip
    before = {name: value.clone() for name, value in given.items()}
    _, later = rule.correct(grads, params, carry)
    rule.finish(later, 1)
    assert_same(given, before)


def test_clients_send_what_is_announced(algorithm):
    state, rule = after(algorithm), algorithm.local
    for client, sign in ((0, 1), (1, -1), (2, 1)):
        sent, memory = algorithm.broadcast(state), {}
        gradients = [
            sign * random("same"),
            -sign * random("same"),
        ]  # from one round to the next they turn round
        for gradient in gradients:
            carry = rule.begin(sent, memory)
            for _ in range(STEPS[client]):
                _, carry = rule.correct(gradient, sent.params.flat, carry)
            extras, memory = rule.finish(carry, STEPS[client])
            most = 1.001 * float(gradient.norm())
            announced = algorithm.extras(LocalWork(LAYOUT.size, STEPS[client], most))
            assert extras.keys() == announced.keys()
            for name, wanted in announced.items():
                assert extras[name].dtype == torch.float32
                assert tuple(extras[name].shape) == wanted.shape
                assert float(extras[name].norm()) <= wanted.most
                assert float(extras[name].min()) >= wanted.least


def test_scaling_all_weights_changes_nothing(algorithm):
    state = after(algorithm)
    updates = cohort(algorithm, state, seed=7)
    scaled = [Update(u.client, u.delta, u.weight * 137.5, u.extras) for u in updates]
    assert close(algorithm.apply(state, scaled)[0], algorithm.apply(state, updates)[0])


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("name", SERVERS)
def test_weights_matter_unless_uniform(name, uniform):
    algorithm = make(name, CLIENTS, {"uniform": uniform})
    state = algorithm.init(Params(LAYOUT, random("start")))
    updates = cohort(algorithm, state)
    others = [Update(u.client, u.delta, 1.0 + u.client, u.extras) for u in reversed(updates)]
    found, expected = algorithm.apply(state, others)[0], algorithm.apply(state, updates)[0]
    assert torch.equal(found.params.flat, expected.params.flat) == uniform


@pytest.mark.parametrize("name", SERVERS)
def test_a_step_is_proportional_to_the_server_step(name):
    moves = []
    for lr in (0.1, 0.3):
        algorithm = make(name, CLIENTS, {"lr": lr})
        state = algorithm.init(Params.zeros(LAYOUT))
        moves.append(algorithm.apply(state, cohort(algorithm, state))[0].params.flat)
    torch.testing.assert_close(moves[1], 3 * moves[0])
    assert moves[0].any()


def test_names_shapes_and_types_are_kept(algorithm):
    state = algorithm.init(Params(LAYOUT, random("start")))
    following, report = algorithm.apply(state, cohort(algorithm, state))
    assert following.params.layout == LAYOUT
    assert following.round == state.round + 1
    assert {name: (slot.shape, slot.dtype) for name, slot in following.slots.items()} == {
        name: (slot.shape, slot.dtype) for name, slot in state.slots.items()
    }
    assert all(isinstance(value, float) and value > 0 for value in report.values()) and report


def test_the_broadcast_carries_the_global_parameters(algorithm):
    state = after(algorithm)
    assert torch.equal(algorithm.broadcast(state).params.flat, state.params.flat)


def test_one_client_or_several_that_agree_give_the_same(algorithm):
    state = after(algorithm)
    delta = random("agreed")
    alone, _ = algorithm.apply(state, [update(algorithm, state, 0, delta)])
    one = update(algorithm, state, 0, delta)
    together, _ = algorithm.apply(
        state, [Update(k, one.delta, WEIGHTS[k], one.extras) for k in range(CLIENTS)]
    )
    assert close(alone, together)


@pytest.mark.parametrize("name", ["fedavg", "fedmean", "fedprox", "scaffold", "fednova", "yoco"])
def test_averaging_clients_that_agree_gives_that_client(name):
    algorithm = make(name, CLIENTS)
    state = algorithm.init(Params(LAYOUT, random("start")))
    one = update(algorithm, state, 1, random("agreed"))
    found, _ = algorithm.apply(state, [Update(k, one.delta, WEIGHTS[k], one.extras) for k in range(CLIENTS)])
    torch.testing.assert_close(found.params.flat, state.params.flat + one.delta.flat)


def test_bad_cohorts_are_refused(algorithm):
    state = after(algorithm)
    good = cohort(algorithm, state)
    other = Layout.of({"llm/layers.0.q:lora_a": (3, 2), "llm/layers.0.q:lora_b": (4,), "connector/w": (1, 2)})
    with pytest.raises(ValueError, match="at least one"):
        algorithm.apply(state, [])
    with pytest.raises(ValueError, match="client 1 sent two"):
        algorithm.apply(state, [*good, good[1]])
    with pytest.raises(ValueError, match="client 2 sent names or shapes"):
        algorithm.apply(state, [*good[:2], Update(2, Params(other, good[2].delta.flat), 1.0, good[2].extras)])
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="client 0 has weight"):
            algorithm.apply(state, [Update(0, good[0].delta, weight, good[0].extras), *good[1:]])


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_missing_and_broken_extras_are_refused(name):
    algorithm = make(name, CLIENTS)
    state = after(algorithm)
    good = cohort(algorithm, state)
    (key,) = good[1].extras
    for extras in ({}, {key: good[1].extras[key] * float("nan")}, {key: torch.zeros(LAYOUT.size + 1)}):
        with pytest.raises(ValueError, match=f"client 1 .*{key}"):
            algorithm.apply(state, [good[0], Update(1, good[1].delta, 1.0, extras), good[2]])


def test_scaffold_refuses_more_clients_than_there_are():
    algorithm = make("scaffold", CLIENTS - 1)
    state = algorithm.init(Params.zeros(LAYOUT))
    with pytest.raises(ValueError, match="3 clients"):
        algorithm.apply(state, cohort(algorithm, state))


def test_save_load_continue_is_the_uninterrupted_run(algorithm):
    state = after(algorithm)
    kept = load(save(tensors(state)))
    slots = {name.removeprefix("slot."): value for name, value in kept.items() if name != "params"}
    resumed = ServerState(Params(LAYOUT, kept["params"]), state.round, slots)
    for round in range(2):
        state, _ = algorithm.apply(state, cohort(algorithm, state, seed=round))
        resumed, _ = algorithm.apply(resumed, cohort(algorithm, resumed, seed=round))
    assert_same(tensors(resumed), tensors(state))


RULES = {
    **{name: lambda name=name: make(name, CLIENTS).local for name in SERVERS},
    "adaptive": lambda: adaptive(LAYOUT, skip=0),
    "chain": lambda: chain(make("scaffold", CLIENTS).local, proximal(0.3)),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_treats_a_stack_of_clients_like_each_alone(name):
    rule = RULES[name]()
    sent = Broadcast(Params(LAYOUT, random("start")), {"control": random("control")})
    grads, params = (torch.stack([random(kind, k) for k in range(CLIENTS)]) for kind in ("grads", "params"))
    carries = [
        rule.begin(sent, {"control": random("m", k), "0.control": random("m", k)}) for k in range(CLIENTS)
    ]
    stacked = {key: torch.stack([carry[key] for carry in carries]) for key in carries[0]}
    found, later = rule.correct(grads, params, stacked)
    for k, carry in enumerate(carries):
        alone, alone_later = rule.correct(grads[k], params[k], carry)
        assert torch.equal(found[k], alone)
        assert_same({key: value[k] for key, value in later.items()}, dict(alone_later))


def test_a_chain_keeps_both_rules_and_adds_their_corrections():
    server, pull = make("scaffold", CLIENTS).local, proximal(0.3)
    sent = Broadcast(Params(LAYOUT, random("start")), {"control": random("control")})
    both = chain(server, pull)
    grads, params, own = random("grads"), random("params"), {"control": random("own")}
    found, carry = both.correct(grads, params, both.begin(sent, {"0.control": own["control"]}))
    first, carry_first = server.correct(grads, params, server.begin(sent, own))
    expected, _ = pull.correct(first, params, pull.begin(sent, {}))
    assert torch.equal(found, expected)
    extras, memory = both.finish(carry, 1)
    extras_first, memory_first = server.finish(carry_first, 1)
    assert_same(extras, extras_first)
    assert_same(memory, {f"0.{name}": value for name, value in memory_first.items()})


def test_a_rule_added_to_fedavg_is_fedprox():
    composed, whole = with_rule(make("fedavg", CLIENTS), proximal(0.3)), make("fedprox", CLIENTS, {"mu": 0.3})
    sent = Broadcast(Params(LAYOUT, random("start")))
    found, _ = composed.local.correct(random("g"), random("p"), composed.local.begin(sent, {}))
    expected, _ = whole.local.correct(random("g"), random("p"), whole.local.begin(sent, {}))
    assert torch.equal(found, expected)
    assert not torch.equal(found, PLAIN.correct(random("g"), random("p"), {})[0])


# Weighted means -------------------------------------------------------------------------------------

VECTOR = Layout.of({"x": (3,)})
SEVEN = Layout.of({"x": (7,)})
NUMBERS = st.floats(-100, 100, width=32)
ROWS = st.lists(
    st.tuples(st.lists(NUMBERS, min_size=3, max_size=3), st.floats(0.01, 1000)), min_size=1, max_size=6
)


def rows_to_updates(rows):
    return [Update(k, Params(VECTOR, torch.tensor(row)), weight) for k, (row, weight) in enumerate(rows)]


@given(ROWS, st.randoms(use_true_random=False), st.booleans())
def test_a_mean_does_not_depend_on_order(rows, rng, uniform):
    updates = rows_to_updates(rows)
    shuffled = list(updates)
    rng.shuffle(shuffled)
    found = mean_delta(ordered(shuffled, VECTOR), uniform=uniform)
    assert torch.equal(found, mean_delta(updates, uniform=uniform))


@given(ROWS, NUMBERS, NUMBERS, st.booleans())
def test_a_mean_moves_and_stretches_with_its_rows(rows, factor, shift, uniform):
    found = mean_delta(
        rows_to_updates([([factor * x + shift for x in row], w) for row, w in rows]), uniform=uniform
    )
    expected = factor * mean_delta(rows_to_updates(rows), uniform=uniform) + shift
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-2)


@given(ROWS, st.booleans())
def test_a_mean_lies_between_its_rows(rows, uniform):
    updates = rows_to_updates(rows)
    found = mean_delta(updates, uniform=uniform)
    values = torch.stack([each.delta.flat for each in updates])
    assert (found >= values.amin(0) - 1e-4).all() and (found <= values.amax(0) + 1e-4).all()


@given(st.integers(1, 40), st.booleans(), st.integers(0, 3))
def test_sums_in_blocks_are_the_sum(count, together, seed):
    """Updates that share one buffer are summed without a copy; the result is the same."""
    rows = torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))
    values = list(rows) if together else [row.clone() for row in rows]
    updates = [Update(k, Params(SEVEN, value), 1.0 + k) for k, value in enumerate(values)]
    weights = torch.arange(1.0, count + 1, dtype=torch.float64)
    expected = (weights @ rows.double() / weights.sum()).float()
    torch.testing.assert_close(mean_delta(updates), expected, rtol=1e-5, atol=1e-6)


def test_many_equal_updates_average_to_themselves():
    one = Update(0, Params(SEVEN, torch.full((7,), 0.1)), 3.0)
    found = means((one for _ in range(100_000)), lambda update: (update.weight, update.delta.flat))
    assert found.clients == 100_000
    torch.testing.assert_close(found.values[0], one.delta.flat, rtol=1e-6, atol=0)


# Making algorithms from what a user wrote -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fedadm", {}, "did you mean 'fedadam'.*scaffold"),
        ("fedavg", {"momentun": 0.5}, "algorithms.fedavg: there is no 'momentun'.*lr, uniform"),
        ("fedavgm", {"momentun": 0.5}, "did you mean 'momentum'"),
        ("fedavg", {"local": 1.0}, "there is no 'local'"),
        ("scaffold", {"clients": 3}, "there is no 'clients'"),
        ("fedavgm", {"momentum": 1.0}, "momentum is 1.0.*below 1"),
        ("fedadam", {"lr": "0.1"}, "fedadam.lr is '0.1'; it must be a number"),
        ("fedadam", {"lr": True}, "must be a number"),
        ("fedadam", {"lr": float("nan")}, "must be a number"),
        ("fedadam", {"tau": 0.0}, "tau is 0.0.*positive"),
        ("fedavg", {"uniform": 1}, "true or false"),
        ("fedprox", {"mu": -0.1}, "mu is -0.1"),
        ("yoco", {"sparse": -0.1}, "sparse is -0.1"),
        ("yoco", {"sharpness": 0.0}, "sharpness is 0.0.*positive"),
        *[(name, {"lr": -1.0}, "lr is -1.0.*positive") for name in SERVERS],
    ],
)
def test_mistakes_are_told_in_one_message(name, arguments, message):
    with pytest.raises(UserError, match=message):
        make(name, CLIENTS, arguments)


def test_arguments_reach_the_algorithm():
    algorithm = make("fedavg", CLIENTS, {"lr": 2, "uniform": True})
    state = algorithm.init(Params.zeros(LAYOUT))
    found, _ = algorithm.apply(state, [update(algorithm, state, 0, torch.ones(LAYOUT.size))])
    assert torch.equal(found.params.flat, torch.full((LAYOUT.size,), 2.0))


def test_a_modifier_is_configured_like_an_algorithm():
    with pytest.raises(UserError, match=r"algorithms.adaptive: skip is 1, which leaves none"):
        configured("algorithms.adaptive", adaptive, {}, layout=LAYOUT)
    with pytest.raises(UserError, match=r"adaptive.skip is 1.5; it must be a whole number"):
        configured("algorithms.adaptive", adaptive, {"skip": 1.5}, layout=LAYOUT)
    assert configured("algorithms.adaptive", adaptive, {"skip": 0}, layout=LAYOUT).begin
