"""What a federated algorithm is: pure functions for the server, and local rules for the clients.

The server half never calls a client; it maps a state and updates to a state. It is put together by `server` from an
aggregate (updates → one delta) and a step (that delta → the next parameters). The client half changes how a client
trains. All of them act on flat vectors, so a page reads like its paper.

Shape legend: P trained values, K clients side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fedloom.algorithms.aggregate import ordered
from fedloom.messages import Update
from fedloom.params import Params
from fedloom.types import Broadcast, Tensors

Diagnostics = Mapping[str, float]


class TooFew(ValueError):
    """Fewer updates than an aggregate needs: the round is not applied."""


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


Aggregate = Callable[[Iterable[Update], ServerState], tuple[Tensor, Diagnostics]]
"""(updates in client-id order, the state before) → (the round's delta as a new tensor of shape [P], figures)."""

Change = Callable[[Aggregate], Aggregate]
"""What wraps an aggregate, such as clipping every update first."""


class Step(NamedTuple):
    """What a server does with the delta of a round.

    Attributes:
        move: (state, delta of shape [P]) → (next parameters of shape [P], next slots, figures). It may overwrite the delta.
        slots: Start parameters → slots before the first round.
    """

    move: Callable[[ServerState, Tensor], tuple[Tensor, Tensors, Diagnostics]]
    slots: Callable[[Params], Tensors] = lambda params: {}


Correct = Callable[[Tensor, Tensor, Tensors], tuple[Tensor, Tensors]]
"""(grads, params, carry) → (grads, carry); grads and params are flat, shape [P] or [K, P]."""


class Probe(Protocol):
    """What a rule with a gradient of its own may ask about the current batch of a client. Nothing it asks changes the client."""

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
    """What an algorithm does inside a client's training; `carry` is a dict of tensors passed along.

    Every function has a default that leaves training alone. At each step the gradient is made (`gradient`), changed
    (`penalize`), clipped, and changed again (`correct`); the local optimizer sees the result.

    Attributes:
        begin: (broadcast, memory) → carry. `memory` is what this client kept from its last round, or {}.
        correct: Called at every step after clipping; the result is what the local optimizer sees.
        finish: (carry, steps) → (extras, memory): what to send besides the delta, and what to keep.
            `steps` is the number of optimizer steps taken, at least 1.
        penalize: Called at every step before clipping, so that what it adds is clipped together with the
            gradient of the loss; see `clipped`.
        gradient: Makes the gradient in place of backpropagation through the batch's mean loss. Clients with such a rule
            train one after the other.
        start: (broadcast, memory) → the parameters that the client begins with, shape [P], in place of those that were
            sent.
        own: (parameters at the end of training of shape [P], carry) → a model that the client keeps for itself, shape
            [P]; it is what the client is evaluated with. None keeps none.
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
        name: Names the pass's random streams.
        rule: Its rule; `begin` gets what the server sent, and an empty memory.
        epochs: Epochs, ≥ 1; None is as many as in the first pass.
        rate: Factor on the learning rate, > 0.
    """

    name: str
    rule: LocalRule
    epochs: int | None = None
    rate: float = 1.0


class LocalWork(NamedTuple):
    """What the server knows of a client's work in one round before the update comes.

    Attributes:
        values: Number P of values in the layout.
        steps: Optimizer steps that the client takes, ≥ 1.
        gradient: Largest norm of a gradient as `LocalRule.correct` receives it.
        rate: Largest learning rate of a step.
    """

    values: int
    steps: int
    gradient: float
    rate: float = 1.0


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


PLAIN = LocalRule()
"""The rule that leaves local training alone."""


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as a value.

    Attributes:
        init: Global parameters → state before the first round.
        broadcast: State → what every client of the round receives; `.params` is the model to evaluate.
        combine: (state, updates in client-id order, aggregate) → (state, figures). It changes nothing it was given.
        local: The client half: the rule of the pass over the data whose result is sent.
        extras: Work → what an update carries besides its delta, by name. An update that lacks one of them, or has
            others, is refused before `apply`.
        aggregate: How updates become one delta.
        second: A second pass over a client's data in every round, or None.
        exchanges: Whether parameters and deltas travel. Where they do not, server and client rebuild the parameters from
            the method's start and what travels as extras.
    """

    init: Callable[[Params], ServerState]
    broadcast: Callable[[ServerState], Broadcast]
    combine: Callable[[ServerState, Iterable[Update], Aggregate], tuple[ServerState, Diagnostics]]
    local: LocalRule
    extras: Callable[[LocalWork], Mapping[str, Extra]]
    aggregate: Aggregate
    second: Second | None = None
    exchanges: bool = True

    def apply(self, state: ServerState, updates: Iterable[Update]) -> tuple[ServerState, Diagnostics]:
        """Take a round's updates into the state.

        Args:
            state: The state before; nothing of it is changed.
            updates: A list in any order, or a stream in client-id order.

        Raises:
            TooFew: Fewer updates than the aggregate needs.
            ValueError: No update at all, a client twice, another layout than the state's, or a weight that is not
                finite and positive.
        """
        return self.combine(state, ordered(updates, state.params.layout), self.aggregate)

    @property
    def personal(self) -> bool:
        """Whether each client ends with a model of its own, which it is evaluated with."""
        return self.local.own is not None or self.second is not None


def server(
    step: Step,
    aggregate: Aggregate,
    local: LocalRule = PLAIN,
    extras: Callable[[LocalWork], Mapping[str, Extra]] = _no_extras,
) -> FederatedAlgorithm:
    """Put an algorithm together.

    Args:
        step: What the server does with the delta of a round.
        aggregate: How updates become that delta.
        local: The client half.
        extras: What clients send besides their delta; see `FederatedAlgorithm.extras`.

    Example:
        >>> from fedloom.algorithms.aggregate import mean
        >>> half = Step(lambda state, delta: (state.params.flat + delta / 2, {}, {}))
        >>> algorithm = server(half, mean())
        >>> state = algorithm.init(Params.of({"x": torch.tensor([1.0])}))
        >>> update = Update(0, Params.of({"x": torch.tensor([4.0])}), weight=10.0)
        >>> state, figures = algorithm.apply(state, [update])
        >>> state.params["x"], figures
        (tensor([3.]), {'delta_norm': 4.0})
    """

    def init(params: Params) -> ServerState:
        return ServerState(params, slots=step.slots(params))

    def combine(
        state: ServerState, updates: Iterable[Update], aggregate: Aggregate
    ) -> tuple[ServerState, Diagnostics]:
        delta, figures = aggregate(updates, state)
        figures = {"delta_norm": norm(delta), **figures}
        flat, slots, more = step.move(state, delta)
        return ServerState(state.params.with_flat(flat), state.round + 1, slots), {**figures, **more}

    return FederatedAlgorithm(init, sent, combine, local, extras, aggregate)


def sent(state: ServerState) -> Broadcast:
    """Send the global parameters and nothing else."""
    return Broadcast(state.params)


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

    Raises:
        ValueError: Both make a gradient, both choose where the client starts, or both keep a model of its own.

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
        if all(one is _correct for one in changes.values()):  # then a clipped gradient stays within its bound
            return _correct

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

    def only(field: str) -> str | None:
        """Return the key of the rule that has a field of which there can be one, or None."""
        having = [key for key, rule in rules.items() if getattr(rule, field) is not None]
        if len(having) == 2:
            raise ValueError(f"two rules that each have a {field} of their own cannot go together")
        return having[0] if having else None

    def gradient(probe: Probe, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        assert maker is not None and (make := rules[maker].gradient) is not None
        loss, grads, own = make(probe, params, part(carry, maker))
        return loss, grads, {**carry, **joined({maker: own})}

    def start(broadcast: Broadcast, memory: Tensors) -> Tensor:
        assert starter is not None and (begun := rules[starter].start) is not None
        return begun(broadcast, part(memory, starter))

    def own(end: Tensor, carry: Tensors) -> Tensor:
        assert keeper is not None and (keep := rules[keeper].own) is not None
        return keep(end, part(carry, keeper))

    maker, starter, keeper = (only(field) for field in ("gradient", "start", "own"))
    return LocalRule(
        begin,
        both({key: rule.correct for key, rule in rules.items()}),
        finish,
        both({key: rule.penalize for key, rule in rules.items()}),
        gradient if maker else None,
        start if starter else None,
        own if keeper else None,
    )


def with_rule(algorithm: FederatedAlgorithm, rule: LocalRule) -> FederatedAlgorithm:
    """Add a local rule to an algorithm, after the algorithm's own."""
    return algorithm._replace(local=chain(algorithm.local, rule))


def with_aggregate(algorithm: FederatedAlgorithm, change: Change) -> FederatedAlgorithm:
    """Change how an algorithm's updates become one delta.

    Args:
        algorithm: The algorithm.
        change: Its aggregate → another, which may call it.
    """
    return algorithm._replace(aggregate=change(algorithm.aggregate))


def positive(**values: float) -> None:
    """Check settings by name.

    Raises:
        ValueError: One is not finite and above zero.
    """
    for name, value in values.items():
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be a positive number")


def not_negative(**values: float) -> None:
    """Check settings by name.

    Raises:
        ValueError: One is not finite, or below zero.
    """
    for name, value in values.items():
        if not (isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be zero or a positive number")


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
