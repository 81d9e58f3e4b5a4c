"""The gate refuses what would break an aggregator, says why, and lets honest updates through."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fedloom.engine.gate import FIRST, REMEMBERED, Gate
from fedloom.params import Layout, Params
from fedloom.types import ClientUpdate

LAYOUT = Layout.of({"a": (2, 3), "b": (4,)})


@dataclass(frozen=True)
class Limits:
    max_norm: float | None = None
    max_ratio: float = 20.0


def update(client: int = 0, value: float = 1.0, weight: float = 3.0, layout: Layout = LAYOUT) -> ClientUpdate:
    return ClientUpdate(client, Params(layout, torch.full((layout.size,), value)), weight)


def refuse(updates: list[ClientUpdate], norms: list[float], limits: Limits) -> dict[int, str]:
    judged = Gate(LAYOUT, norms, limits).judge((update, {}) for update in updates)
    return {update.client: why for update, _, why in judged if why is not None}


def broken() -> dict[str, tuple[ClientUpdate, str]]:
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
        "extras nan": (replace(update(), extras={"c": torch.tensor([float("nan")])}), "c holds"),
        "extras whole": (replace(update(), extras={"c": torch.tensor([1])}), "int64"),
    }


@pytest.mark.parametrize("name", broken())
def test_a_broken_update_is_refused_with_its_reason(name: str) -> None:
    bad, words = broken()[name]
    reasons = refuse([update(1), bad, update(2)], [], Limits())
    assert set(reasons) == {0}
    assert words in reasons[0]


def test_honest_updates_pass() -> None:
    updates = [update(client, value=0.1 * (client + 1)) for client in range(10)]
    assert refuse(updates, [0.5, 1.0], Limits()) == {}


def test_an_outsized_update_is_refused_by_ratio_and_by_norm() -> None:
    updates = [update(0), update(1), update(2, value=1e4)]
    assert "times the median" in refuse(updates, [], Limits())[2]
    assert set(refuse(updates, [], Limits(max_norm=0.1))) == {0, 1, 2}


def test_zero_updates_are_no_reason_to_refuse_the_others() -> None:
    assert refuse([update(0, 0.0), update(1, 0.0), update(2)], [], Limits()) == {}


def test_arrival_order_does_not_matter() -> None:
    updates = [update(0), update(1, value=1e5), update(2, value=float("nan"))]
    assert refuse(updates, [], Limits()) == refuse(updates[::-1], [], Limits())


def test_a_stream_is_judged_as_it_comes() -> None:
    taken: list[int] = []

    def coming():
        for client in range(3 * FIRST):
            taken.append(client)
            yield update(client), {}

    judged = Gate(LAYOUT, [], Limits()).judge(coming())
    next(judged)
    assert len(taken) == FIRST  # the usual norm needs these, and no more
    for _ in range(FIRST):
        next(judged)
    assert len(taken) == FIRST + 1


def test_what_is_remembered_is_bounded() -> None:
    gate = Gate(LAYOUT, [1.0] * REMEMBERED, Limits())
    list(gate.judge((update(client, value=0.5), {}) for client in range(40)))
    assert len(gate.norms) == REMEMBERED
    assert gate.norms[-1] == pytest.approx(0.5 * 10**0.5)
