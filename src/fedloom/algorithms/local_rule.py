"""The client half of an algorithm: rules, which change gradients in a client's training, and passes over the data.

Shape legend: B examples of a batch, P trainable parameters, K clients side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedloom.types import Broadcast, Tensors

Correct = Callable[[Tensor, Tensor, Tensors], tuple[Tensor, Tensors]]
"""(grads, params, carry) → (grads, carry); grads and params are flat, shape [P] or [K, P]."""


class Probe(Protocol):
    """Losses and gradients of a client's current batch, for rules that make their own gradient; nothing changes the client."""

    @property
    def examples(self) -> int:
        """Number of examples of the batch."""
        ...

    @property
    def trained(self) -> Tensor:
        """1 for values that the client trains and 0 elsewhere, shape [P]."""
        ...

    @property
    def rate(self) -> float:
        """Learning rate of the step."""
        ...

    def loss(self, params: Tensor) -> Tensor:
        """Return the mean loss of the batch at parameters of shape [P], a scalar."""
        ...

    def gradient(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the batch, a scalar, and its gradient, shape [P], zero for what is not trained."""
        ...

    def per_example(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, shape [B], and its gradient, shape [B, P]."""
        ...

    def stream(self, purpose: str) -> torch.Generator:
        """Return a random stream named by the purpose, the client, the round and the step; on the CPU."""
        ...


Gradient = Callable[[Probe, Tensor, Tensors], tuple[Tensor, Tensor, Tensors]]
"""(probe, params of shape [P], carry) → (loss, gradient of shape [P], carry)."""


def _begin(broadcast: Broadcast, memory: Tensors) -> Tensors:
    return {}


def _correct(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
    return grads, carry


def _finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
    return {}, {}


class LocalRule(NamedTuple):
    """Functions that an algorithm calls in a client's training; `carry` is a dict of tensors that they pass on.

    Every function has a default that changes nothing. At each step the gradient is computed (`gradient`), changed
    (`penalize`), clipped, and changed again (`correct`); the local optimizer gets the result.

    Attributes:
        begin: (broadcast, memory) → carry. `memory` is what this client kept from its last round, or {}.
        correct: Called at every step after clipping; the local optimizer gets its result.
        finish: (carry, steps) → (extras, memory): what to send besides the delta, and what to keep.
            `steps` is the number of optimizer steps taken, at least 1.
        penalize: Called at every step before clipping, so that the term that it adds is clipped together with the
            gradient of the loss; see `clipped`.
        gradient: Makes the gradient in place of backpropagation through the batch's mean loss. Clients with such a rule
            train one after the other.
        start: (broadcast, memory) → the parameters from which the client starts, shape [P], in place of those that were
            sent.
        own: (parameters at the end of training of shape [P], carry) → a model that the client keeps for itself, shape
            [P], and with which it is evaluated. None keeps none.
    """

    begin: Callable[[Broadcast, Tensors], Tensors] = _begin
    correct: Correct = _correct
    finish: Callable[[Tensors, int], tuple[Tensors, Tensors]] = _finish
    penalize: Correct = _correct
    gradient: Gradient | None = None
    start: Callable[[Broadcast, Tensors], Tensor] | None = None
    own: Callable[[Tensor, Tensors], Tensor] | None = None


class Second(NamedTuple):
    """A second pass over a client's data in every round, from the client's own model to its next.

    Attributes:
        name: The name of the pass, which is part of the names of its random streams.
        rule: Its rule; `begin` gets what the server sent, and an empty memory.
        epochs: Epochs, ≥ 1; None is as many as in the first pass.
        rate: Factor on the learning rate, > 0.
    """

    name: str
    rule: LocalRule
    epochs: int | None = None
    rate: float = 1.0


class Final(NamedTuple):
    """A stage after the last round, in which every client trains the global parameters further to get its own model.

    Attributes:
        epochs: Epochs, ≥ 1.
        rate: Factor on `train.lr`, > 0.
    """

    epochs: int = 1
    rate: float = 1.0


PLAIN = LocalRule()
"""The rule that changes nothing in local training."""


def clipped(rule: LocalRule) -> LocalRule:
    """Return a rule whose term in the gradient is clipped together with the gradient of the loss.

    This happens to a penalty that is added to the loss of a Trainer of `transformers`, as in the code of FedMLLM
    (arXiv 2411.14717) and of FedVLMBench (arXiv 2506.09638).

    Example:
        >>> clipped(PLAIN).penalize is PLAIN.correct
        True
    """
    return rule._replace(correct=_correct, penalize=rule.correct)


def chain(first: LocalRule, second: LocalRule) -> LocalRule:
    """Return a rule that applies two rules one after the other; what each carries and keeps stays separate.

    Raises:
        ValueError: Both rules make a gradient, choose the client's start, or keep a model of its own.

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
        if all(one is _correct for one in changes.values()):  # then clipping still bounds every gradient
            return _correct

        def change(grads: Tensor, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensors]:
            carries: dict[str, Tensors] = {}
            for key, one in changes.items():
                grads, carries[key] = one(grads, params, part(carry, key))
            return grads, joined(carries)

        return change

    def finish(carry: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        ends = {key: rule.finish(part(carry, key), steps) for key, rule in rules.items()}
        # Extras keep their plain names, since the server half that reads them does not know of the chain.
        extras = {name: value for sent, _ in ends.values() for name, value in sent.items()}
        return extras, joined({key: memory for key, (_, memory) in ends.items()})

    def only(field: str) -> tuple[str, Any]:
        """Return the rule that has a field which only one rule may have, and the field; None if neither has it."""
        owners = [(key, value) for key, rule in rules.items() if (value := getattr(rule, field)) is not None]
        if len(owners) == 2:
            raise ValueError(f"two rules that each have a {field} of their own cannot go together")
        return owners[0] if owners else ("", None)

    (maker, make), (starter, choose), (keeper, keep) = (only(field) for field in ("gradient", "start", "own"))

    def gradient(probe: Probe, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        loss, grads, own = make(probe, params, part(carry, maker))
        return loss, grads, {**carry, **joined({maker: own})}

    def start(broadcast: Broadcast, memory: Tensors) -> Tensor:
        return choose(broadcast, part(memory, starter))

    def own(end: Tensor, carry: Tensors) -> Tensor:
        return keep(end, part(carry, keeper))

    return LocalRule(
        begin,
        both({key: rule.correct for key, rule in rules.items()}),
        finish,
        both({key: rule.penalize for key, rule in rules.items()}),
        gradient if make else None,
        start if choose else None,
        own if keep else None,
    )
