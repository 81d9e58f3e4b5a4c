"""What a federated algorithm is: four pure functions for the server and four for the client.

The server half never calls a client; it maps a state and updates to a state. The client half changes
gradients while the client trains. Both act on flat vectors, so a page reads like its paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from fedloom.messages import Update
from fedloom.params import Params
from fedloom.types import Broadcast, Tensors

Diagnostics = Mapping[str, float]


@dataclass(frozen=True)
class ServerState:
    """All that a server remembers between rounds.

    Attributes:
        params: The global parameters.
        round: Number of rounds applied so far.
        slots: Named tensors of the algorithm (momenta, control variates); saved as they are.
    """

    params: Params
    round: int = 0
    slots: Tensors = field(default_factory=dict[str, Tensor])


Correct = Callable[[Tensor, Tensor, Tensors], tuple[Tensor, Tensors]]
"""(grads, params, carry) → (grads, carry); grads and params are flat, shape [P] or [K, P]."""


def _begin(broadcast: Broadcast, memory: Tensors) -> Tensors:
    return {}


def _correct(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
    return grads, carry


def _finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
    return {}, {}


class LocalRule(NamedTuple):
    """What an algorithm does inside a client's training; `carry` is a dict of tensors passed along.

    Attributes:
        begin: (broadcast, memory) → carry. `memory` is what this client kept from its last round, or {}.
        correct: Called at every step after clipping; the result is what the local optimizer sees.
        finish: (carry, steps) → (extras, memory): what to send besides the delta, and what to keep.
            `steps` is the number of optimizer steps taken, at least 1.
        penalize: Called at every step before clipping, so that what it adds is clipped together with the
            gradient of the loss; see `clipped`.
    """

    begin: Callable[[Broadcast, Tensors], Tensors]
    correct: Correct
    finish: Callable[[Tensors, int], tuple[Tensors, Tensors]]
    penalize: Correct = _correct


class LocalWork(NamedTuple):
    """What the server knows of a client's work in one round before the update comes.

    Attributes:
        values: Number P of values in the layout.
        steps: Optimizer steps that the client takes, ≥ 1.
        gradient: Largest norm of a gradient as `LocalRule.correct` receives it.
    """

    values: int
    steps: int
    gradient: float


class Extra(NamedTuple):
    """What a tensor that an update carries besides its delta has to be: float32, of this shape, within these bounds.

    Attributes:
        shape: Its shape.
        most: Largest Euclidean norm.
        least: Smallest value.
    """

    shape: tuple[int, ...]
    most: float
    least: float = -inf


def _no_extras(work: LocalWork) -> Mapping[str, Extra]:
    return {}


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as a value.

    Attributes:
        init: Global parameters → state before the first round.
        broadcast: State → what every client of the round receives; `.params` is the model to evaluate.
        apply: (state, updates) → (state, diagnostics). Takes updates in any order, sums in client-id
            order, changes nothing it was given, and raises ValueError for no update at all, for a
            layout other than the state's, and for a weight that is not finite and positive.
        local: The client half.
        extras: Work → what an update carries besides its delta, by name. An update that lacks one of them, or has
            others, is refused before `apply`.
    """

    init: Callable[[Params], ServerState]
    broadcast: Callable[[ServerState], Broadcast]
    apply: Callable[[ServerState, Iterable[Update]], tuple[ServerState, Diagnostics]]
    local: LocalRule
    extras: Callable[[LocalWork], Mapping[str, Extra]] = _no_extras


PLAIN = LocalRule(_begin, _correct, _finish)
"""The rule that leaves local training alone."""


def clipped(rule: LocalRule) -> LocalRule:
    """Clip what a rule adds to the gradient together with the gradient of the loss.

    That is what becomes of a penalty which is added to the loss of a Trainer of `transformers`, as in the
    code of FedMLLM (arXiv 2411.14717) and of FedVLMBench (arXiv 2506.09638).

    Example:
        >>> clipped(PLAIN).penalize is PLAIN.correct
        True
    """
    return rule._replace(correct=_correct, penalize=rule.correct)


def chain(first: LocalRule, second: LocalRule) -> LocalRule:
    """Apply two rules one after the other, keeping what each carries, sends and remembers apart.

    Example:
        >>> chain(PLAIN, PLAIN).finish({}, 1)
        ({}, {})
    """
    rules = {"0": first, "1": second}

    def part(tensors: Tensors, key: str) -> Tensors:
        return {name[2:]: value for name, value in tensors.items() if name.startswith(f"{key}.")}

    def joined(parts: Mapping[str, Tensors]) -> Tensors:
        return {f"{key}.{name}": value for key, tensors in parts.items() for name, value in tensors.items()}

    def begin(broadcast: Broadcast, memory: Tensors) -> Tensors:
        return joined({key: rule.begin(broadcast, part(memory, key)) for key, rule in rules.items()})

    def both(changes: Mapping[str, Correct]) -> Correct:
        def change(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
            carries: dict[str, Tensors] = {}
            for key, one in changes.items():
                grads, carries[key] = one(grads, params, part(carry, key))
            return grads, joined(carries)

        return change

    def finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        ends = {key: rule.finish(part(carry, key), steps) for key, rule in rules.items()}
        # Extras keep their plain names: the server half that reads them knows nothing of the chain.
        extras = {name: value for sent, _ in ends.values() for name, value in sent.items()}
        return extras, joined({key: memory for key, (_, memory) in ends.items()})

    correct = both({key: rule.correct for key, rule in rules.items()})
    penalize = both({key: rule.penalize for key, rule in rules.items()})
    return LocalRule(begin, correct, finish, penalize)


def with_rule(algorithm: FederatedAlgorithm, rule: LocalRule) -> FederatedAlgorithm:
    """Add a local rule to an algorithm, after the algorithm's own."""
    return algorithm._replace(local=chain(algorithm.local, rule))


def positive(**values: float) -> None:
    """Check settings by name.

    Raises:
        ValueError: One is not finite and above zero.
    """
    for name, value in values.items():
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be a positive number")


def fraction(**values: float) -> None:
    """Check settings by name.

    Raises:
        ValueError: One is not at least 0 and below 1.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")


def norm(vector: Tensor) -> float:
    """Return the Euclidean norm of a flat vector, for a diagnostic."""
    return sqrt(float(vector.dot(vector)))


def zeros_like(params: Params) -> Tensor:
    """Return zeros of shape [P] for a slot."""
    return torch.zeros_like(params.flat)
