"""Train a method: its stages, their rounds, their checkpoints, their learning curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedloom.algorithms.base import Budget, FederatedAlgorithm
from fedloom.answering import answers_of, validated
from fedloom.backends import backend_of, train_runs
from fedloom.client.schedule import learning_rate
from fedloom.client.site import Profile, Question
from fedloom.engine.rounds import Best, Run, Schedule, Standing
from fedloom.engine.store import commit, last_commit
from fedloom.folder import METHODS
from fedloom.measure import slices_of
from fedloom.methods import ALONE, Method
from fedloom.params import Part, common
from fedloom.setting import Setting
from fedloom.sites import algorithm_of
from fedloom.tuning.parts import Parts, part_named


def train_method(
    setting: Setting, method: Method, name: str, servers: Sequence[tuple[int | None, range]]
) -> list[Standing]:
    """Train a method's servers, stage by stage.

    Args:
        setting: What all methods share.
        method: The method.
        name: Its name.
        servers: For each training the client that trains alone, or None, and the training's clients.

    Returns:
        Where each stands at the end, in the order of `servers`.

    Raises:
        UserError: None of them can go on.
    """
    standings: Sequence[Standing | None] = [None] * len(servers)
    count = setting.stage_count(name)
    for number in range(count):
        label = f"{name}, stage {number + 1}" if count > 1 else name
        runs = [
            _training(setting, method, name, server, number, before)
            for server, before in zip(servers, standings, strict=True)
        ]
        standings = train_runs(setting, label, runs)
    return [standing for standing in standings if standing is not None]


def _training(
    setting: Setting,
    method: Method,
    name: str,
    server: tuple[int | None, range],
    number: int,
    before: Standing | None,
) -> Run:
    """Set up one stage of one training, which goes on from its last checkpoint, the stage before, or the start."""
    alone, clients = server
    folder, of = _place(setting, name, alone, number)
    algorithm = _algorithm(setting, method, number)
    train, backend = setting.site.stages(name)[number], backend_of(setting, name)
    schedule = Schedule(train.rounds, clients, train.cohort, setting.experiment.seed, train.sampler)
    # Only here, so that a folder that is removed later is not made again.
    folder.mkdir(parents=True, exist_ok=True)
    standing = _last(setting, name, alone, number, setting.damaged)
    if standing is None and before is None:
        standing = Standing(algorithm.init(backend.start(name)))
    elif standing is None and before is not None:  # a stage has a fresh server; bytes add up over stages
        params = algorithm.broadcast(before.state).params
        standing = replace(before, state=algorithm.init(params), norms=(), missed=0)
    assert standing is not None
    parts, profiles = setting.site.local(name).parts[number], backend.describe(name)
    down, budget = None if parts.down.is_whole else parts.down, setting.site.local(name).budget
    return Run(
        name,
        algorithm,
        standing,
        schedule,
        profiles,
        train,
        setting.experiment.gate,
        _committed(setting, method, name, alone, number, folder, of),
        number,
        setting.site.rounds_before(number),
        lambda client: common(down, budget.down(client)),
        _reported(setting, profiles, parts, budget),
        budget.scale,
    )


def _algorithm(setting: Setting, method: Method, stage: int) -> FederatedAlgorithm:
    """Return a method's algorithm; in stages of its own, from which nothing is reported, plain FedAvg."""
    own = stage >= len(setting.strategy)
    return algorithm_of(setting.experiment, ALONE if own else method, setting.tuned.layout, stage)


def _place(setting: Setting, name: str, alone: int | None, number: int) -> tuple[Path, str]:
    """Return the folder of a stage's checkpoints, and whose they are."""
    folder = setting.folder / METHODS / name / ("" if alone is None else f"client-{alone}")
    last = number == setting.stage_count(name) - 1
    return folder if last else folder / f"stage-{number + 1}", setting.of(name, alone, number)


def _last(
    setting: Setting, name: str, alone: int | None, number: int, passed_over: Callable[[str], None]
) -> Standing | None:
    """Return where a stage stood last, or None where it begins anew.

    What clients kept of its last round is needed, unless the next stage goes on from what they kept after it.
    """
    (folder, of), done = _place(setting, name, alone, number), setting.site.rounds_before(number)

    def remembered(standing: Standing) -> None:
        """Raise UserError where what clients kept of the last round cannot be read."""
        for client, rounds in standing.kept.items():
            if rounds[-1] == done + standing.state.round - 1:
                setting.site.memory.read((name, client, rounds[-1]))

    last, layout = number == setting.stage_count(name) - 1, setting.tuned.layout
    if setting.elsewhere is not None:  # sites say themselves what is lost
        return last_commit(folder, layout, passed_over, of)
    if last or _last(setting, name, alone, number + 1, lambda _: None) is None:
        return last_commit(folder, layout, passed_over, of, remembered)
    return last_commit(folder, layout, passed_over, of)


def _reported(
    setting: Setting, profiles: Sequence[Profile], parts: Parts, budget: Budget
) -> Callable[[int], Part | None]:
    """Return the part that each client reports: over reporters, clients without images leave out the connector."""
    up = None if parts.up.is_whole else parts.up
    if setting.experiment.aggregate.over == "cohort":
        return lambda client: common(up, budget.up(client))
    without = parts.up & part_named(setting.tuned.layout, "connector").rest
    return lambda client: common(up if profiles[client].images else without, budget.up(client))


def _committed(
    setting: Setting, method: Method, name: str, alone: int | None, number: int, folder: Path, of: str
) -> Callable[[Standing, dict[str, Any]], Standing]:
    """Return what is called after each round; it writes the record, the learning curve and the checkpoint."""
    train, done_before = setting.site.stages(name)[number], setting.site.rounds_before(number)
    last = number == setting.stage_count(name) - 1

    def committed(now: Standing, log: dict[str, Any]) -> Standing:
        done, every = now.state.round, setting.experiment.evaluate.every
        lr = learning_rate(train, done - 1)
        row = {"method": name, "client": alone, "lr": lr, **log, "round": log["round"] + done_before}
        setting.record.append("round", row)
        final, best = last and done == train.rounds, setting.experiment.evaluate.round == "best"
        if (every and not final and done % every == 0) or (final and best):
            total = done + done_before
            models = questions_of(setting, method, name, now, alone, number)
            if alone is None and None in models and setting.data.test:
                answers_of(setting, models, name, {None: total}, slices_of(setting.data.test)[0])
            now = _validated(setting, method, name, now, alone, number, total)
        commit(folder, now, setting.record.size, of)
        return now

    return committed


def questions_of(
    setting: Setting, method: Method, name: str, standing: Standing, alone: int | None = None, stage: int = -1
) -> dict[int | None, Question]:
    """Return which models are evaluated, by client, or None for a global one.

    These are the global model, that of a client that trains alone, or each client's own where parts are personal.
    """
    stage %= setting.stage_count(name)
    algorithm = _algorithm(setting, method, stage)
    params = algorithm.broadcast(standing.state).params
    own = algorithm.personal or setting.site.local(name).parts[stage].personal.count
    if not method.federated or not own:
        return {alone: Question(name, stage, params, alone)}
    since = standing.since
    return {
        client: Question(name, stage, params, client, since.get(client, -1))
        for client in range(len(setting.plan.clients))
    }


def best_questions(
    setting: Setting, name: str, best: Best, models: Sequence[int | None]
) -> dict[int | None, Question]:
    """Return the models of the best round, which are evaluated, by client, or None for a global one."""
    stage = setting.stage_count(name) - 1
    return {
        client: Question(
            name, stage, best.params, client, -1 if client is None else best.since.get(client, -1)
        )
        for client in models
    }


def _validated(
    setting: Setting, method: Method, name: str, now: Standing, alone: int | None, stage: int, total: int
) -> Standing:
    """Validate a round; where it is the best of the last stage so far, return a standing that holds it."""
    if setting.validation is None:
        return now
    models = questions_of(setting, method, name, now, alone, stage)
    found = validated(setting, models, name, dict.fromkeys(models, total))
    if setting.experiment.evaluate.round != "best" or stage != setting.stage_count(name) - 1 or found is None:
        return now
    if now.best is not None and found["score"] <= now.best.score:
        return now
    params = next(iter(models.values())).params
    return replace(now, best=Best(total, found["score"], params, now.since))
