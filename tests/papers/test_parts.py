"""Layer budgets and unequal ranks: two clients worked out by hand, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clients import site_of
from torch import Tensor

from fedloom.algorithms.algorithm import Budget
from fedloom.algorithms.compose import Given, any_layout, make
from fedloom.client.local_training import Trained
from fedloom.client.site import Site
from fedloom.params import Layout, Params
from fedloom.system.errors import UserError
from fedloom.wire.messages import Assignment, Update


def layout_of(rank: int, inputs: int, outputs: int) -> Layout:
    return Layout.of({"llm/q:lora_a": (rank, inputs), "llm/q:lora_b": (outputs, rank), "connector/w": (2,)})


def budget_of(name: str, layout: Layout, clients: int, **arguments: Any) -> Budget:
    return make(name, Given(clients, layout=layout), arguments)


def site_with(budget: Budget, layout: Layout, clients: int) -> Site:
    site = site_of(make("fedavg", clients), layout=layout, clients=clients)
    known = replace(site.method("m"), budget=budget)
    return replace(site, method=lambda method: known)


def trains_to(site: Site, budget: Budget, client: int, sent: Params, own: dict[str, Tensor]) -> Update:
    """Return the update of a client whose training ends at some values of its own scale."""
    job = site.job(Assignment("m", 0, 0, client, sent, down=budget.down(client), up=budget.up(client)))
    end = Params(sent.layout, job.broadcast.params.flat.clone())
    for name, value in own.items():
        end[name].copy_(value)
    return site.update(job, Trained(end.flat, {}, 0.0, 0.0))


def padded(a: Sequence[Any], b: Sequence[Any], rank: int) -> dict[str, Tensor]:
    """Return factors of a client in slots of the server's rank, the last of them zero."""
    left, right = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
    more = rank - len(left)
    return {
        "llm/q:lora_a": torch.nn.functional.pad(left, (0, 0, 0, more)),
        "llm/q:lora_b": torch.nn.functional.pad(right, (0, more)),
    }


def test_unequal_ranks_two_clients() -> None:
    """α = 2, R = 2, so s = 1; client a has rank 1 and s_a = 2, client b rank 2 and s_b = 1; equal weights.

    s_a B_a A_a = 2 · [1; 1] [1 0 0], and s_b B_b A_b = [1; 0] [0 1 0] + [0; 3] [0 0 2]. Folded, B_a is [2; 2]. Slot 1 is the
    mean of both, A [.5 .5 0] and B [1.5; 1]; slot 2 is client b's alone, with its full weight.
    """
    layout = layout_of(2, 3, 2)
    budget = budget_of("ranks", layout, 2, ranks=[1, 2])
    site, zero = site_with(budget, layout, 2), Params.zeros(layout)
    owns = [padded([[1, 0, 0]], [[1], [1]], 2), padded([[0, 1, 0], [0, 0, 2]], [[1, 0], [0, 3]], 2)]
    updates = [trains_to(site, budget, k, zero, own) for k, own in enumerate(owns)]
    products = [update.delta["llm/q:lora_b"] @ update.delta["llm/q:lora_a"] for update in updates]
    assert products[0].tolist() == [[2, 0, 0], [2, 0, 0]]
    assert products[1].tolist() == [[0, 1, 0], [0, 0, 6]]
    algorithm = make("fedavg", 2, {"uniform": True})
    state, _ = algorithm.apply(algorithm.init(zero), updates)
    assert state.params["llm/q:lora_a"].tolist() == [[0.5, 0.5, 0], [0, 0, 2]]
    assert state.params["llm/q:lora_b"].tolist() == [[1.5, 0], [1, 3]]
    # Client a begins the next round with its slot, unfolded; the other is zero, though no method's start here is.
    sent = Assignment("m", 0, 1, 0, state.params, down=budget.down(0), up=budget.up(0))
    begun = site.job(Assignment.from_bytes(sent.to_bytes(), layout)).broadcast.params
    assert begun["llm/q:lora_a"][0].tolist() == [0.5, 0.5, 0]
    assert begun["llm/q:lora_b"][:, 0].tolist() == [0.75, 0.5]
    assert begun["llm/q:lora_a"][1].tolist() == [0, 0, 0] and begun["llm/q:lora_b"][:, 1].tolist() == [0, 0]


def test_slots_weigh_clients_by_their_examples() -> None:
    """Slot 1 of n = 1 and n = 3 examples: (1 · 4 + 3 · 8) / 4 = 7; slot 2 is that of the second client."""
    layout = layout_of(2, 3, 5)
    budget = budget_of("ranks", layout, 3, ranks=[1, 1, 2])
    site, zero = site_with(budget, layout, 3), Params.zeros(layout)
    owns = {0: padded([[4, 0, 0]], [[0]] * 5, 2), 2: padded([[8, 0, 0], [8, 0, 0]], [[0, 0]] * 5, 2)}
    updates = [trains_to(site, budget, k, zero, own) for k, own in owns.items()]
    assert [update.weight for update in updates] == [1, 3]
    state, _ = make("fedavg", 3).apply(make("fedavg", 3).init(zero), updates)
    assert state.params["llm/q:lora_a"].tolist() == [[7, 0, 0], [8, 0, 0]]


@given(st.integers(1, 4), st.integers(0, 9))
def test_the_servers_products_are_the_clients(rank: int, seed: int) -> None:
    """s · B' · A is s_i · B_i · A_i for layers of which inputs, outputs and rank all differ, there and back."""
    layout, alpha = layout_of(4, 3, 5), 6.0
    budget = budget_of("ranks", layout, 1, ranks=[rank])
    site, draw = site_with(budget, layout, 1), torch.Generator().manual_seed(seed)
    own = padded(
        torch.randn(rank, 3, generator=draw).tolist(), torch.randn(5, rank, generator=draw).tolist(), 4
    )
    end = trains_to(site, budget, 0, Params.zeros(layout), own).delta
    expected = alpha / rank * own["llm/q:lora_b"] @ own["llm/q:lora_a"]
    torch.testing.assert_close(alpha / 4 * end["llm/q:lora_b"] @ end["llm/q:lora_a"], expected)
    back = site.job(Assignment("m", 0, 1, 0, end, down=budget.down(0), up=budget.up(0))).broadcast.params
    own_scale = alpha / 4 * budget.scale(0) * back["llm/q:lora_b"][:, :rank] @ back["llm/q:lora_a"][:rank]
    torch.testing.assert_close(own_scale, expected)


BUDGETED = Layout.of(
    {"connector/w": (2,), "llm/embed": (1,)}
    | {f"llm/layers.{layer}.{name}": (1,) for layer in (1, 2, 10) for name in "qv"}
)


@pytest.mark.parametrize(("choose", "one", "two"), [("last", [10], [2, 10]), ("first", [1], [1, 2])])
def test_a_client_trains_the_layers_of_its_budget(choose: str, one: list[int], two: list[int]) -> None:
    """Layers go by number, not by name; what has no number everybody trains; everybody is sent everything."""
    budget = budget_of("layers", BUDGETED, 3, budgets=[1, 2, 3], choose=choose)
    for client, layers in enumerate((one, two)):
        part = budget.up(client)
        assert part is not None
        wanted = {"connector/w", "llm/embed", *(f"llm/layers.{k}.{name}" for k in layers for name in "qv")}
        assert torch.equal(part.mask, BUDGETED.mask(lambda name, wanted=wanted: name in wanted).bool())
    assert budget.up(2) is None
    assert {budget.down(client) for client in range(3)} == {None}
    assert {budget.scale(client) for client in range(3)} == {1.0}


def test_layer_budgets_two_clients() -> None:
    """Client 0 trains layer 1 alone and moves all it trains by 2, client 1 trains both and moves by 6; equal weights."""
    layout = Layout.of({"llm/layers.0.q": (1,), "llm/layers.1.q": (1,), "connector/w": (1,)})
    budget, zero = budget_of("layers", layout, 2, budgets=[1, 2]), Params.zeros(layout)
    site = site_with(budget, layout, 2)
    updates = [
        trains_to(site, budget, client, zero, dict.fromkeys(layout.names, torch.tensor([moved])))
        for client, moved in enumerate((2.0, 6.0))
    ]
    algorithm = make("fedavg", 2, {"uniform": True})
    state, _ = algorithm.apply(algorithm.init(zero), updates)
    assert {name: value.item() for name, value in state.params.items()} == {
        "connector/w": 4.0,
        "llm/layers.0.q": 6.0,
        "llm/layers.1.q": 4.0,
    }


def test_shares_go_together() -> None:
    """A client of rank 2 of 4 that trains the last of two layers trains the first two slots of that layer."""
    layout = Layout.of({f"llm/layers.{k}.q:lora_{x}": (4, 4) for k in range(2) for x in "ab"})
    ranks, budgets = (
        budget_of("ranks", layout, 2, ranks=[2, 4]),
        budget_of("layers", layout, 2, budgets=[1, 2]),
    )
    result = ranks & budgets
    last = layout.mask(lambda name: "layers.1." in name).bool()
    slots, up = ranks.up(0), result.up(0)
    assert slots is not None and up is not None and result.down(0) == slots
    assert torch.equal(up.mask, slots.mask & last)
    assert (result.up(1), result.down(1)) == (None, None)
    assert [result.scale(client) for client in range(2)] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("layers", {}, r"budgets lists 0 numbers for 3 clients; .* such as \[1, 1, 1\]"),
        ("layers", {"budgets": [1, 2]}, "budgets lists 2 numbers for 3 clients"),
        ("layers", {"budgets": [1, 2, 3, 4]}, "budgets lists 4 numbers for 3 clients"),
        ("layers", {"budgets": [1, 0, 2]}, "budgets gives client 1 0; .* from 1 to 256"),
        ("layers", {"budgets": [1, 2, 257]}, "budgets gives client 2 257"),
        ("layers", {"budgets": [1, 2, True]}, "budgets gives client 2 True"),
        ("layers", {"budgets": [1, 2.5, 1]}, r"budgets gives client 1 2\.5"),
        ("layers", {"budgets": ["1", 2, 1]}, "budgets gives client 0 '1'"),
        ("layers", {"budgets": 4}, "budgets is 4; it must be a list"),
        (
            "layers",
            {"budgets": [1, 1, 1], "choose": "middle"},
            "choose is 'middle'; it must be last or first",
        ),
        ("ranks", {}, r"ranks lists 0 numbers for 3 clients; .* such as \[1, 1, 1\]"),
        ("ranks", {"ranks": [4, 4]}, "ranks lists 2 numbers for 3 clients"),
        ("ranks", {"ranks": [4, 5, 1]}, r"ranks gives client 1 5; .* from 1 to 4, which is strategy\.rank"),
        ("ranks", {"ranks": [0, 4, 4]}, "ranks gives client 0 0"),
        ("ranks", {"ranks": [4, 4, 2.0]}, r"ranks gives client 2 2\.0"),
        ("ranks", {"ranks": [4, [2], 4]}, r"ranks gives client 1 \[2\]"),
    ],
)
def test_lists_that_do_not_fit_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"algorithms\.{name}.*{message}"):
        make(name, Given(3, layout=any_layout(4)), arguments)


def test_where_only_the_connector_is_trained_there_is_nothing_to_share_out() -> None:
    for name, arguments in (("layers", {"budgets": [1]}), ("ranks", {"ranks": [1]})):
        with pytest.raises(UserError, match="is trained"):
            make(name, Given(1, layout=any_layout(None)), arguments)
