"""Train a method: its stages, their rounds, their commits, their learning curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from fedloom.algorithms import configured, make
from fedloom.algorithms.base import FederatedAlgorithm, with_rule
from fedloom.algorithms.wrap import adaptive
from fedloom.answering import answers_of, clause_of, validated
from fedloom.backends import train_runs
from fedloom.client.evaluate import render
from fedloom.client.train import OWN, learning_rate
from fedloom.engine.rounds import Best, Run, Schedule, Standing
from fedloom.engine.store import commit, last_commit, opened
from fedloom.measure import slices_of
from fedloom.methods import Method
from fedloom.params import Params
from fedloom.scenarios.plan import Plan, Share
from fedloom.setting import Setting
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.masks import own_start, shared_mask, trained_mask
from fedloom.tuning.svd import svd_start
from fedloom.types import Conversation, Presence

CLIENTS_HELD = 1024
"""Clients whose rendered examples are kept from round to round."""


def algorithm_of(setting: Setting, method: Method) -> FederatedAlgorithm:
    """Make a method's algorithm; references train with plain FedAvg over their one client."""
    base = method.base if method.federated else "fedavg"
    arguments = setting.experiment.arguments(base) if method.federated else {}
    algorithm = make(base, len(setting.plan.clients), arguments)
    if "adaptive" in method.modifiers:
        rule = partial(adaptive, setting.tuned.layout)
        chosen = setting.experiment.adaptive.model_dump()
        algorithm = with_rule(algorithm, configured("algorithms.adaptive", rule, chosen))
    return algorithm


def _start(tuned: Tuned, method: Method) -> Params:
    """Return what a method's first round broadcasts: YOCO's adapters come from the weights they adapt."""
    return svd_start(tuned) if method.base == "yoco" else tuned.start


def conversations_of(setting: Setting, share: Share, method: Method) -> list[Conversation]:
    """Render a client's examples, showing what it holds, with the method's prompt."""
    examples = [setting.data.train[index] for index in share.indices]
    presence = [Presence(bool(i), bool(t)) for i, t in zip(share.image, share.text, strict=True)]
    answer = setting.experiment.evaluate.answer
    return render(examples, presence, answer, clause=clause_of(setting, method))


def train_method(
    setting: Setting, method: Method, name: str, plan: Plan, servers: Sequence[tuple[int | None, range]]
) -> list[Standing]:
    """Train a method's servers, stage by stage.

    Args:
        setting: What all methods share.
        method: The method.
        name: Its name.
        plan: Who holds what.
        servers: For each training the client that trains alone, or None, and the training's clients.

    Returns:
        Where they stand at the end, in the order of `servers`.

    Raises:
        UserError: One of them cannot go on.
    """

    @lru_cache(maxsize=CLIENTS_HELD)
    def conversations(client: int) -> list[Conversation]:
        return conversations_of(setting, plan.clients[client], method)

    standings: Sequence[Standing | None] = [None] * len(servers)
    for number in range(len(setting.stages)):
        label = f"{name}, stage {number + 1}" if len(setting.stages) > 1 else name
        runs = [
            _training(setting, method, name, conversations, server, number, before)
            for server, before in zip(servers, standings, strict=True)
        ]
        standings = train_runs(setting, label, runs)
    return [standing for standing in standings if standing is not None]


def _training(
    setting: Setting,
    method: Method,
    name: str,
    conversations: Callable[[int], Sequence[Conversation]],
    server: tuple[int | None, range],
    number: int,
    before: Standing | None,
) -> Run:
    """Set up one stage of one training: from its last commit, from the stage before, or from the start."""
    (alone, clients), layout, stage = server, setting.tuned.layout, setting.stages[number]
    last = number == len(setting.stages) - 1
    folder = setting.folder / "methods" / name / ("" if alone is None else f"client-{alone}")
    folder = folder if last else folder / f"stage-{number + 1}"
    algorithm = algorithm_of(setting, method)
    train = setting.experiment.train.model_copy(update={"rounds": setting.rounds[number]})
    seed, done_before = setting.experiment.seed, sum(setting.rounds[:number])
    schedule = Schedule(train.rounds, clients, train.cohort, seed, train.sampler)
    folder.mkdir(parents=True, exist_ok=True)  # only here: a folder that is removed later stays so
    of = setting.of(name, alone, number)
    standing = last_commit(folder, layout, setting.damaged, of)
    if standing is None and before is None:
        standing = Standing(algorithm.init(_start(setting.tuned, method)))
    elif standing is None and before is not None:  # a stage has a fresh server; what was sent adds up
        params = algorithm.broadcast(before.state).params
        standing = Standing(algorithm.init(params), up=before.up, down=before.down, seconds=before.seconds)
    assert standing is not None
    # Who trains alone, or on all data, has nobody to keep anything from.
    shared = shared_mask(layout, stage) if method.federated else None

    def committed(now: Standing, log: dict[str, Any]) -> Standing:
        done, every = now.state.round, setting.experiment.evaluate.every
        lr = learning_rate(train, done - 1)
        row = {"method": name, "client": alone, "lr": lr, **log, "round": log["round"] + done_before}
        setting.record.append("round", row)
        final, best = last and done == schedule.rounds, setting.experiment.evaluate.round == "best"
        if (every and not final and done % every == 0) or (final and best):
            total = done + done_before
            if alone is None and shared is None:
                models: dict[int | None, Params] = {None: algorithm.broadcast(now.state).params}
                answers_of(setting, models, method, name, {None: total}, slices_of(setting.data.test)[0])
            now = _validated(setting, method, name, now, alone, number, total)
        commit(folder, now, setting.record.size, of)
        return now

    return Run(
        algorithm,
        standing,
        schedule,
        conversations,
        train,
        setting.experiment.gate,
        partial(opened, folder),
        committed,
        number,
        trained_mask(layout, stage),
        shared,
    )


def models_of(
    setting: Setting, method: Method, standing: Standing, alone: int | None = None, stage: int = -1
) -> dict[int | None, Params]:
    """Return the global model, the one of a client that trains alone, or each client's own where parts are personal."""
    if not method.federated:
        return {alone: standing.state.params}
    params = algorithm_of(setting, method).broadcast(standing.state).params
    shared = shared_mask(setting.tuned.layout, setting.stages[stage])
    if shared is None:
        return {None: params}
    return {
        client: own_start(params, standing.memories.get(client, {}).get(OWN), shared)
        for client in range(len(setting.plan.clients))
    }


def _validated(
    setting: Setting, method: Method, name: str, now: Standing, alone: int | None, stage: int, total: int
) -> Standing:
    """Validate a round, and remember its models where they are the best of the last stage so far."""
    if setting.validation is None:
        return now
    models = models_of(setting, method, now, alone, stage)
    found = validated(setting, models, method, name, dict.fromkeys(models, total))
    if setting.experiment.evaluate.round != "best" or stage != len(setting.stages) - 1 or found is None:
        return now
    if now.best is not None and found["score"] <= now.best.score:
        return now
    return replace(now, best=Best(total, found["score"], models))
