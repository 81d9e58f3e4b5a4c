"""Admission refuses what would break an aggregate, gives the reason, and lets honest updates through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, cast

import pytest
import torch

from fedloom.algorithms.algorithm import Extra
from fedloom.config.schema import Limits
from fedloom.engine.admission import BUFFERED_UPDATES, REMEMBERED, Admission
from fedloom.engine.update_bounds import ClientBounds
from fedloom.params import Layout, Params, Part
from fedloom.wire.messages import Update

LAYOUT = Layout.of({"a": (2, 3), "b": (4,)})

WHOLE = Part.whole(LAYOUT.size)


@dataclass
class Bounds:
    """Bounds that are the same for all clients; each holds ten examples."""

    most: float = inf
    usual: float = 0.0
    extras: dict[str, Extra] = field(default_factory=dict)
    up: Part = WHOLE
    layout: Layout = LAYOUT

    def of(self, client: int) -> ClientBounds:
        return ClientBounds(10, self.up, self.most, self.usual, self.extras)


def admission(norms: Iterable[float] = (), limits: Limits = Limits(), **bounds: Any) -> Admission:
    return Admission(cast("Any", Bounds(**bounds)), tuple(norms), limits)


def update(client: int = 0, value: float = 1.0, weight: float = 3.0, layout: Layout = LAYOUT) -> Update:
    return Update(client, Params(layout, torch.full((layout.size,), value)), weight)


def refuse(
    updates: list[Update], norms: Iterable[float] = (), limits: Limits = Limits(), **bounds: Any
) -> dict[int, str]:
    judged = admission(norms, limits, **bounds).check(updates)
    return {update.client: why for update, why in judged if why is not None}


def broken() -> dict[str, tuple[Update, str]]:
    holed = update()
    holed.delta.flat[7] = float("nan")
    return {
        "nan": (holed, "not finite"),
        "infinite": (update(value=float("inf")), "not finite"),
        "other names": (update(layout=Layout.of({"a": (2, 3), "c": (4,)})), "'b'"),
        "other shape": (update(layout=Layout.of({"a": (3, 2), "b": (4,)})), "shapes"),
        "broadcastable shape": (update(layout=Layout.of({"a": (2, 3), "b": (1,)})), "shapes"),
        "no weight": (update(weight=0.0), "weight 0.0"),
        "negative weight": (update(weight=-1.0), "weight -1.0"),
        "weight nan": (update(weight=float("nan")), "weight nan"),
        "weight infinite": (update(weight=float("inf")), "weight inf"),
        "more examples than it holds": (update(weight=11.0), "not between 1 and 10"),
        "less than an example": (update(weight=0.9), "weight 0.9"),
        "an extra": (replace(update(), extras={"c": torch.ones(1)}), "unexpected extra c"),
    }


@pytest.mark.parametrize("name", broken())
def test_a_broken_update_is_refused_with_its_reason(name: str) -> None:
    bad, words = broken()[name]
    reasons = refuse([update(1), bad, update(2)], [])
    assert set(reasons) == {0}
    assert words in reasons[0]


EXTRA = {"c": Extra((2,), most=3.0, least=-1.0)}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor([1.0, float("nan")]), "c holds values that are not finite"),
        (torch.tensor([1, 2]), "int64 values of shape [2], not float32 values of shape [2]"),
        (torch.ones(1), "shape [1], not float32 values of shape [2]"),
        (torch.tensor([3.0, 1.0]), "norm 3.162, above 3"),
        (torch.tensor([0.0, -1.5]), "c holds values below -1"),
        (None, "c is missing"),
    ],
)
def test_extras_must_be_what_the_algorithm_announces(value: torch.Tensor | None, words: str) -> None:
    sent = replace(update(1), extras={} if value is None else {"c": value})
    good = replace(update(0), extras={"c": torch.tensor([0.0, 3.0])})
    reasons = refuse([good, sent], extras=EXTRA)
    assert set(reasons) == {1}
    assert words in reasons[1]


def test_a_change_of_values_that_are_not_exchanged_is_refused() -> None:
    up = Part(LAYOUT.size, ((0, 2), (5, 10)))
    good, bad = (replace(update(client), up=up) for client in (0, 1))
    good.delta.flat[2:5] = -0.0
    assert set(refuse([good, bad], up=up)) == {1}


def test_another_part_than_was_asked_for_is_refused() -> None:
    up = Part(LAYOUT.size, ((0, 2),))
    for part in (None, Part(LAYOUT.size, ((0, 1),))):
        one = Update(0, Params.zeros(LAYOUT), 3.0, up=part)
        assert "not requested" in refuse([one], up=up)[0]


def test_honest_updates_pass() -> None:
    updates = [update(client, value=0.1 * (client + 1)) for client in range(10)]
    assert refuse(updates, [0.5, 1.0], Limits()) == {}


def test_an_outsized_update_is_refused_by_ratio_and_by_norm() -> None:
    updates = [update(0), update(1), update(2, value=1e4)]
    assert "times the usual" in refuse(updates, [])[2]
    assert set(refuse(updates, [], Limits(max_norm=0.1))) == {0, 1, 2}
    assert "the largest norm that honest training can produce" in refuse(updates, most=1e3)[2]
    assert refuse(updates, most=0.1, limits=Limits(max_norm=1e6, max_ratio=1e6)) == {}


def test_a_median_below_the_common_norm_refuses_nobody() -> None:
    updates = [update(0, 1e-9), update(1, 1e-9), update(2, 1e-9), update(3)]
    assert set(refuse(updates)) == {3}
    assert refuse(updates, usual=0.2) == {}  # its norm is √10, less than 20 · 0.2
    assert set(refuse(updates, usual=0.1)) == {3}


def test_zero_updates_do_not_make_others_outsized() -> None:
    assert refuse([update(0, 0.0), update(1, 0.0), update(2)], []) == {}


def test_arrival_order_does_not_matter() -> None:
    updates = [update(0), update(1, value=1e5), update(2, value=float("nan"))]
    assert refuse(updates, []) == refuse(updates[::-1], [])


def test_a_stream_is_checked_as_it_arrives() -> None:
    taken: list[int] = []

    def coming():
        for client in range(3 * BUFFERED_UPDATES):
            taken.append(client)
            yield update(client)

    judged = admission().check(coming())
    next(judged)
    assert len(taken) == BUFFERED_UPDATES  # the usual norm needs these, and no more
    for _ in range(BUFFERED_UPDATES):
        next(judged)
    assert len(taken) == BUFFERED_UPDATES + 1


def test_few_norms_are_remembered() -> None:
    one = admission([1.0] * REMEMBERED)
    list(one.check(update(client, value=0.5) for client in range(40)))
    assert len(one.norms) == REMEMBERED
    assert one.norms[-1] == pytest.approx(0.5 * 10**0.5)
