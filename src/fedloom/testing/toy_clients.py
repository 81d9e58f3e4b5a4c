"""The bench of the laws: an algorithm with clients that see random gradients and send random deltas."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.algorithms import ENTRIES
from fedloom.algorithms.algorithm import FederatedAlgorithm, ServerState
from fedloom.algorithms.compose import Given, compose
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import LocalRule
from fedloom.params import Layout, Params
from fedloom.plugins.plugins import Layered
from fedloom.seeds import torch_stream
from fedloom.system.errors import UserError
from fedloom.types import Broadcast, Tensors
from fedloom.wire.messages import Update

LAYOUT = Layout.of(
    {
        "llm/layers.0.q:lora_a": (2, 3),
        "llm/layers.0.q:lora_b": (4,),
        "llm/layers.1.q:lora_a": (3,),
        "llm/layers.2.q:lora_b": (2,),
        "connector/w": (1, 2),
    }
)
"""Names and shapes of what is trained while laws are checked."""

WEIGHTS, STEPS = (1.0, 5.0, 2.5), (2, 1, 4)
"""Weights and local steps of the first three clients; those of others follow from them."""

NAME = "checked"
"""The name of the checked entry."""


@dataclass(frozen=True)
class Bench:
    """An algorithm that is checked, and its clients.

    Attributes:
        entry: Its entry.
        clients: Number of clients.
        arguments: Its arguments.
    """

    entry: Entry
    clients: int
    arguments: Mapping[str, Any]

    def make(self, **more: Any) -> FederatedAlgorithm:
        """Make the algorithm, with further arguments."""
        own = {**self.arguments, **more}
        names = [NAME] if self.entry.kind == "server" else ["fedavg", NAME]
        entries = Layered({NAME: self.entry}, ENTRIES)
        given = Given(self.clients, layout=LAYOUT)
        return compose(names, given, lambda name: own if name == NAME else {}, entries)

    def takes(self, argument: str) -> bool:
        """Return whether an experiment may set an argument."""
        found = inspect.signature(self.entry.make).parameters.get(argument)
        return found is not None and found.default is not found.empty

    def work(self, client: int) -> tuple[float, int]:
        """Return a client's weight and its number of local steps."""
        return WEIGHTS[client % 3] + client // 3, STEPS[client % 3] + client // 3

    def update(
        self, algorithm: FederatedAlgorithm, state: ServerState, client: int, delta: Tensor, seed: int = 0
    ) -> Update:
        """Let a client see random gradients, and send a delta of shape [P]."""
        weight, steps = self.work(client)
        extras, _ = trained(
            algorithm.local,
            algorithm.broadcast(state),
            {},
            [random(f"{seed} gradient {client}", k) for k in range(steps)],
        )
        return Update(client, Params(LAYOUT, delta), weight, extras)

    def cohort(self, algorithm: FederatedAlgorithm, state: ServerState, seed: int = 0) -> list[Update]:
        """Return one update of each client."""
        return [
            self.update(algorithm, state, k, random(f"{seed} delta", k), seed) for k in range(self.clients)
        ]

    def after(self, algorithm: FederatedAlgorithm, rounds: int = 2) -> ServerState:
        """Return a state that has left its starting values."""
        state = algorithm.init(Params(LAYOUT, random("start")))
        for seed in range(rounds):
            state, _ = algorithm.apply(state, self.cohort(algorithm, state, seed))
        return state


def random(purpose: str, step: int = -1) -> Tensor:
    """Draw a vector of shape [P]; equal purposes and steps give equal vectors."""
    return torch.randn(LAYOUT.size, generator=torch_stream(0, purpose, step=step))


def trained(
    rule: LocalRule, sent: Broadcast, memory: Tensors, gradients: Sequence[Tensor]
) -> tuple[Tensors, Tensors]:
    """Train by a rule that sees given gradients, each of shape [P], and return what is sent and what is kept."""
    carry = rule.begin(sent, memory)
    for gradient in gradients:
        _, carry = rule.correct(gradient, sent.params.flat, carry)
    return rule.finish(carry, len(gradients))


def tensors(state: ServerState) -> dict[str, Tensor]:
    """Return everything that a server remembers, by name."""
    return {"params": state.params.flat, **{f"slot {name}": slot for name, slot in state.slots.items()}}


def require(holds: Any, reason: str) -> None:
    """Raise AssertionError unless something holds."""
    if not holds:
        raise AssertionError(reason)


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], reason: str) -> None:
    """Raise AssertionError unless two sets of tensors are equal to the last bit."""
    require(found.keys() == expected.keys(), f"{reason}: there are {sorted(found)}, not {sorted(expected)}.")
    for name, value in found.items():
        require(torch.equal(value, expected[name]), f"{reason}: {name} differs.")


def close(left: ServerState, right: ServerState) -> bool:
    """Return whether the parameters of two states are equal but for rounding."""
    return torch.allclose(left.params.flat, right.params.flat, rtol=1e-5, atol=1e-6)


def refused(apply: Callable[[], Any], words: str, what: str) -> None:
    """Raise AssertionError unless a call is refused with some words."""
    try:
        apply()
    except (ValueError, UserError) as error:
        require(words in str(error), f"{what} is refused with {str(error)!r}, which does not say {words!r}.")
    else:
        raise AssertionError(f"{what} is not refused.")


def unchanged(given: Iterable[Tensors], act: Callable[[], Any], reason: str) -> None:
    """Raise AssertionError where an act changes one of the tensors that it was given."""
    kept = [(part, {name: value.clone() for name, value in part.items()}) for part in given]
    act()
    for part, before in kept:
        require_same(part, before, reason)


def memories(bench: Bench, algorithm: FederatedAlgorithm, sent: Broadcast) -> list[Tensors]:
    """Return what each client keeps after a round of training."""
    return [
        trained(algorithm.local, sent, {}, [random(f"memory {k}", step) for step in range(bench.work(k)[1])])[
            1
        ]
        for k in range(bench.clients)
    ]
