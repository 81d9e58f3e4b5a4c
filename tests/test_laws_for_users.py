"""`fedloom.testing` finds each law that a user's algorithm breaks, and describes how."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from fedloom.algorithms import ENTRIES
from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import Aggregate, Diagnostics, FederatedAlgorithm, ServerState, Step, server
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import averaging, fedavg
from fedloom.algorithms.local_rule import PLAIN, LocalRule
from fedloom.system.errors import UserError
from fedloom.testing import LAWS, LawsBroken, check_algorithm
from fedloom.testing.toy_clients import LAYOUT
from fedloom.types import Broadcast, Tensors
from fedloom.wire.messages import Update

KEPT: list[Tensor] = []
"""What no server may remember."""


def of_deltas(combine: Callable[[Iterable[Update], ServerState], Tensor]) -> FederatedAlgorithm:
    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
        return combine(updates, state), {}

    return server(averaging(1.0), aggregate)


def of_rule(rule: LocalRule) -> FederatedAlgorithm:
    return server(averaging(1.0), mean(), rule)


def stepping(move: Callable[[ServerState, Tensor], tuple[Tensor, Tensors]]) -> FederatedAlgorithm:
    return server(Step(lambda state, delta: (*move(state, delta), {})), mean())


def median(*, lr: float = 1.0) -> FederatedAlgorithm:
    return server(averaging(lr), _median)


def _median(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
    return torch.stack([update.delta.flat for update in updates]).median(dim=0).values, {}


def in_place(updates: Iterable[Update], state: ServerState) -> Tensor:
    """Sum into the first client's delta."""
    first, *rest = updates
    for update in rest:
        first.delta.flat.add_(update.delta.flat)
    return first.delta.flat.clone()


def once_more(updates: Iterable[Update], state: ServerState) -> Tensor:
    """Remember outside of the state."""
    delta = mean()(updates, state)[0]
    KEPT.append(delta.clone())
    return delta + 0.1 * sum(KEPT[:-1], torch.zeros(LAYOUT.size))


def changing(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
    return grads.add_(1.0), carry


def one_norm(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
    """Divide by the norm of all clients together."""
    return grads / grads.norm(), carry


def zeros(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    def broadcast(state: ServerState) -> Broadcast:
        return Broadcast(state.params.with_flat(torch.zeros_like(state.params.flat)))

    return algorithm._replace(broadcast=broadcast)


def deaf(*, lr: float = 1.0) -> FederatedAlgorithm:
    """Accept an argument and ignore it."""
    return server(averaging(1.0), mean())


def summed(updates: Iterable[Update], state: ServerState) -> Tensor:
    return sum((update.weight * update.delta.flat for update in updates), torch.zeros(LAYOUT.size))


BROKEN: dict[str, tuple[Callable[..., FederatedAlgorithm] | FederatedAlgorithm, str]] = {
    "zero deltas": (stepping(lambda state, delta: (state.params.flat + delta + 1, {})), "changed"),
    "order": (of_deltas(once_more), "the order"),
    "inputs": (of_deltas(in_place), "delta differs"),
    "local inputs": (of_rule(PLAIN._replace(correct=changing)), "gradient differs"),
    "announced": (
        of_rule(PLAIN._replace(finish=lambda carry, steps: ({"more": torch.ones(1)}, {}))),
        "sends ['more']",
    ),
    "scale of weights": (of_deltas(summed), "the result differs"),
    "weights matter": (median, "other weights the result is the same"),
    "proportional": (deaf, "do not move three times as far"),
    "shapes": (stepping(lambda state, delta: (state.params.flat + delta, {"new": delta})), "slots"),
    "broadcast": (zeros(fedavg()), "Other parameters are sent"),
    "agreement": (of_deltas(summed), "The result differs"),
    "saving": (of_deltas(once_more), "result differs"),
    "stacks": (of_rule(PLAIN._replace(correct=one_norm)), "gradient of client 0"),
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_law_is_named_with_the_reason(law: str) -> None:
    algorithm, reason = BROKEN[law]
    KEPT.clear()
    with pytest.raises(LawsBroken) as caught:
        check_algorithm(algorithm)
    (line,) = (line for line in str(caught.value).splitlines() if line.startswith(f"broken: {law}: "))
    assert LAWS[law].about in line and reason in line


def test_every_law_can_be_broken_except_those_that_apply_always_keeps() -> None:
    assert LAWS.keys() - BROKEN.keys() == {"stream", "bad cohorts"}


def test_a_law_that_is_not_promised_is_not_checked() -> None:
    reason = "A median counts every client alike."
    laws = check_algorithm(Entry(median, "server", "median", "", opts_out={"weights matter": reason}))
    assert "weights matter" not in laws.held and f"not promised: weights matter: {reason}" in str(laws)
    assert set(laws.held) == LAWS.keys() - {"weights matter"}


def test_parts_are_checked_as_they_are_added_to_fedavg() -> None:
    def half(own: Aggregate) -> Aggregate:
        def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[Tensor, Diagnostics]:
            delta, figures = own(updates, state)
            return delta / 2, figures

        return aggregate

    entries = {
        "wrapper": Entry(lambda: half, "wrapper", "half", ""),
        "rule": ENTRIES["proximal"],
        "aggregate": Entry(mean, "aggregate", "mean", ""),
    }
    for entry in entries.values():
        assert set(check_algorithm(entry, clients=5).held) >= LAWS.keys() - {"proportional"}


@pytest.mark.parametrize(
    ("algorithm", "arguments", "message"),
    [
        (3, {}, "must be an Entry or a function"),
        (lambda x: x, {}, "has the argument 'x' without a default"),
        (ENTRIES["fedkseed"], {}, "it sends no values"),
        (ENTRIES["prompt"], {}, "there are no laws for a prompt"),
        (fedavg, {"clients": 2}, "clients is 2; it must be at least 3"),
        (fedavg, {"lr": -1.0}, "lr is -1.0"),
        (fedavg, {"momentum": 0.5}, '"momentum" is not a known argument'),
        (Entry(fedavg, "server", "mine", "", opts_out={"wieghts": "no"}), {}, "there is no law 'wieghts'"),
    ],
)
def test_mistakes_are_reported_in_one_message(algorithm: object, arguments: dict, message: str) -> None:
    with pytest.raises((UserError, LawsBroken), match=message):
        check_algorithm(algorithm, **arguments)  # type: ignore[arg-type]
