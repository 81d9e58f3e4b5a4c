"""Run each method of a run or read its result, score it, and export the adapter of the main method."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedloom.client.site import Question
from fedloom.engine.checkpoints import last_checkpoint
from fedloom.engine.rounds import TrainingState
from fedloom.experiment.methods import Method
from fedloom.models.sentence_embeddings import embed_sentences
from fedloom.runs.evaluation import best_shares, record_scores, validation_scores
from fedloom.runs.export_models import export_model
from fedloom.runs.method_predictions import check_parts, part_digests, remove_parts, write_part
from fedloom.runs.method_scores import global_scores, model_scores, own_scores, shared_scores
from fedloom.runs.modality_slices import modality_of, score_model, slices_of
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import ADAPTER, METHODS, RESULT
from fedloom.runs.shared_trainings import trained_as
from fedloom.runs.site_setup import parts_of_kind
from fedloom.runs.train_method import reported_models, train_method, validate
from fedloom.scenarios.plan import Plan
from fedloom.system.errors import UserError
from fedloom.system.manifest import read_sealed, write_sealed
from fedloom.system.timing import Clock
from fedloom.tasks.linear_baseline import linear_baseline
from fedloom.tasks.score_answers import Answers, example_scores
from fedloom.types import Example


def run_method(context: RunContext, name: str) -> dict[str, Any]:
    """Run one method, or read its result if it is finished.

    A result is computed again from the last whole checkpoint if it is damaged, or if its parameters are to be exported and
    the checkpoint with them is damaged.

    Returns:
        The content of its `result.json`: "scores", "bytes" sent "up" and "down", "seconds", the size of the record
        ("recorded"), and the digest of the run and method ("of").
    """
    file = context.folder / METHODS / name / RESULT
    if file.exists():
        try:
            value = _read_result(context, name, file)
        except UserError as error:
            context.damaged(str(error))
        else:
            if name != context.experiment.exported or _last(context, name, context.damaged) is not None:
                return value
    remove_parts(context.folder, [name])
    method = context.experiment.method(name)
    started = time.perf_counter()
    scores, up, down, validation = RUNS.get(method.base, _federated)(context, method, name)
    value = {
        "scores": scores,
        "bytes": {"up": up, "down": down},
        "seconds": time.perf_counter() - started,
        **({} if validation is None else {"validation": validation}),
        "predictions": part_digests(context.folder, name),
        "recorded": context.record.size,
        "of": context.of(name),
    }
    write_sealed(file, value, context.folder)
    return value


def _read_result(context: RunContext, name: str, file: Path) -> dict[str, Any]:
    """Read the result of a method; raise `UserError` for a damaged file, one of another run or method, and damaged predictions."""
    value = read_sealed(file)
    if value.get("of") != context.of(name):
        raise UserError(f"{file} is the result of another run or method")
    check_parts(context.folder, name, value["predictions"])
    return value


def _last(context: RunContext, name: str, damaged: Callable[[str], None]) -> TrainingState | None:
    """Return the training state of a finished method, or None if the checkpoint of its last round is damaged."""
    name = trained_as(context.experiment, name)
    training_state = last_checkpoint(
        context.folder / METHODS / name,
        context.tuned.layout,
        damaged,
        context.of(name, None, context.stage_count(name) - 1),
    )
    return (
        training_state
        if training_state is not None and training_state.state.round == context.rounds(name)[-1]
        else None
    )


Outcome = tuple[dict[str, Any], int, int, dict[str, Any] | None]
"""Scores, bytes sent up, bytes sent down, validation scores. Baselines send nothing: data are pooled, or do not move."""


def _zero_shot(context: RunContext, method: Method, name: str) -> Outcome:
    context.progress.stage(name, len(slices_of(context.data.test)))
    models: dict[int | None, Question] = {None: Question(name, 0, context.tuned.start)}
    rounds: dict[int | None, int] = {None: 0}
    scores = model_scores(context, models, name, rounds)[0]
    return scores, 0, 0, validate(context, models, name, rounds)


def _linear(context: RunContext, method: Method, name: str) -> Outcome:
    """Train the linear baseline on what clients see, pooled."""
    context.progress.stage(name, 1)
    data, clock = context.data, Clock()
    chances = linear_baseline(_visible(data.train, context.plan), data.test, _embedder(context))
    clock.lap("train and answer")
    answers = {
        part: Answers(tuple(int(row.argmax()) for row in rows), tuple(rows)) for part, rows in chances.items()
    }
    ordered = {part: answers[part] for part in slices_of(data.test) if part in answers}
    scores = score_model(data.train, data.test, context.plan, ordered, metrics=context.metrics)
    write_part(context.folder, name, data.test, {None: ordered})
    for part, own in ordered.items():
        record_scores(context, name, own, part, clock.seconds["train and answer"] / len(ordered))
    context.progress.advance(1)
    return scores, 0, 0, _validate_linear(context, name)


def _validate_linear(context: RunContext, name: str) -> dict[str, Any] | None:
    """Score the linear baseline on the validation set, each example with the modalities that its client sees."""
    if context.validation is None:
        return None
    examples = _visible(context.validation.examples, context.validation.plan)
    chances = linear_baseline(_visible(context.data.train, context.plan), examples, _embedder(context))
    if not chances:  # no client trains on a modality that is seen of the validation set
        return None
    rows = [chances[modality_of(example, chances)][k] for k, example in enumerate(examples)]
    answers = Answers(tuple(int(row.argmax()) for row in rows), tuple(rows))
    scores = validation_scores(context, {None: example_scores(examples, answers, headline=True)}, {None: 0})
    context.record.append("validation", {"method": name, "client": None, "round": 0, **scores})
    return scores


def _embedder(context: RunContext) -> Callable[[Sequence[str]], Any] | None:
    """Return the function that embeds texts for the linear baseline; None for word counts."""
    return embed_sentences if context.experiment.evaluate.linear_text == "minilm" else None


def _visible(examples: Sequence[Example], plan: Plan) -> list[Example]:
    """Return the clients' examples with the modalities that their clients see."""
    visible: list[Example] = []
    for share in plan.clients:
        for index, image, text in zip(share.indices, share.image, share.text, strict=True):
            example = examples[index]
            visible.append(
                replace(example, image=example.image if image else None, text=example.text if text else None)
            )
    return visible


def _federated(context: RunContext, method: Method, name: str) -> Outcome:
    clients = range(len(context.plan.clients))
    (training_state,) = train_method(context, method, trained_as(context.experiment, name), [(None, clients)])
    models, rounds = reported_models(context, method, name, [(None, training_state)])
    alone = _local_models(context, method)
    models = _interpolated(context, method, name, models, alone)
    validation = validate(context, models, name, rounds, alone)
    if None in models:
        scores = global_scores(context, models, name, rounds, alone)
    else:
        scores = own_scores(context, models, name, rounds, alone)
        scores["shared"] = shared_scores(context, models, name, rounds)
        if any(question.own_share != 1 for question in models.values()):
            scores["own_shares"] = [question.own_share for question in models.values()]
    if context.sites is not None and context.data.test:
        scores["sites"] = context.sites.evaluate(models)
    return scores, training_state.bytes_up, training_state.bytes_down, validation


def _local_models(context: RunContext, method: Method) -> dict[int, Question]:
    """Return the model that each client trains alone, if the method uses it; `local` trains it, now or before."""
    if not any("local model" in context.experiment.entries[part].traits for part in method.parts):
        return {}
    local = context.experiment.method("local")
    trained = list(
        zip(_clients(context), train_method(context, local, "local", _alone(context)), strict=True)
    )
    models, _ = reported_models(context, local, "local", trained)
    return {client: question for client, question in models.items() if client is not None}


def _interpolated(
    context: RunContext,
    method: Method,
    name: str,
    models: dict[int | None, Question],
    alone: Mapping[int, Question],
) -> dict[int | None, Question]:
    """Return the models between clients' own ones and the shared one that clients choose, if the method does so."""
    mixes = parts_of_kind(context.experiment, method, "mix")
    return next((best_shares(context, models, name, mix, alone) for mix in mixes), models)


def _centralized(context: RunContext, method: Method, name: str) -> Outcome:
    (training_state,) = train_method(
        context, method, trained_as(context.experiment, name), [(None, range(1))]
    )
    models, rounds = reported_models(context, method, name, [(None, training_state)])
    alone = _local_models(context, method)
    validation = validate(context, models, name, rounds, alone)
    return global_scores(context, models, name, rounds, alone), 0, 0, validation


def _clients(context: RunContext) -> range:
    return range(len(context.plan.clients))


def _alone(context: RunContext) -> list[tuple[int | None, range]]:
    """Return the trainings of clients that train alone; see `train_method`."""
    return [(client, range(client, client + 1)) for client in _clients(context)]


def _local(context: RunContext, method: Method, name: str) -> Outcome:
    """Let every client train alone; report the mean over clients, the best and the worst."""
    if context.sites is not None:
        return _local_at_sites(context, method, name)
    training_states = train_method(context, method, trained_as(context.experiment, name), _alone(context))
    trained = list(zip(_clients(context), training_states, strict=True))
    # No round up to the end had an effect, so the model is the one with which its client started.
    untrained = [
        client for client, training_state in trained if training_state.missed >= context.rounds(name)[-1]
    ]
    for client in untrained:
        context.progress.message(
            f"{name}: no update of client {client} could be used; its model is untrained"
        )
    models, rounds = reported_models(context, method, name, trained)
    validation = validate(context, models, name, rounds)
    scores = own_scores(context, models, name, rounds)
    return {**scores, **({"untrained": untrained} if untrained else {})}, 0, 0, validation


def _local_at_sites(context: RunContext, method: Method, name: str) -> Outcome:
    """Let every client train alone at its site, from which no model is sent."""
    clients = range(len(context.plan.clients))
    (training_state,) = train_method(context, method, trained_as(context.experiment, name), [(None, clients)])
    models, rounds = reported_models(context, method, name, [(None, training_state)])
    validation = validate(context, models, name, rounds)
    scores = own_scores(context, models, name, rounds)
    untrained = [client for client in clients if client not in training_state.since]
    scores |= {"untrained": untrained} if untrained else {}
    return scores, training_state.bytes_up, training_state.bytes_down, validation


RUNS: dict[str, Callable[[RunContext, Method, str], Outcome]] = {
    "zero-shot": _zero_shot,
    "linear": _linear,
    "local": _local,
    "centralized": _centralized,
}
"""Name of a baseline → the function that runs it; every other name is a federated algorithm."""


def validation_of(context: RunContext, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the entry of the validation set in `result.json`; an empty dict if there is none."""
    if (part := context.validation) is None:
        return {}
    value = {"from": part.source, "examples": len(part.plan.indices), "without": part.sizes.count(0)}
    methods = {name: result.get("validation") for name, result in results.items()}
    return {"validation": {**value, "round": context.experiment.evaluate.round, "methods": methods}}


def export(context: RunContext, main: str) -> None:
    """Write the adapter of a finished method, or each client's own adapter, in PEFT's format.

    Raises:
        UserError: The method's last checkpoint is damaged.
    """
    training_state = _last(context, main, context.damaged)
    if training_state is None:
        raise UserError(
            f"{context.folder}: the last checkpoint of {main} is damaged; run the same command again"
        )
    models, _ = reported_models(context, context.experiment.method(main), main, [(None, training_state)])
    for client, question in models.items():
        if client is not None and context.remote is not None:
            continue  # a client's own adapter stays at its site
        folder = context.folder / ADAPTER
        export_model(context, question, folder if client is None else folder / f"client-{client}")
