"""The laws that every federated algorithm keeps, whatever its paper says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clients import EXCHANGING

from fedloom.algorithms import ENTRIES, PLACES
from fedloom.algorithms.adaptive_regularizer import adaptive
from fedloom.algorithms.aggregate import mean_delta, means
from fedloom.algorithms.algorithm import TooFew, ordered, with_rule
from fedloom.algorithms.compose import configured, make
from fedloom.algorithms.fedprox import proximal
from fedloom.algorithms.local_rule import PLAIN, chain
from fedloom.params import Layout, Params
from fedloom.system.errors import UserError
from fedloom.testing import KINDS, LAWS, bench_of
from fedloom.testing.laws import check_stacking
from fedloom.testing.toy_clients import LAYOUT, random_vector, require_same
from fedloom.types import Broadcast
from fedloom.wire.messages import Update

CLIENTS = 3
CASES = {
    **{name: (name, {}) for name in EXCHANGING},
    "fedavg uniform": ("fedavg", {"uniform": True, "lr": 0.5}),
    "fedavgm published": ("fedavgm", {"published": True}),
    "fedadagrad published": ("fedadagrad", {"published": True}),
    "fedadam published": ("fedadam", {"published": True}),
    "fedyogi published": ("fedyogi", {"published": True}),
    "scaffold weighted": ("scaffold", {"uniform": False}),
}


OF_ARGUMENTS = ("weights matter", "proportional")
"""Laws about arguments, whose other values the cases change."""


@pytest.mark.parametrize(
    ("case", "law"),
    [(case, law) for case in CASES for law in LAWS if case in EXCHANGING or law not in OF_ARGUMENTS],
)
def test_algorithms_keep_the_laws(case, law):
    name, arguments = CASES[case]
    bench = bench_of(ENTRIES[name], CLIENTS, arguments)
    assert law not in bench.entry.opts_out and LAWS[law].applies(bench)
    LAWS[law].check(bench)


PARTS = [name for name, place in PLACES.items() if place.kind in KINDS and place.kind != "server"]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", PARTS)
def test_parts_that_are_added_to_fedavg_keep_the_laws_that_they_promise(name, law):
    bench = bench_of(ENTRIES[name], 7, {})
    if law in bench.entry.opts_out:  # what holds is promised
        with pytest.raises((AssertionError, TooFew)):
            LAWS[law].check(bench)
    elif LAWS[law].applies(bench):
        LAWS[law].check(bench)


@pytest.mark.parametrize("name", ["fedavg", "fedmean", "fedprox", "scaffold", "fednova", "yoco"])
def test_averaging_clients_that_agree_gives_that_client(name):
    bench = bench_of(ENTRIES[name], CLIENTS, {})
    algorithm = bench.make()
    state = algorithm.init(Params(LAYOUT, random_vector("start")))
    one = bench.update(algorithm, state, 1, random_vector("agreed"))
    result, _ = algorithm.apply(state, [Update(k, one.delta, 1.0 + k, one.extras) for k in range(CLIENTS)])
    torch.testing.assert_close(result.params.flat, state.params.flat + one.delta.flat)


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_missing_and_broken_extras_are_refused(name):
    bench = bench_of(ENTRIES[name], CLIENTS, {})
    algorithm = bench.make()
    state = bench.after(algorithm)
    good = bench.cohort(algorithm, state)
    (key,) = good[1].extras
    for extras in ({}, {key: good[1].extras[key] * float("nan")}, {key: torch.zeros(LAYOUT.size + 1)}):
        with pytest.raises(ValueError, match=f"client 1 .*{key}"):
            algorithm.apply(state, [good[0], Update(1, good[1].delta, 1.0, extras), good[2]])


def test_scaffold_refuses_more_clients_than_there_are():
    algorithm = make("scaffold", CLIENTS - 1)
    state = algorithm.init(Params.zeros(LAYOUT))
    with pytest.raises(ValueError, match="3 clients"):
        algorithm.apply(state, bench_of(ENTRIES["scaffold"], CLIENTS, {}).cohort(algorithm, state))


def test_a_chain_treats_a_stack_of_clients_like_each_alone():
    rule = chain(make("scaffold", CLIENTS).local, proximal(0.3))
    sent = Broadcast(Params(LAYOUT, random_vector("start")), {"control": random_vector("control")})
    check_stacking(rule, sent, [{"0.control": random_vector("m", k)} for k in range(CLIENTS)])


def test_a_chain_keeps_both_rules_and_adds_their_corrections():
    server, pull = make("scaffold", CLIENTS).local, proximal(0.3)
    sent = Broadcast(Params(LAYOUT, random_vector("start")), {"control": random_vector("control")})
    both = chain(server, pull)
    grads, params, own = random_vector("grads"), random_vector("params"), {"control": random_vector("own")}
    actual, carry = both.correct(grads, params, both.begin(sent, {"0.control": own["control"]}))
    first, carry_first = server.correct(grads, params, server.begin(sent, own))
    expected, _ = pull.correct(first, params, pull.begin(sent, {}))
    assert torch.equal(actual, expected)
    extras, memory = both.finish(carry, 1)
    extras_first, memory_first = server.finish(carry_first, 1)
    require_same(extras, extras_first, "extras")
    require_same(memory, {f"0.{name}": value for name, value in memory_first.items()}, "memory")


def test_a_rule_added_to_fedavg_is_fedprox():
    composed, whole = with_rule(make("fedavg", CLIENTS), proximal(0.3)), make("fedprox", CLIENTS, {"mu": 0.3})
    sent = Broadcast(Params(LAYOUT, random_vector("start")))
    actual, _ = composed.local.correct(random_vector("g"), random_vector("p"), composed.local.begin(sent, {}))
    expected, _ = whole.local.correct(random_vector("g"), random_vector("p"), whole.local.begin(sent, {}))
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, PLAIN.correct(random_vector("g"), random_vector("p"), {})[0])


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
    result = mean_delta(ordered(shuffled, VECTOR), uniform=uniform)
    assert torch.equal(result, mean_delta(updates, uniform=uniform))


@given(ROWS, NUMBERS, NUMBERS, st.booleans())
def test_a_mean_moves_and_stretches_with_its_rows(rows, factor, shift, uniform):
    actual = mean_delta(
        rows_to_updates([([factor * x + shift for x in row], w) for row, w in rows]), uniform=uniform
    )
    expected = factor * mean_delta(rows_to_updates(rows), uniform=uniform) + shift
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-2)


@given(ROWS, st.booleans())
def test_a_mean_lies_between_its_rows(rows, uniform):
    updates = rows_to_updates(rows)
    result = mean_delta(updates, uniform=uniform)
    values = torch.stack([each.delta.flat for each in updates])
    assert (result >= values.amin(0) - 1e-4).all() and (result <= values.amax(0) + 1e-4).all()


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
    result = means((one for _ in range(100_000)), lambda update: (update.weight, update.delta.flat))
    assert result.clients == 100_000
    torch.testing.assert_close(result.values[0], one.delta.flat, rtol=1e-6, atol=0)


# Making algorithms from what a user wrote -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fedadm", {}, "Did you mean fedadam.*scaffold"),
        ("fedavg", {"momentun": 0.5}, 'algorithms.fedavg: "momentun" is not a known argument.*lr, uniform'),
        ("fedavgm", {"momentun": 0.5}, "Did you mean momentum"),
        ("fedavg", {"local": 1.0}, '"local" is not a known argument'),
        ("scaffold", {"clients": 3}, '"clients" is not a known argument'),
        ("fedavgm", {"momentum": 1.0}, "momentum is 1.0.*below 1"),
        ("fedadam", {"lr": "0.1"}, "fedadam.lr is '0.1'; it must be a number"),
        ("fedadam", {"lr": True}, "must be a number"),
        ("fedadam", {"lr": float("nan")}, "must be a number"),
        ("fedadam", {"tau": 0.0}, "tau is 0.0.*positive"),
        ("fedavg", {"uniform": 1}, "true or false"),
        ("fedprox", {"mu": -0.1}, "mu is -0.1"),
        ("yoco", {"sparse": -0.1}, "sparse is -0.1"),
        ("yoco", {"sharpness": 0.0}, "sharpness is 0.0.*positive"),
        *[(name, {"lr": -1.0}, "lr is -1.0.*positive") for name in EXCHANGING],
    ],
)
def test_a_wrong_argument_is_reported_in_one_message(name, arguments, message):
    with pytest.raises(UserError, match=message):
        make(name, CLIENTS, arguments)


def test_arguments_reach_the_algorithm():
    algorithm = make("fedavg", CLIENTS, {"lr": 2, "uniform": True})
    state = algorithm.init(Params.zeros(LAYOUT))
    result, _ = algorithm.apply(state, [Update(0, Params(LAYOUT, torch.ones(LAYOUT.size)), 1.0)])
    assert torch.equal(result.params.flat, torch.full((LAYOUT.size,), 2.0))


def test_a_modifier_is_configured_like_an_algorithm():
    one_layer = Layout.of({"llm/layers.0.q:lora_a": (2,)})
    with pytest.raises(UserError, match=r"algorithms.adaptive: skip is 1, which leaves none"):
        configured("algorithms.adaptive", adaptive, {}, layout=one_layer)
    with pytest.raises(UserError, match=r"adaptive.skip is 1.5; it must be a whole number"):
        configured("algorithms.adaptive", adaptive, {"skip": 1.5}, layout=LAYOUT)
    assert configured("algorithms.adaptive", adaptive, {"skip": 0}, layout=LAYOUT).begin
