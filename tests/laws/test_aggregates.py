"""The laws that aggregates and their wrappers keep, whatever their papers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from math import inf
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fedloom.algorithms import ENTRIES, PLACES
from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import Aggregate, ServerState, TooFew, ordered
from fedloom.algorithms.compose import Given, compose, conflicts, make
from fedloom.algorithms.robust_helpers import CHUNK
from fedloom.params import Layout, Params, Part
from fedloom.seeds import torch_stream
from fedloom.system.errors import UserError
from fedloom.wire.messages import Update

LAYOUT = Layout.of({"llm/layers.0.q:lora_a": (2, 3), "llm/layers.0.q:lora_b": (4,), "connector/w": (1, 2)})
CLIENTS = 11
AGGREGATES = [name for name, place in PLACES.items() if place.kind == "aggregate"]
WRAPPERS = [name for name, place in PLACES.items() if place.kind == "wrapper"]


class Case(NamedTuple):
    """A method: its parts after `fedavg`, the inner one first, with their arguments."""

    parts: Mapping[str, Mapping[str, Any]]
    moves: bool = True  # whether it moves with all deltas together

    def __call__(self, cohort: int = CLIENTS, **facts: int) -> Aggregate:
        names = ["fedavg", *self.parts]
        given = Given(cohort, **facts)
        return compose(names, given, lambda name: self.parts.get(name, {"uniform": True})).aggregate


LONG = {"bound": 1e9}
"""A bound that no honest client comes near."""

PLAIN = {
    **{name: Case({name: {}}) for name in AGGREGATES if name != "centered-clipping"},
    "median of half": Case({"median": {"f": 5}}),
    "trimmed mean, 3": Case({"trimmed-mean": {"f": 3}}),
    "Krum, 4 faulty": Case({"krum": {"f": 4}}),
    "multi-Krum, 3 of 11": Case({"multi-krum": {"keep": 3}}),
    "centered-clipping": Case({"centered-clipping": {"bound": 0.5}}, moves=False),
}
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"dp": {"noise": 0.0, "bound": 5.0}, "clip": {"bound": 5.0}}
MOVING = {"nearest-mixing", "bucketing"}
MANY = {"median of half", "trimmed mean, 3", "Krum, 4 faulty"}
"""These need more clients than there are buckets."""

WRAPPED = {
    f"{wrapper} of {inner}": Case(
        {**case.parts, wrapper: ARGUMENTS.get(wrapper, {})}, case.moves and wrapper in MOVING
    )
    for wrapper in WRAPPERS
    for inner, case in {"the mean": Case({}), **PLAIN}.items()
    if not list(conflicts(["fedavg", *case.parts, wrapper]))
    and not (wrapper == "bucketing" and inner in MANY)
}
CASES = {**PLAIN, **WRAPPED}
ROBUST = {name: case for name, case in CASES.items() if case.parts.keys() & set(AGGREGATES)}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def random(purpose: str, step: int = -1, size: int = LAYOUT.size) -> Tensor:
    return torch.randn(size, generator=torch_stream(0, purpose, step=step))


def updates_of(rows: Sequence[Tensor], layout: Layout = LAYOUT, **fields: Any) -> list[Update]:
    return [Update(3 * k, Params(layout, row), 1.0 + k, **fields) for k, row in enumerate(rows)]


def cohort(count: int = CLIENTS) -> list[Update]:
    """Return updates around a common one."""
    return updates_of([random("common") + 0.3 * random("own", k) for k in range(count)])


def state(round: int = 0, layout: Layout = LAYOUT) -> ServerState:
    return ServerState(Params.zeros(layout), round)


def delta(aggregate: Aggregate, updates: Sequence[Update], layout: Layout = LAYOUT) -> Tensor:
    return aggregate(ordered(updates, layout), state(layout=layout))[0]


def test_every_aggregate_and_wrapper_is_tried() -> None:
    for name in (*AGGREGATES, *WRAPPERS):
        assert any(name in case.parts for case in CASES.values()), name
    assert len(AGGREGATES) == 6
    assert len(WRAPPERS) == 4


@pytest.mark.parametrize("name", [*AGGREGATES, *WRAPPERS])
def test_the_table_agrees_with_the_page(name: str) -> None:
    entry, place = ENTRIES[name], PLACES[name]
    assert (entry.kind, entry.label) == (place.kind, place.label)
    assert entry.about.endswith(".")


def test_zero_deltas_give_zero(case: Case) -> None:
    result = delta(case(), updates_of([torch.zeros(LAYOUT.size)] * CLIENTS))
    assert torch.equal(result, torch.zeros(LAYOUT.size))


def test_order_does_not_matter_to_a_bit(case: Case) -> None:
    aggregate, updates = case(), cohort()
    expected, figures = aggregate(ordered(updates, LAYOUT), state())
    rotated = [[*updates[k:], *updates[:k]] for k in range(1, CLIENTS)]
    for other in (*rotated, updates[::-1]):
        actual, same = aggregate(ordered(other, LAYOUT), state())
        assert torch.equal(actual, expected)
        assert same == figures


def test_all_orders_of_five_give_the_same_bits() -> None:
    for name in AGGREGATES:
        aggregate, updates = make(name, 5), cohort(5)
        expected = delta(aggregate, updates)
        assert all(torch.equal(delta(aggregate, order), expected) for order in permutations(updates))


def test_a_stream_is_aggregated_as_a_list_is(case: Case) -> None:
    assert torch.equal(delta(case(), cohort()), case()(iter(cohort()), state())[0])


def test_arguments_do_not_change_and_the_result_is_a_new_tensor(case: Case) -> None:
    updates = cohort()
    before, before_state = [one.delta.flat.clone() for one in updates], state()
    result, _ = case()(updates, before_state)
    result.fill_(9.0)  # a step may overwrite it
    assert all(torch.equal(one.delta.flat, kept) for one, kept in zip(updates, before, strict=True))
    assert not before_state.params.flat.any()
    again, _ = case()(updates, before_state)
    assert not torch.equal(again, result)


def test_shape_type_and_figures(case: Case) -> None:
    result, figures = case()(cohort(), state())
    assert (result.shape, result.dtype) == ((LAYOUT.size,), torch.float32)
    assert all(type(value) is float for value in figures.values())


def test_clients_that_agree_give_what_they_agree_on(case: Case) -> None:
    agreed = 0.3 * random("agreed") / random("agreed").norm()
    torch.testing.assert_close(delta(case(), updates_of([agreed] * CLIENTS)), agreed, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.moves])
def test_shifting_all_deltas_shifts_their_aggregate(name: str) -> None:
    aggregate, shift = CASES[name](), random("shift")
    moved = [replace(one, delta=Params(LAYOUT, one.delta.flat + shift)) for one in cohort()]
    torch.testing.assert_close(
        delta(aggregate, moved), delta(aggregate, cohort()) + shift, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ROBUST)
def test_all_clients_have_the_same_weight(name: str) -> None:
    others = [replace(one, weight=1.0 + 7 * (k % 3)) for k, one in enumerate(cohort())]
    assert torch.equal(delta(CASES[name](), others), delta(CASES[name](), cohort()))


@pytest.mark.parametrize("factor", [1e6, -1e6])
@pytest.mark.parametrize("client", [0, 4, CLIENTS - 1])
@pytest.mark.parametrize("name", ROBUST)
def test_one_wild_client_stays_within_the_honest_clients_spread(
    name: str, client: int, factor: float
) -> None:
    updates = cohort()
    updates[client] = replace(updates[client], delta=Params(LAYOUT, factor * updates[client].delta.flat))
    honest = torch.stack([one.delta.flat for k, one in enumerate(updates) if k != client])
    center = honest.mean(dim=0)
    spread = float((honest - center).norm(dim=1).max())
    assert float((delta(CASES[name](), updates) - center).norm()) <= spread
    assert float((delta(mean(uniform=True), updates) - center).norm()) > 1e4 * spread


@pytest.mark.parametrize("wrapper", ["clip", "dp"])
def test_a_clipped_client_moves_the_mean_by_at_most_its_share(wrapper: str) -> None:
    updates, aggregate = cohort(), Case({wrapper: {**ARGUMENTS[wrapper], "bound": 2.0}})()
    for factor in (1e6, -1e6):
        wild = [replace(updates[0], delta=Params(LAYOUT, factor * updates[0].delta.flat)), *updates[1:]]
        moved = float((delta(aggregate, wild) - delta(aggregate, updates)).norm())
        assert moved <= 2 * 2.0 / CLIENTS * (1 + 1e-5)


# Degenerate cases -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {"clip": LONG},
        {"dp": {**LONG, "noise": 0.0}},
        {"nearest-mixing": {"f": 0}},
        {"bucketing": {"size": 1}},
        {"bucketing": {"size": 99}},
        {"trimmed-mean": {"f": 0}},
        {"multi-krum": {"f": 0}},
        {"krum": {"f": 0, "keep": CLIENTS}},
        {"centered-clipping": {**LONG, "steps": 1}},
    ],
)
def test_without_faulty_clients_clipping_or_noise_it_is_the_mean(
    parts: Mapping[str, Mapping[str, Any]],
) -> None:
    actual, expected = delta(Case(parts)(), cohort()), delta(mean(uniform=True), cohort())
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*PLAIN, "the mean"])
def test_clipping_far_out_and_buckets_of_one_change_no_bit(name: str) -> None:
    plain = {"the mean": Case({}), **PLAIN}[name]
    for wrapper, arguments in (("clip", LONG), ("bucketing", {"size": 1})):
        wrapped = plain._replace(parts={**plain.parts, wrapper: arguments})
        assert torch.equal(delta(wrapped(), cohort()), delta(plain(), cohort()))


def test_degenerate_cases_that_are_the_mean_to_a_bit() -> None:
    expected = delta(mean(uniform=True), cohort())
    for parts in (
        {"dp": {**LONG, "noise": 0.0}},
        {"multi-krum": {"f": 0}},
        {"bucketing": {"size": CLIENTS}},
        {"centered-clipping": {**LONG, "steps": 1}},
    ):
        assert torch.equal(delta(Case(parts)(), cohort()), expected), parts
    weighted = compose(
        ["fedavg", "clip"], Given(CLIENTS), lambda name: LONG if name == "clip" else {}
    ).aggregate
    assert torch.equal(delta(weighted, cohort()), delta(mean(), cohort()))


def test_the_middle_of_two_ways_to_trim_is_the_median() -> None:
    for clients in (5, 6):
        trimmed = make("trimmed-mean", clients, {"f": 2})
        assert torch.equal(delta(trimmed, cohort(clients)), delta(make("median", clients), cohort(clients)))


def test_non_degenerate_ones_differ(case: Case) -> None:
    updates = [*cohort()[1:], replace(cohort()[0], delta=Params(LAYOUT, 40 * random("far")))]
    expected = delta(mean(uniform=True), updates)
    if case.parts.keys() != {"bucketing"}:  # the mean of buckets is the mean
        assert not torch.allclose(delta(case(), updates), expected, atol=1e-3)


# Bounds -----------------------------------------------------------------------------------------------

BOUNDS = {
    "median": 2 * 2 + 1,
    "trimmed-mean": 2 * 2 + 1,
    "geometric-median": 2 * 2 + 1,
    "centered-clipping": 2 * 2 + 1,
    "nearest-mixing": 2 * 2 + 1,
    "krum": 2 * 2 + 3,
    "multi-krum": 2 * 2 + 3,
}
"""The fewest clients with two faulty ones."""


@pytest.mark.parametrize("name", BOUNDS)
def test_more_faulty_clients_than_a_rule_withstands_are_refused(name: str) -> None:
    least = BOUNDS[name]
    with pytest.raises(
        UserError, match=rf"algorithms\.{name}: .* f = 2 needs .* = {least} .*there are {least - 1}"
    ):
        make(name, least - 1, {"f": 2})
    with pytest.raises(UserError, match="f is -1"):
        make(name, least, {"f": -1})
    made = make(name, least, {"f": 2})
    aggregate: Aggregate = made(mean()) if PLACES[name].kind == "wrapper" else made
    delta(aggregate, cohort(least))
    with pytest.raises(TooFew, match=f"= {least} clients in a round, and there are {least - 1}"):
        delta(aggregate, cohort(least - 1))


def test_every_rule_with_a_bound_is_tested() -> None:
    assert set(BOUNDS) == {*AGGREGATES, "nearest-mixing"}


def test_the_cohort_counts_and_not_all_clients() -> None:
    make("krum", Given(100, cohort=5))
    with pytest.raises(UserError, match="Krum"):
        make("krum", Given(100, cohort=4))


def test_multi_krum_keeps_no_more_than_are_left_without_the_faulty() -> None:
    with pytest.raises(UserError, match="set to keep 5 updates, but can keep at most n - f = 4 of 5"):
        make("krum", 5, {"keep": 5})
    with pytest.raises(UserError, match="keep is -1"):
        make("multi-krum", 5, {"keep": -1})
    with pytest.raises(TooFew, match="set to keep 5 updates, but can keep at most n - f = 4 of 5"):
        delta(make("krum", 6, {"keep": 5}), cohort(5))


def test_too_few_buckets_are_refused_before_the_first_round() -> None:
    with pytest.raises(UserError, match=r"9 clients in a round make 3 buckets of 3.*Krum.*there are 3"):
        compose(
            ["fedavg", "krum", "bucketing"], Given(9), lambda name: {"size": 3} if name == "bucketing" else {}
        )
    with pytest.raises(UserError, match=r"3 buckets of 3"):
        compose(
            ["fedavg", "krum", "nearest-mixing", "bucketing"],
            Given(9),
            lambda name: {"size": 3} if name == "bucketing" else {},
        )
    compose(["fedavg", "krum", "bucketing"], Given(9))  # five buckets of two
    with pytest.raises(TooFew, match="there are 4"):
        delta(Case({"krum": {}, "bucketing": {}})(9), cohort(8))


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("clip", {"bound": 0.0}, "bound is 0.0"),
        ("dp", {"bound": -1.0}, "bound is -1.0"),
        ("dp", {"noise": -0.5}, "noise is -0.5"),
        ("dp", {"noise": inf}, "noise is inf"),
        ("bucketing", {"size": 0}, "size is 0"),
        ("centered-clipping", {"bound": 0.0}, "bound is 0.0"),
        ("centered-clipping", {"steps": 0}, "steps is 0"),
        ("geometric-median", {"steps": 0}, "steps is 0"),
        ("geometric-median", {"smoothing": 0.0}, "smoothing is 0.0"),
        ("krum", {"f": 1.5}, "whole number"),
        ("trimmed-mean", {"beta": 0.1}, '"beta" is not a known argument'),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, arguments: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make(name, CLIENTS, arguments)


@pytest.mark.parametrize(
    "method",
    [
        "scaffold+krum",
        "fednova+median",
        "yoco+trimmed-mean",
        "fedavg+median+krum",
        "scaffold+nearest-mixing",
        "fednova+bucketing",
        "scaffold+dp",
        "yoco+dp",
        "fedavg+krum+dp",
        "fedavg+bucketing+dp",
        "fedavg+dp+nearest-mixing",
    ],
)
def test_parts_that_cannot_be_combined_are_refused_with_a_reason(method: str) -> None:
    with pytest.raises(UserError, match="do not go together, since"):
        compose(method.split("+"), Given(CLIENTS))


@pytest.mark.parametrize(
    "method",
    ["scaffold+clip", "fednova+clip", "fedadam+krum", "fedyogi+median+clip", "fedavgm+dp", "fedavg+clip+dp"],
)
def test_parts_that_can_be_combined(method: str) -> None:
    compose(method.split("+"), Given(CLIENTS))


def test_wrappers_surround_the_aggregate_in_their_order() -> None:
    """Clipped before they are mixed, updates differ from those that are mixed before they are clipped."""
    inner = Case({"nearest-mixing": {}, "clip": {"bound": 0.5}})()
    outer = Case({"clip": {"bound": 0.5}, "nearest-mixing": {}})()
    clip, mix = make("clip", CLIENTS, {"bound": 0.5}), make("nearest-mixing", CLIENTS)
    assert torch.equal(delta(inner, cohort()), delta(clip(mix(mean(uniform=True))), cohort()))
    assert torch.equal(delta(outer, cohort()), delta(mix(clip(mean(uniform=True))), cohort()))
    assert not torch.equal(delta(inner, cohort()), delta(outer, cohort()))


# Parts ------------------------------------------------------------------------------------------------

HALF, REST = Part(LAYOUT.size, ((0, 5),)), Part(LAYOUT.size, ((3, 8),))


def reporting(parts: Sequence[Part | None]) -> list[Update]:
    """Return updates that report parts; outside them they are zero."""
    return [
        replace(one, delta=Params(LAYOUT, (part or one.delta.whole).zero_outside(one.delta.flat)), up=part)
        for one, part in zip(cohort(len(parts)), parts, strict=True)
    ]


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_a_value_counts_the_clients_whose_part_has_it(name: str) -> None:
    updates = reporting([HALF] * 3 + [REST] * 4)
    result = delta(make(name, 7), updates)
    for stretch, those in (((0, 3), updates[:3]), ((3, 5), updates), ((5, 8), updates[3:])):
        alone = delta(
            make(name, 7 if len(those) == 7 else len(those)), [replace(one, up=None) for one in those]
        )
        assert torch.equal(result[slice(*stretch)], alone[slice(*stretch)])
    assert not result[8:].any()  # nobody reports these


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_a_value_that_too_few_clients_report_is_not_aggregated(name: str) -> None:
    with pytest.raises(TooFew, match=r"not all clients report, with f = 1 .* there are 2"):
        delta(make(name, 7), reporting([HALF] * 5 + [REST] * 2))


WHOLE = [name for name in (*AGGREGATES, *WRAPPERS) if "whole vectors" in ENTRIES[name].traits]


@pytest.mark.parametrize("name", WHOLE)
def test_rules_on_whole_vectors_refuse_clients_that_report_different_parts(name: str) -> None:
    made = make(name, CLIENTS)
    aggregate: Aggregate = made(mean()) if PLACES[name].kind == "wrapper" else made
    with pytest.raises(ValueError, match="client 15 reports other values than client 0"):
        delta(aggregate, reporting([HALF] * 5 + [REST] * 6))


def test_values_outside_a_common_part_stay_zero(case: Case) -> None:
    """A stage that trains the connector alone is no obstacle."""
    noisy = case._replace(
        parts={name: {**of, "noise": 1.0} if name == "dp" else of for name, of in case.parts.items()}
    )
    result = delta(noisy(), reporting([HALF] * CLIENTS))
    assert result[:5].all()
    assert not result[5:].any()


def test_long_vectors_are_processed_in_pieces() -> None:
    """What is done in pieces is done to all of the vector, at the seams, too."""
    size = CHUNK + 7
    layout = Layout.of({"x": (size,)})
    rows = [random("long", k, size) for k in range(5)]
    stack = torch.stack(rows)
    result = delta(make("median", 5), updates_of(rows, layout), layout)
    assert torch.equal(result, stack.median(dim=0).values)
    updates = updates_of([torch.zeros(size), *(torch.ones(size) for _ in range(4))], layout)
    updates[1].delta.flat[-1] = 2.0  # the only thing that sets it apart
    assert make("krum", 5)(updates, state(layout=layout))[1]["krum_client"] == 6
