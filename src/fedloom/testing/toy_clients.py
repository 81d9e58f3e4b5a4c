"""A bench for checking laws: an algorithm with clients that get random gradients and send random deltas."""

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
"""Weights and local steps of the first three clients, from which those of other clients follow."""

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
        """Return the algorithm, made with further arguments."""
        own = {**self.arguments, **more}
        names = [NAME] if self.entry.kind == "server" else ["fedavg", NAME]
        entries = Layered({NAME: self.entry}, ENTRIES)
        given = Given(self.clients, layout=LAYOUT)
        return compose(names, given, lambda name: own if name == NAME else {}, entries)

    def takes(self, argument: str) -> bool:
        """Return whether an experiment can set an argument."""
        parameter = inspect.signature(self.entry.make).parameters.get(argument)
        return parameter is not None and parameter.default is not parameter.empty

    def work(self, client: int) -> tuple[float, int]:
        """Return a client's weight and its number of local steps."""
        return WEIGHTS[client % 3] + client // 3, STEPS[client % 3] + client // 3

    def update(
        self, algorithm: FederatedAlgorithm, state: ServerState, client: int, delta: Tensor, seed: int = 0
    ) -> Update:
        """Return a client's update with a given delta, shape [P], after training on random gradients."""
        weight, steps = self.work(client)
        extras, _ = train(
            algorithm.local,
            algorithm.broadcast(state),
            {},
            [random_vector(f"{seed} gradient {client}", k) for k in range(steps)],
        )
        return Update(client, Params(LAYOUT, delta), weight, extras)

    def cohort(self, algorithm: FederatedAlgorithm, state: ServerState, seed: int = 0) -> list[Update]:
        """Return an update of each client."""
        return [
            self.update(algorithm, state, k, random_vector(f"{seed} delta", k), seed)
            for k in range(self.clients)
        ]

    def after(self, algorithm: FederatedAlgorithm, rounds: int = 2) -> ServerState:
        """Return the server's state after some rounds."""
        state = algorithm.init(Params(LAYOUT, random_vector("start")))
        for seed in range(rounds):
            state, _ = algorithm.apply(state, self.cohort(algorithm, state, seed))
        return state


def random_vector(purpose: str, step: int = -1) -> Tensor:
    """Return a random vector of shape [P]; equal purposes and steps give equal vectors."""
    return torch.randn(LAYOUT.size, generator=torch_stream(0, purpose, step=step))


def train(
    rule: LocalRule, sent: Broadcast, memory: Tensors, gradients: Sequence[Tensor]
) -> tuple[Tensors, Tensors]:
    """Train by a rule on given gradients, each of shape [P], and return the extras and the memory."""
    carry = rule.begin(sent, memory)
    for gradient in gradients:
        _, carry = rule.correct(gradient, sent.params.flat, carry)
    return rule.finish(carry, len(gradients))


def tensors(state: ServerState) -> dict[str, Tensor]:
    """Return all tensors of a server's state, by name."""
    return {"params": state.params.flat, **{f"slot {name}": slot for name, slot in state.slots.items()}}


def require(holds: Any, reason: str) -> None:
    """Raise AssertionError unless something holds."""
    if not holds:
        raise AssertionError(reason)


def require_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], reason: str) -> None:
    """Raise AssertionError unless two sets of tensors are equal to the last bit."""
    require(
        actual.keys() == expected.keys(), f"{reason}: there are {sorted(actual)}, not {sorted(expected)}."
    )
    for name, value in actual.items():
        require(torch.equal(value, expected[name]), f"{reason}: {name} differs.")


def nearly_equal(left: ServerState, right: ServerState) -> bool:
    """Return whether the parameters of two states are equal except for rounding."""
    return torch.allclose(left.params.flat, right.params.flat, rtol=1e-5, atol=1e-6)


def require_refusal(apply: Callable[[], Any], words: str, what: str) -> None:
    """Raise AssertionError unless a call raises an error whose message contains some words."""
    try:
        apply()
    except (ValueError, UserError) as error:
        require(
            words in str(error), f"{what} is refused with {str(error)!r}, which does not contain {words!r}."
        )
    else:
        raise AssertionError(f"{what} is not refused.")


def require_unchanged(arguments: Iterable[Tensors], act: Callable[[], Any], reason: str) -> None:
    """Raise AssertionError if a call changes one of the given tensors."""
    copies = [(part, {name: value.clone() for name, value in part.items()}) for part in arguments]
    act()
    for part, before in copies:
        require_same(part, before, reason)


def memories(bench: Bench, algorithm: FederatedAlgorithm, sent: Broadcast) -> list[Tensors]:
    """Return each client's memory after a round of training."""
    return [
        train(
            algorithm.local,
            sent,
            {},
            [random_vector(f"memory {k}", step) for step in range(bench.work(k)[1])],
        )[1]
        for k in range(bench.clients)
    ]
