"""The laws of federated algorithms: a function that checks each, and a table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, permutations
from math import isfinite
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedloom.algorithms.algorithm import LocalWork, ServerState
from fedloom.algorithms.local_rule import LocalRule
from fedloom.params import Layout, Params
from fedloom.testing.toy_clients import (
    LAYOUT,
    Bench,
    memories,
    nearly_equal,
    random_vector,
    require,
    require_refusal,
    require_same,
    require_unchanged,
    tensors,
    train,
)
from fedloom.types import Broadcast, Tensors
from fedloom.wire.messages import Update


def _zero_deltas(bench: Bench) -> None:
    algorithm = bench.make()
    state = algorithm.init(Params(LAYOUT, random_vector("start")))
    updates = [bench.update(algorithm, state, k, torch.zeros(LAYOUT.size)) for k in range(bench.clients)]
    following, _ = algorithm.apply(state, updates)
    require(torch.equal(following.params.flat, state.params.flat), "The parameters changed.")


def _order(bench: Bench) -> None:
    algorithm = bench.make()
    state = bench.after(algorithm)
    updates = bench.cohort(algorithm, state, 7)
    expected, figures = algorithm.apply(state, updates)
    for order in islice(permutations(updates), 24):
        actual, actual_figures = algorithm.apply(state, order)
        who = [update.client for update in order]
        require_same(tensors(actual), tensors(expected), f"In the order {who} the result differs")
        require(actual_figures == figures, f"In the order {who} the figures differ.")


def _stream(bench: Bench) -> None:
    algorithm = bench.make()
    state = bench.after(algorithm)
    updates = bench.cohort(algorithm, state, 7)
    expected, figures = algorithm.apply(state, updates)
    actual, actual_figures = algorithm.apply(state, iter(updates))
    require_same(tensors(actual), tensors(expected), "The result of a stream differs")
    require(actual_figures == figures, "The figures of a stream differ.")
    backwards = iter(updates[::-1])
    require_refusal(lambda: algorithm.apply(state, backwards), "goes by client id", "A stream out of order")


def _inputs(bench: Bench) -> None:
    algorithm = bench.make()
    state = bench.after(algorithm)
    updates = bench.cohort(algorithm, state, 7)
    arguments = [tensors(state), *(u.extras for u in updates), *({"delta": u.delta.flat} for u in updates)]
    require_unchanged(arguments, lambda: algorithm.apply(state, updates), "apply changed its arguments")


def _local_inputs(bench: Bench) -> None:
    algorithm = bench.make()
    sent, rule = algorithm.broadcast(bench.after(algorithm)), algorithm.local
    memory = memories(bench, algorithm, sent)[0]
    gradient, params = random_vector("grads"), random_vector("params")
    carry = rule.begin(sent, memory)

    def train() -> None:
        _, later = rule.correct(gradient, params, carry)
        rule.finish(later, 1)

    inputs = {"gradient": gradient, "parameters": params, "sent parameters": sent.params.flat}
    require_unchanged([inputs, memory, sent.extras, carry], train, "The local rule changed its arguments")


def _announced(bench: Bench) -> None:
    algorithm = bench.make()
    state, rule = bench.after(algorithm), algorithm.local
    for client in range(bench.clients):
        sign, steps = (-1) ** client, bench.work(client)[1]
        sent, memory = algorithm.broadcast(state), dict[str, Tensor]()
        first = sign * random_vector("same")
        for gradient in (first, -first):  # control variates are longest where gradients change their sign
            extras, later = train(rule, sent, memory, [gradient] * steps)
            memory = dict(later)
            announced = algorithm.extras(LocalWork(LAYOUT.size, steps, 1.001 * float(gradient.norm())))
            reason = f"A client sends {sorted(extras)}, but {sorted(announced)} are announced."
            require(extras.keys() == announced.keys(), reason)
            for name, bounds in announced.items():
                value = extras[name]
                right = value.dtype == torch.float32 and tuple(value.shape) == bounds.shape
                require(
                    right,
                    f"{name} is {value.dtype} of shape {tuple(value.shape)}; {bounds.shape} is announced.",
                )
                within = float(value.norm()) <= bounds.most and float(value.min()) >= bounds.least
                require(within, f"{name} leaves the bounds {bounds}.")


def _scale(bench: Bench) -> None:
    algorithm = bench.make()
    state = bench.after(algorithm)
    updates = bench.cohort(algorithm, state, 7)
    scaled = [Update(u.client, u.delta, u.weight * 137.5, u.extras) for u in updates]
    same = nearly_equal(algorithm.apply(state, scaled)[0], algorithm.apply(state, updates)[0])
    require(same, "With all weights multiplied by 137.5 the result differs.")


def _weights(bench: Bench) -> None:
    for uniform in (True, False) if bench.takes("uniform") else (None,):
        algorithm = bench.make() if uniform is None else bench.make(uniform=uniform)
        state = algorithm.init(Params(LAYOUT, random_vector("start")))
        updates = bench.cohort(algorithm, state)
        others = [Update(u.client, u.delta, 1.0 + u.client, u.extras) for u in updates]
        actual, expected = algorithm.apply(state, others)[0], algorithm.apply(state, updates)[0]
        same = torch.equal(actual.params.flat, expected.params.flat)
        reason = (
            "With uniform=True weights matter." if uniform else "With other weights the result is the same."
        )
        require(same == bool(uniform), reason)


def _proportional(bench: Bench) -> None:
    moves: list[Tensor] = []
    for lr in (0.1, 0.3):
        algorithm = bench.make(lr=lr)
        state = algorithm.init(Params.zeros(LAYOUT))
        moves.append(algorithm.apply(state, bench.cohort(algorithm, state))[0].params.flat)
    require(moves[0].any(), "The parameters did not move.")
    require(
        torch.allclose(moves[1], 3 * moves[0], rtol=1e-5, atol=1e-6),
        "With three times the lr the parameters do not move three times as far.",
    )


def _shapes(bench: Bench) -> None:
    algorithm = bench.make()
    state = algorithm.init(Params(LAYOUT, random_vector("start")))
    following, figures = algorithm.apply(state, bench.cohort(algorithm, state))
    require(following.params.layout == LAYOUT, "The layout of the parameters changed.")
    require(
        following.round == state.round + 1, f"After one more round the state's round is {following.round}."
    )
    before, now = ({k: (v.shape, v.dtype) for k, v in moment.slots.items()} for moment in (state, following))
    require(before == now, f"The slots were {before} and became {now}.")
    fine = all(isinstance(value, float) and isfinite(value) for value in figures.values())
    require(fine, f"The figures are {dict(figures)}; each must be a finite float.")
    require(figures.get("delta_norm", 1.0) > 0, "The norm of the deltas is 0, although clients sent some.")


def _broadcast(bench: Bench) -> None:
    algorithm = bench.make()
    state = bench.after(algorithm)
    same = torch.equal(algorithm.broadcast(state).params.flat, state.params.flat)
    require(same, "Other parameters are sent.")


def _agreement(bench: Bench) -> None:
    algorithm = bench.make()
    state = bench.after(algorithm)
    agreed = bench.update(algorithm, state, 0, random_vector("agreed"))
    single, _ = algorithm.apply(state, [agreed])
    every = [Update(k, agreed.delta, bench.work(k)[0], agreed.extras) for k in range(bench.clients)]
    require(nearly_equal(single, algorithm.apply(state, every)[0]), "The result differs.")


def _bad_cohorts(bench: Bench) -> None:
    algorithm = bench.make()
    state = bench.after(algorithm)
    first, *others = good = bench.cohort(algorithm, state)
    other = Layout.of({name: shape[::-1] for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True)})
    strange = Update(others[-1].client, Params(other, others[-1].delta.flat), 1.0, others[-1].extras)
    require_refusal(lambda: algorithm.apply(state, []), "at least one", "An empty cohort")
    require_refusal(
        lambda: algorithm.apply(state, [*good, good[1]]), "client 1 sent two", "A second update of a client"
    )
    require_refusal(
        lambda: algorithm.apply(state, [*good[:-1], strange]), "sent names or shapes", "Another layout"
    )
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        wrong = [Update(0, first.delta, weight, first.extras), *others]
        require_refusal(
            lambda cohort=wrong: algorithm.apply(state, cohort), "client 0 has weight", f"The weight {weight}"
        )


def _saving(bench: Bench) -> None:
    algorithm = bench.make()
    state = bench.after(algorithm)
    loaded = load(save(tensors(state)))
    slots = {name.removeprefix("slot "): value for name, value in loaded.items() if name != "params"}
    resumed = ServerState(Params(LAYOUT, loaded["params"]), state.round, slots)
    for seed in range(2):
        state, _ = algorithm.apply(state, bench.cohort(algorithm, state, seed))
        resumed, _ = algorithm.apply(resumed, bench.cohort(algorithm, resumed, seed))
    require_same(tensors(resumed), tensors(state), "The result differs")


def check_stacking(rule: LocalRule, sent: Broadcast, memories: Sequence[Tensors]) -> None:
    """Raise AssertionError if a rule treats clients side by side differently from each client alone."""
    count = range(len(memories))
    grads, params = (torch.stack([random_vector(kind, k) for k in count]) for kind in ("grads", "params"))
    carries = [rule.begin(sent, memory) for memory in memories]
    stacked = {key: torch.stack([carry[key] for carry in carries]) for key in carries[0]}
    corrected, later = rule.correct(grads, params, stacked)
    for k, carry in enumerate(carries):
        alone, own = rule.correct(grads[k], params[k], carry)
        require(torch.equal(corrected[k], alone), f"The gradient of client {k} differs.")
        require_same({key: value[k] for key, value in later.items()}, own, f"What client {k} carries differs")


def _stacks(bench: Bench) -> None:
    algorithm = bench.make()
    sent = algorithm.broadcast(bench.after(algorithm))
    check_stacking(algorithm.local, sent, memories(bench, algorithm, sent))


def _always(bench: Bench) -> bool:
    del bench
    return True


class Law(NamedTuple):
    """A law.

    Attributes:
        about: The law in one sentence.
        check: Function that raises AssertionError if the law does not hold.
        applies: Function that returns whether the law applies to an algorithm.
    """

    about: str
    check: Callable[[Bench], None]
    applies: Callable[[Bench], bool] = _always


LAWS: Mapping[str, Law] = {
    "zero deltas": Law("Zero deltas leave the parameters unchanged.", _zero_deltas),
    "order": Law("The order in which updates arrive does not matter, to the last bit.", _order),
    "stream": Law("A stream of updates gives the same result as a list.", _stream),
    "inputs": Law("The server does not change its arguments.", _inputs),
    "local inputs": Law("The local rule does not change its arguments.", _local_inputs),
    "announced": Law("Clients send exactly the announced tensors besides their deltas.", _announced),
    "scale of weights": Law("Multiplying all weights by a number changes nothing.", _scale),
    "weights matter": Law("A client with a larger weight counts more, unless uniform=True.", _weights),
    "proportional": Law(
        "The first step is proportional to lr.", _proportional, lambda bench: bench.takes("lr")
    ),
    "shapes": Law("Names, shapes and types are kept, and figures are floats.", _shapes),
    "broadcast": Law("The server sends the global parameters.", _broadcast),
    "agreement": Law("Several clients with equal updates give the same result as one of them.", _agreement),
    "bad cohorts": Law("Impossible cohorts are refused.", _bad_cohorts),
    "saving": Law("Saving and loading a state changes no bit.", _saving),
    "stacks": Law("Clients that train side by side get the same results as each alone.", _stacks),
}
"""The laws by name; `Entry.opts_out` takes these names."""
