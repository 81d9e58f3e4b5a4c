"""Federated algorithms as values: pure functions for the server, and local rules for the clients.

The server half never calls a client; it maps a state and updates to a state. It is put together by `server` from an
aggregate (updates → one delta) and a step (that delta → the next parameters). The client half, a rule of
`fedloom.algorithms.local_rule`, changes how a client trains. All of them act on flat vectors, so that the code of an algorithm
follows the equations of its paper.

Shape legend: P trainable parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from fedloom.algorithms.local_rule import PLAIN, LocalRule, Second, chain
from fedloom.params import Layout, Params, Part, intersection
from fedloom.types import Broadcast, Tensors
from fedloom.wire.messages import Update

Diagnostics = Mapping[str, float]


class TooFew(ValueError):
    """The error for fewer updates than an aggregate needs; the round is not applied."""


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
"""A wrapper: an aggregate → another one, which may, for example, clip every update before it calls the first."""


def _no_slots(params: Params) -> Tensors:
    return {}


class Step(NamedTuple):
    """What a server does with the delta of a round.

    Attributes:
        move: (state, delta of shape [P]) → (next parameters of shape [P], next slots, figures). It may overwrite the delta.
        slots: Start parameters → slots before the first round.
    """

    move: Callable[[ServerState, Tensor], tuple[Tensor, Tensors, Diagnostics]]
    slots: Callable[[Params], Tensors] = _no_slots


class LocalWork(NamedTuple):
    """What the server knows about a client's work in one round before the update arrives.

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
    """The shape and bounds of a float32 tensor that an update carries besides its delta.

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
        combine: (state, updates in client-id order, aggregate) → (state, figures). It changes none of its arguments.
        local: The client half: the rule of the pass over the data whose result is sent.
        extras: Work → the tensors that an update carries besides its delta, by name. An update that lacks one of them, or
            has others, is refused before `apply`; see `Extra`.
        aggregate: The function that makes one delta from updates.
        second: A second pass over a client's data in every round, or None.
        exchanges: Whether parameters and deltas travel. If they do not, server and client rebuild the parameters from
            the method's start and from the extras.
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
        """Return the state after a round, and figures for the record.

        Args:
            state: The state before, which does not change.
            updates: A list in any order, or a stream in client-id order.

        Raises:
            TooFew: There are fewer updates than the aggregate needs.
            ValueError: There is no update, a client has two, or an update has another layout than the state or a weight
                that is not finite and positive.
        """
        return self.combine(state, OnePass(ordered(updates, state.params.layout)), self.aggregate)

    @property
    def personal(self) -> bool:
        """Whether each client ends with its own model, with which it is evaluated."""
        return self.local.own is not None or self.second is not None


def server(
    step: Step,
    aggregate: Aggregate,
    local: LocalRule = PLAIN,
    extras: Callable[[LocalWork], Mapping[str, Extra]] = _no_extras,
) -> FederatedAlgorithm:
    """Make an algorithm from a server step, an aggregate and a local rule.

    Args:
        step: What the server does with the delta of a round.
        aggregate: The function that makes this delta from updates.
        local: The client half.
        extras: The tensors that clients send besides their delta; see `FederatedAlgorithm.extras`.

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
        if delta.shape != state.params.flat.shape:
            right = list(state.params.flat.shape)
            raise ValueError(f"an aggregate made a delta of shape {list(delta.shape)}; it must be {right}")
        figures = {"delta_norm": norm(delta), **figures}
        moved = step.move(state, delta)
        if len(moved) != 3:
            raise ValueError("the move of a Step must return the next values, slots and figures")
        flat, slots, more = moved
        return ServerState(state.params.with_flat(flat), state.round + 1, slots), {**figures, **more}

    return FederatedAlgorithm(init, sent, combine, local, extras, aggregate)


def sent(state: ServerState) -> Broadcast:
    """Return a broadcast of the global parameters and nothing else."""
    return Broadcast(state.params)


def with_rule(algorithm: FederatedAlgorithm, rule: LocalRule) -> FederatedAlgorithm:
    """Return an algorithm with a further local rule, which follows the algorithm's own."""
    return algorithm._replace(local=chain(algorithm.local, rule))


def with_aggregate(algorithm: FederatedAlgorithm, change: Change) -> FederatedAlgorithm:
    """Return an algorithm with a changed aggregate.

    Args:
        algorithm: The algorithm.
        change: Its aggregate → another one, which may call it.
    """
    return algorithm._replace(aggregate=change(algorithm.aggregate))


def positive(**values: float) -> None:
    """Check that settings are positive numbers.

    Raises:
        ValueError: A setting is not finite and above zero; the message names it.
    """
    for name, value in values.items():
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be a positive number")


def not_negative(**values: float) -> None:
    """Check that settings are positive numbers or zero.

    Raises:
        ValueError: A setting is not finite, or below zero; the message names it.
    """
    for name, value in values.items():
        if not (isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be zero or a positive number")


def fraction(**values: float) -> None:
    """Check that settings are at least 0 and below 1.

    Raises:
        ValueError: A setting is not; the message names it.
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


def zero_velocity(params: Params) -> Tensors:
    """Return the slot of a velocity before the first round."""
    return {"velocity": zeros_like(params)}


def moments(tau: float) -> Callable[[Params], Tensors]:
    """Return a function from the start to the slots of a momentum, 0, and of a mean square, τ²."""

    def slots(params: Params) -> Tensors:
        return {"m": zeros_like(params), "v": zeros_like(params) + tau**2}

    return slots


def _all(client: int) -> Part | None:
    return None


def _plain(client: int) -> float:
    return 1.0


class OnePass(Iterator[Update]):
    """A stream of updates that refuses a second pass over it, in which a plain iterator would look like no updates.

    Args:
        updates: The stream.
    """

    def __init__(self, updates: Iterator[Update]) -> None:
        self._updates, self._ended = updates, False

    def __iter__(self) -> Iterator[Update]:
        if self._ended:
            raise ValueError(
                "the updates were read before; they are a stream for one pass, so begin with `updates = list(updates)`"
            )
        return self

    def __next__(self) -> Update:
        update = next(self._updates, None)
        if update is None:
            self._ended = True
            raise StopIteration
        return update


def ordered(updates: Iterable[Update], layout: Layout) -> Iterator[Update]:
    """Check updates against the layout, and yield them in client-id order.

    A list is sorted; anything else is a stream, which must be in order and is passed on at once.

    Raises:
        ValueError: There are no updates, a client has two, a stream is out of order, or an update has another layout or a
            bad weight; the message names the client. An error is raised when its update is reached.
    """
    if isinstance(updates, Sequence):
        updates = sorted(updates, key=lambda update: update.client)
    before: int | None = None
    for update in updates:
        if before is not None and before == update.client:
            raise ValueError(f"client {update.client} sent two updates")
        if before is not None and before > update.client:
            raise ValueError(f"client {update.client} came after client {before}; a stream goes by client id")
        if update.delta.layout != layout:
            raise ValueError(
                f"client {update.client} sent names or shapes that differ from the global model's"
            )
        if not (isfinite(update.weight) and update.weight > 0):
            raise ValueError(
                f"client {update.client} has weight {update.weight}; a weight is finite and positive"
            )
        before = update.client
        yield update
    if before is None:
        raise ValueError("a round needs at least one client update")


@dataclass(frozen=True)
class Budget:
    """The trainable parameters that each client holds, by the client's number.

    Attributes:
        down: The part that is sent to a client, which it holds; None is everything.
        up: The part that it trains and reports, which `down` includes; None is everything.
        scale: Factor on the scale of the client's LoRA adapters, > 0. At the server, whose adapters have the plain scale,
            each B is multiplied by it, so that the products are the client's.
    """

    down: Callable[[int], Part | None] = _all
    up: Callable[[int], Part | None] = _all
    scale: Callable[[int], float] = _plain

    def __and__(self, other: Budget) -> Budget:
        """Return the budget of clients that hold, train and report only what both budgets give them."""
        return Budget(
            lambda client: intersection(self.down(client), other.down(client)),
            lambda client: intersection(self.up(client), other.up(client)),
            lambda client: self.scale(client) * other.scale(client),
        )


EVERYTHING = Budget()
"""The budget of clients that each hold, train and report all, with adapters of the plain scale."""


def one_each(name: str, values: Sequence[int], clients: int, most: int, of: str) -> None:
    """Check that a setting lists a whole number for each client.

    Args:
        name: The setting's name.
        values: The listed numbers.
        clients: Number of clients.
        most: Largest number that is allowed; the smallest is 1.
        of: What `most` is, for the message.

    Raises:
        ValueError: There are more or fewer numbers than clients, or one is not within bounds.
    """
    if len(values) != clients:
        right = str([1] * clients) if clients <= 8 else f"{clients} times 1"  # which any model allows
        raise ValueError(
            f"{name} lists {len(values)} numbers for {clients} clients; it must list one for each, such as {right}"
        )
    for client, value in enumerate(values):
        if type(value) is not int or not 1 <= value <= most:  # true does not count as a number here
            raise ValueError(
                f"{name} gives client {client} {value!r}; it must be a whole number from 1 to {most}, {of}"
            )
