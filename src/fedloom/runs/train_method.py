"""Train a method: its stages, their rounds, their checkpoints, their learning curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedloom.algorithms.algorithm import Budget, FederatedAlgorithm
from fedloom.client.learning_rate import learning_rate
from fedloom.client.site import Profile, Question
from fedloom.engine.checkpoints import last_of_stage, write_checkpoint
from fedloom.engine.client_sampling import Schedule
from fedloom.engine.rounds import Best, Training, TrainingState
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import ALONE, Method
from fedloom.params import Layout, Part, intersection
from fedloom.run_log import CHECKS
from fedloom.runs import evaluation
from fedloom.runs.evaluation import answer_test
from fedloom.runs.modality_slices import slices_of
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import METHODS, stage_folder
from fedloom.runs.shared_trainings import begins_as, trained_as
from fedloom.runs.site_scores import validate_at_sites
from fedloom.runs.site_setup import algorithm_of, codecs_of
from fedloom.runs.train_in_backend import backend_of, run_trainings
from fedloom.tuning.strategy_parts import Parts, part_named


def train_method(
    context: RunContext, method: Method, name: str, servers: Sequence[tuple[int | None, range]]
) -> list[TrainingState]:
    """Train a method's servers, stage by stage.

    Args:
        context: What all methods share.
        method: The method.
        name: Its name.
        servers: For each training the client that trains alone, or None, and the training's clients.

    Returns:
        The state of each training at the end, in the order of `servers`.

    Raises:
        UserError: None of the trainings can go on.
    """
    training_states, begun = _shared_stages(context, name, servers)
    count = context.stage_count(name)
    for number in range(begun, count):
        label = f"{name}, stage {number + 1}" if count > 1 else name
        runs = [
            _training(context, method, name, server, number, before)
            for server, before in zip(servers, training_states, strict=True)
        ]
        training_states = run_trainings(context, label, runs)
    return [training_state for training_state in training_states if training_state is not None]


def _shared_stages(
    context: RunContext, name: str, servers: Sequence[tuple[int | None, range]]
) -> tuple[Sequence[TrainingState | None], int]:
    """Train the stages that another method of the experiment has, too, under that method's name.

    Clients' memories have the name of their method, so that trainings with memories are not shared.

    Returns:
        The state of each training after these stages, None where it starts anew; and the number of these stages.
    """
    other = begins_as(context.experiment, name)
    if other is not None and context.remote is None:
        training_states = train_method(context, context.experiment.method(other), other, servers)
        if not any(training_state.kept for training_state in training_states):
            _repeat_rounds(context, other, name)
            return training_states, context.stage_count(other)
    return [None] * len(servers), 0


def _repeat_rounds(context: RunContext, trained: str, name: str) -> None:
    """Write the rounds of a training into the record under the name of another method that shares them, unless they are there."""
    rounds = [line for line in context.record if line["kind"] == "round"]
    known = {(line["client"], line["round"]) for line in rounds if line["method"] == name}
    for line in rounds:
        if line["method"] == trained and (line["client"], line["round"]) not in known:
            known.add((line["client"], line["round"]))
            values = {key: value for key, value in line.items() if key not in ("kind", *CHECKS)}
            context.record.append("round", {**values, "method": name})


def _training(
    context: RunContext,
    method: Method,
    name: str,
    server: tuple[int | None, range],
    number: int,
    before: TrainingState | None,
) -> Training:
    """Set up one stage of one training, which goes on from its last checkpoint, the previous stage, or the start."""
    alone, clients = server
    folder, of = _checkpoint_folder(context, name, alone, number)
    algorithm = _algorithm(context, method, number)
    local, backend = context.site.method(name), backend_of(context, name)
    train, parts = local.stages[number].settings, local.stages[number].parts
    schedule = Schedule(train.rounds, clients, train.cohort, context.experiment.training_seed, train.sampler)
    # Created only here, so that a folder that is removed later does not come back.
    folder.mkdir(parents=True, exist_ok=True)
    training_state = last_state_of_stage(context, name, alone, number, context.damaged)
    if training_state is None and before is None:
        training_state = TrainingState(algorithm.init(backend.start(name)))
    elif (
        training_state is None and before is not None
    ):  # a stage has a fresh server; bytes add up over stages
        params = algorithm.broadcast(before.state).params
        training_state = replace(before, state=algorithm.init(params), norms=(), missed=0)
    assert training_state is not None
    profiles = backend.describe(name)
    down, up = sent_and_reported_parts(
        context.experiment, context.tuned.layout, profiles, parts, local.budget
    )
    return Training(
        name,
        algorithm,
        training_state,
        schedule,
        profiles,
        train,
        context.experiment.admission,
        _after_round(context, method, name, alone, number, folder, of),
        number,
        context.site.rounds_before(name, number),
        down,
        up,
        local.budget.scale,
        codecs_of(context.experiment, method),
    )


def _algorithm(context: RunContext, method: Method, stage: int) -> FederatedAlgorithm:
    """Return a method's algorithm; in a stage that the method adds, from which nothing is reported, plain FedAvg."""
    own = stage >= len(context.strategy)
    return algorithm_of(context.experiment, ALONE if own else method, context.tuned.layout, stage)


def _checkpoint_folder(context: RunContext, name: str, alone: int | None, number: int) -> tuple[Path, str]:
    """Return the folder of a stage's checkpoints, and the digest of the training to which they belong."""
    training = context.folder / METHODS / name / ("" if alone is None else f"client-{alone}")
    return stage_folder(training, number, context.stage_count(name)), context.of(name, alone, number)


def last_state_of_stage(
    context: RunContext, name: str, alone: int | None, number: int, passed_over: Callable[[str], None]
) -> TrainingState | None:
    """Return the last training state of a stage, or None if the stage starts anew."""

    def check(stage: int, training_state: TrainingState) -> None:
        """Raise UserError if what clients kept of the last round cannot be read here; sites on other machines check it."""
        if context.remote is not None:
            return
        last = context.site.rounds_before(name, stage) + training_state.state.round - 1
        for client, rounds in training_state.kept.items():
            if rounds[-1] == last:
                context.site.memory.read((name, client, last))

    stages = [_checkpoint_folder(context, name, alone, stage) for stage in range(context.stage_count(name))]
    return last_of_stage(stages, number, context.tuned.layout, passed_over, check)


def sent_and_reported_parts(
    experiment: Experiment, layout: Layout, profiles: Sequence[Profile], parts: Parts, budget: Budget
) -> tuple[Callable[[int], Part | None], Callable[[int], Part | None]]:
    """Return two functions from clients to the parts that they are sent and that they report; None is everything.

    With `aggregate.over: reporters` a client without images does not report the connector.
    """
    down = None if parts.down.is_whole else parts.down
    up = None if parts.up.is_whole else parts.up
    without = up
    if experiment.aggregate.over != "cohort":
        without = parts.up & part_named(layout, "connector").complement
    return (
        lambda client: intersection(down, budget.down(client)),
        lambda client: intersection(
            up if without is up or profiles[client].images else without, budget.up(client)
        ),
    )


def _after_round(
    context: RunContext, method: Method, name: str, alone: int | None, number: int, folder: Path, of: str
) -> Callable[[TrainingState, dict[str, Any]], TrainingState]:
    """Return the function that is called after each round; it writes the record, the learning curve and the checkpoint."""
    train, done_before = (
        context.site.method(name).stages[number].settings,
        context.site.rounds_before(name, number),
    )
    last = number == context.stage_count(name) - 1

    def after_round(now: TrainingState, log: dict[str, Any]) -> TrainingState:
        done, every = now.state.round, context.experiment.evaluate.every
        lr = learning_rate(train, done - 1)
        row = {"method": name, "client": alone, "lr": lr, **log, "round": log["round"] + done_before}
        context.record.append("round", row)
        final, best = last and done == train.rounds, context.experiment.evaluate.round == "best"
        if (every and not final and done % every == 0) or (final and best):
            total = done + done_before
            models = questions_of(context, method, name, now, alone, number)
            if alone is None and None in models and context.data.test:
                answer_test(context, models, name, {None: total}, slices_of(context.data.test)[0])
            now = _validate(context, method, name, now, alone, number, total)
        write_checkpoint(folder, now, context.record.size, of)
        return now

    return after_round


def questions_of(
    context: RunContext,
    method: Method,
    name: str,
    training_state: TrainingState,
    alone: int | None = None,
    stage: int = -1,
) -> dict[int | None, Question]:
    """Return the models that are evaluated, by client, or None for a global one.

    These are the global model, the model of a client that trains alone, or each client's own if parts are personal.
    """
    stage %= context.stage_count(name)
    algorithm = _algorithm(context, method, stage)
    params = algorithm.broadcast(training_state.state).params
    own = algorithm.personal or context.site.method(name).stages[stage].parts.personal.count
    if not own:
        return {alone: Question(name, stage, params, alone)}
    since = training_state.since
    return {
        client: Question(name, stage, params, client, since.get(client, -1))
        for client in range(len(context.plan.clients))
    }


def reported_models(
    context: RunContext,
    method: Method,
    name: str,
    training_states: Sequence[tuple[int | None, TrainingState]],
) -> tuple[dict[int | None, Question], dict[int | None, int]]:
    """Return the models that are reported, of the last or the best round, and how many rounds each was trained for."""
    models: dict[int | None, Question] = {}
    rounds: dict[int | None, int] = {}
    for alone, training_state in training_states:
        trained = trained_as(context.experiment, name)
        own = questions_of(context, method, trained, training_state, alone)
        if training_state.best is not None:
            own = _best_questions(context, trained, training_state.best, list(own))
        models |= own
        rounds |= dict.fromkeys(
            own, training_state.best.round if training_state.best else sum(context.rounds(name))
        )
    return models, rounds


def _best_questions(
    context: RunContext, name: str, best: Best, models: Sequence[int | None]
) -> dict[int | None, Question]:
    """Return the models of the best round, by client, or None for a global one."""
    stage = context.stage_count(name) - 1
    return {
        client: Question(
            name, stage, best.params, client, -1 if client is None else best.since.get(client, -1)
        )
        for client in models
    }


def validate(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Mapping[int | None, int],
    alone: Mapping[int, Question] | None = None,
) -> dict[str, Any] | None:
    """Score models on the validation set, where its examples are; see `fedloom.runs.evaluation.validate`."""
    if context.validation is not None and context.sites is not None:
        return validate_at_sites(context, models, name, rounds)
    return evaluation.validate(context, models, name, rounds, alone)


def _validate(
    context: RunContext,
    method: Method,
    name: str,
    now: TrainingState,
    alone: int | None,
    stage: int,
    total: int,
) -> TrainingState:
    """Validate a round; return the training state, with this round as its best if it is the best of the last stage so far."""
    if context.validation is None:
        return now
    models = questions_of(context, method, name, now, alone, stage)
    result = validate(context, models, name, dict.fromkeys(models, total))
    if (
        context.experiment.evaluate.round != "best"
        or stage != context.stage_count(name) - 1
        or result is None
    ):
        return now
    if now.best is not None and result["score"] <= now.best.score:
        return now
    params = next(iter(models.values())).params
    return replace(now, best=Best(total, result["score"], params, now.since))
