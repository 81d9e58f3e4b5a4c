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
from fedloom.runs.evaluation import answer_test, validation_scores
from fedloom.runs.modality_slices import headline, modality_of, score_model, score_own_models, slices_of
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import ADAPTER, METHODS, RESULT
from fedloom.runs.site_scores import scores_at_sites
from fedloom.runs.train_method import best_questions, questions_of, train_method, validate
from fedloom.scenarios.plan import Plan
from fedloom.system.errors import UserError
from fedloom.system.manifest import read_sealed, write_sealed
from fedloom.tasks.linear_baseline import linear_baseline
from fedloom.tasks.score_answers import Answers, example_scores
from fedloom.tuning.export_adapter import export_adapter
from fedloom.types import Example

SCORED_TOGETHER = 4
"""Number of clients' own models that answer the test questions in one pass."""


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
    method = context.experiment.method(name)
    started = time.perf_counter()
    scores, up, down, validation = RUNS.get(method.base, _federated)(context, method, name)
    value = {
        "scores": scores,
        "bytes": {"up": up, "down": down},
        "seconds": time.perf_counter() - started,
        **({} if validation is None else {"validation": validation}),
        "recorded": context.record.size,
        "of": context.of(name),
    }
    write_sealed(file, value, context.folder)
    return value


def _read_result(context: RunContext, name: str, file: Path) -> dict[str, Any]:
    """Read the result of a method; raise `UserError` for a damaged file and for one of another run or method."""
    value = read_sealed(file)
    if value.get("of") != context.of(name):
        raise UserError(f"{file} is the result of another run or method")
    return value


def _last(context: RunContext, name: str, damaged: Callable[[str], None]) -> TrainingState | None:
    """Return the training state of a finished method, or None if the checkpoint of its last round is damaged."""
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
    scores = _scores(context, models, name, rounds)[0]
    return scores, 0, 0, validate(context, models, name, rounds)


def _linear(context: RunContext, method: Method, name: str) -> Outcome:
    """Train the linear baseline on what clients see, pooled."""
    context.progress.stage(name, 1)
    data = context.data
    chances = linear_baseline(_visible(data.train, context.plan), data.test, _embedder(context))
    answers = {
        part: Answers(tuple(int(row.argmax()) for row in rows), tuple(rows)) for part, rows in chances.items()
    }
    ordered = {part: answers[part] for part in slices_of(data.test) if part in answers}
    scores = score_model(data.train, data.test, context.plan, ordered, metrics=context.metrics)
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
    (training_state,) = train_method(context, method, name, [(None, clients)])
    models, rounds = _reported_models(context, method, name, [(None, training_state)])
    validation = validate(context, models, name, rounds)
    score = _global_scores if None in models else _own_scores
    scores = score(context, models, name, rounds)
    if context.sites is not None and context.data.test:
        scores["sites"] = context.sites.evaluate(models)
    return scores, training_state.bytes_up, training_state.bytes_down, validation


def _reported_models(
    context: RunContext,
    method: Method,
    name: str,
    training_states: Sequence[tuple[int | None, TrainingState]],
) -> tuple[dict[int | None, Question], dict[int | None, int]]:
    """Return the models that are reported, of the last or the best round, and how many rounds each was trained for."""
    models: dict[int | None, Question] = {}
    rounds: dict[int | None, int] = {}
    for alone, training_state in training_states:
        own = questions_of(context, method, name, training_state, alone)
        if training_state.best is not None:
            own = best_questions(context, name, training_state.best, list(own))
        models |= own
        rounds |= dict.fromkeys(
            own, training_state.best.round if training_state.best else sum(context.rounds(name))
        )
    return models, rounds


def _centralized(context: RunContext, method: Method, name: str) -> Outcome:
    (training_state,) = train_method(context, method, name, [(None, range(1))])
    models, rounds = _reported_models(context, method, name, [(None, training_state)])
    validation = validate(context, models, name, rounds)
    return _global_scores(context, models, name, rounds), 0, 0, validation


def _local(context: RunContext, method: Method, name: str) -> Outcome:
    """Let every client train alone; report the mean over clients, the best and the worst."""
    if context.sites is not None:
        return _local_at_sites(context, method, name)
    alone = [(client, range(client, client + 1)) for client in range(len(context.plan.clients))]
    training_states = train_method(context, method, name, alone)
    clients = [client for client, _ in alone]
    trained = list(zip(clients, training_states, strict=True))
    # No round up to the end had an effect, so the model is the one with which its client started.
    untrained = [
        client for client, training_state in trained if training_state.missed >= context.rounds(name)[-1]
    ]
    for client in untrained:
        context.progress.message(
            f"{name}: no update of client {client} could be used; its model is untrained"
        )
    models, rounds = _reported_models(context, method, name, trained)
    validation = validate(context, models, name, rounds)
    scores = _own_scores(context, models, name, rounds)
    return {**scores, **({"untrained": untrained} if untrained else {})}, 0, 0, validation


def _local_at_sites(context: RunContext, method: Method, name: str) -> Outcome:
    """Let every client train alone at its site, from which no model is sent."""
    clients = range(len(context.plan.clients))
    (training_state,) = train_method(context, method, name, [(None, clients)])
    models, rounds = _reported_models(context, method, name, [(None, training_state)])
    validation = validate(context, models, name, rounds)
    scores = _own_scores(context, models, name, rounds)
    untrained = [client for client in clients if client not in training_state.since]
    scores |= {"untrained": untrained} if untrained else {}
    return scores, training_state.bytes_up, training_state.bytes_down, validation


Rounds = Mapping[int | None, int]
"""Client, or None for the global model → the number of rounds that the model was trained for."""


def _global_scores(
    context: RunContext, models: Mapping[int | None, Question], name: str, rounds: Rounds
) -> dict[str, Any]:
    """Score the global model."""
    return _scores(context, models, name, rounds)[0]


def _own_scores(
    context: RunContext, models: Mapping[int | None, Question], name: str, rounds: Rounds
) -> dict[str, Any]:
    """Score each client's own model: the mean over clients, the best and the worst."""
    if context.sites is not None:
        return scores_at_sites(context, models)
    scores: list[dict[str, Any]] = []
    together = SCORED_TOGETHER if context.tuned.stackable else 1
    for start in range(0, len(models), together):
        scores += _scores(context, dict(list(models.items())[start : start + together]), name, rounds)
    headlines = [value for model in scores if (value := headline(model)) is not None]
    own = score_own_models(scores)
    mean = _mean_of([{key: value for key, value in model.items() if key not in own} for model in scores])
    return {**mean, **own, "best": max(headlines, default=None), "worst": min(headlines, default=None)}


def _mean_of(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average nested figures entry by entry; an entry that is None anywhere is None."""
    mean: dict[str, Any] = {}
    for key, first in values[0].items():
        entries = [value[key] for value in values]
        if isinstance(first, dict):
            mean[key] = _mean_of(entries)
        else:
            mean[key] = None if any(entry is None for entry in entries) else sum(entries) / len(entries)
    return mean


RUNS: dict[str, Callable[[RunContext, Method, str], Outcome]] = {
    "zero-shot": _zero_shot,
    "linear": _linear,
    "local": _local,
    "centralized": _centralized,
}
"""Name of a baseline → the function that runs it; every other name is a federated algorithm."""


def _scores(
    context: RunContext, models: Mapping[int | None, Question], name: str, rounds: Rounds
) -> list[dict[str, Any]]:
    """Score final parameters on every slice, several models at once; a global model's key is None.

    If the server has no test part, the sites score the global model on their own.
    """
    if not context.data.test and context.sites is not None:
        if name == "zero-shot":
            context.progress.advance(1)
        return [scores_at_sites(context, models)]
    answers: list[dict[str, Answers]] = [{} for _ in models]
    for part in slices_of(context.data.test):
        of_part = answer_test(context, models, name, rounds, part)
        for by_slice, own in zip(answers, of_part, strict=True):
            by_slice[part] = own
        if name == "zero-shot":
            context.progress.advance(1)
    data, plan = context.data, context.plan
    return [
        score_model(data.train, data.test, plan, by_slice, context.judge, context.metrics)
        for by_slice in answers
    ]


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
    models, _ = _reported_models(context, context.experiment.method(main), main, [(None, training_state)])
    for client, question in models.items():
        if client is not None and context.remote is not None:
            continue  # a client's own adapter stays at its site
        folder = context.folder / ADAPTER
        export_adapter(
            context.tuned,
            context.site.model(question),
            folder if client is None else folder / f"client-{client}",
        )
