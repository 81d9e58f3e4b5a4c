"""Evaluate models on the test set and on the validation set, and record the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedloom.algorithms.own_answers import Interpolation, OwnAnswers
from fedloom.client.site import Question
from fedloom.runs.modality_slices import SLICES
from fedloom.runs.own_answers import choose_answers, label_counts, own_answers_of
from fedloom.runs.shared_trainings import asked_again
from fedloom.runs.train_in_backend import backend_of
from fedloom.scenarios.validation_part import Validation
from fedloom.system.timing import Clock
from fedloom.tasks.score_answers import HEADLINES, Answers, concatenate, example_scores, score, take
from fedloom.types import Example

if TYPE_CHECKING:
    from fedloom.runs.run_context import RunContext


def answer_test(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Mapping[int | None, int],
    part: str,
    kind: str = "evaluation",
) -> list[Answers]:
    """Answer the test set with the modalities of one slice, with several models at once, and record the scores.

    Args:
        context: What all methods share.
        models: Models, by the client they belong to, or None for the global model.
        name: The method's name.
        rounds: How many rounds each of these models was trained for.
        part: The slice, a key of `SLICES`.
        kind: The kind of the record's line.
    """
    clock = Clock()
    answers = answer_once(context, name, [replace(question, slice=part) for question in models.values()])
    clock.lap("evaluate")
    seconds = clock.seconds["evaluate"] / len(models)
    for client, own in zip(models, answers, strict=True):
        record_scores(context, name, own, part, seconds, client=client, round=rounds[client], kind=kind)
    return answers


def record_scores(
    context: RunContext,
    name: str,
    answers: Answers,
    part: str,
    seconds: float,
    *,
    client: int | None = None,
    round: int = 0,
    kind: str = "evaluation",
) -> None:
    """Record the scores of answers to the test set with the modalities of one slice, and the time that they took."""
    test = context.data.test
    line = {"method": name, "client": client, "round": round, "slice": part, "examples": len(test)}
    scores = score(test, answers, context.metrics)
    context.record.append(kind, {**line, "seconds": seconds, "scores": scores})


MOST_KEPT = 1_000_000
"""Largest number of answers of a method that are kept for other methods."""


def answer_once(context: RunContext, name: str, questions: Sequence[Question]) -> list[Answers]:
    """Answer the test set, unless models that other methods ask too have answered it before.

    Args:
        context: What all methods share.
        name: The method's name.
        questions: Questions about the test set; the same models are always asked side by side, since bits depend on that.
    """
    backend, known = backend_of(context, name), context.answered
    count = len(context.data.test) * len(SLICES) * (len(context.plan.clients) + 1)
    if count > MOST_KEPT or not asked_again(context.experiment, name):
        return backend.answer(questions)
    keys = [
        (one.method, one.stage, one.client, one.since, one.own_share, one.slice, one.params.digest())
        for one in questions
    ]
    if not all(key in known for key in keys):
        known |= zip(keys, backend.answer(questions), strict=True)
    return [known[key] for key in keys]


def validate(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Mapping[int | None, int],
    alone: Mapping[int, Question] | None = None,
) -> dict[str, Any] | None:
    """Answer the validation set with models, and record the scores.

    A global model answers the validation examples of all clients, a client's own model those of this client, or the whole
    part if the data set has one for all clients. Where clients choose their own answers, these are scored. The score is the
    mean over clients, weighted by their numbers of validation examples.

    Args:
        context: What all methods share.
        models: Models, by the client they belong to, or None for a global model.
        name: The method's name.
        rounds: How many rounds each of these models was trained for.
        alone: Client → the model that it trains alone, for parts that use it; None leaves these parts out.

    Returns:
        See `validation_scores`; None if no model has anything to answer.
    """
    if context.validation is None:
        return None
    answered, seconds = _answer_validation(context, context.validation, models, name, alone or {})
    if not answered:
        return None
    rounds = {client: rounds[client if client in rounds else None] for client in answered}
    values = _values(answered, headline=len(context.validation.tasks) == 1)
    for client, own in values.items():
        summary = _summary(context.validation, own)
        summary |= {"clients": _by_client(context, {client: own})} if client is None else {}
        line = {"method": name, "client": client, "round": rounds[client]}
        context.record.append("validation", {**line, **summary, "seconds": seconds[client]})
    return validation_scores(context, values, rounds)


def best_shares(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    interpolation: Interpolation,
    alone: Mapping[int, Question],
) -> dict[int | None, Question]:
    """Return the models between clients' own ones and the global one that are best on the clients' validation examples.

    Args:
        context: What all methods share; there are validation examples.
        models: Clients' own models, by the client.
        name: The method's name.
        interpolation: The shares that are tried.
        alone: See `validate`.
    """
    assert context.validation is not None
    tried = list[dict[int | None, float]]()
    for share in interpolation.shares:
        mixed = {client: replace(question, own_share=share) for client, question in models.items()}
        answered, _ = _answer_validation(context, context.validation, mixed, name, alone)
        values = _values(answered, headline=len(context.validation.tasks) == 1) if answered else {}
        tried.append({client: float(own.mean()) for client, own in values.items()})
    shares = {
        client: interpolation.best([scores[client] for scores in tried])
        if client in tried[0]
        else interpolation.default
        for client in models
    }
    return {client: replace(question, own_share=shares[client]) for client, question in models.items()}


Answered = dict[int | None, tuple[Sequence[Example], Answers]]
"""Client, or None for a global model → the validation examples that its model answered, and the answers."""


def _answer_validation(
    context: RunContext,
    validation: Validation,
    models: Mapping[int | None, Question],
    name: str,
    alone: Mapping[int, Question],
) -> tuple[Answered, dict[int | None, float]]:
    """Answer the validation set with models; return what was answered, and the seconds that it took.

    Where clients choose their own answers, those of a global model are divided among the clients, each of which chooses.
    """
    answered, seconds = Answered(), dict[int | None, float]()
    parts, backend = own_answers_of(context.experiment, name), backend_of(context, name)
    for client, question in models.items():
        share, clock = validation.share(client), Clock()
        if not len(share):
            continue
        examples = [validation.examples[index] for index in share.indices.tolist()]
        (answers,) = backend.answer([replace(question, client=client, test="validation")])
        of_clients: Answered = {client: (examples, answers)}
        if parts and client is None:
            of_clients = _by_holder(validation, len(context.plan.clients), examples, answers)
        if parts:
            of_clients = {
                k: (own, _chosen(context, parts, k, own, given, alone))
                for k, (own, given) in of_clients.items()
                if k is not None
            }
        answered |= of_clients
        clock.lap("validation")
        seconds |= dict.fromkeys(of_clients, clock.seconds["validation"] / len(of_clients))
    return answered, seconds


def _by_holder(
    validation: Validation, clients: int, examples: Sequence[Example], answers: Answers
) -> Answered:
    """Divide a global model's answers to the validation set among the clients that hold the examples, or give all to each."""
    ends = [0, *(len(validation.share(client)) for client in range(clients))]
    starts = np.cumsum(ends)
    pieces = [
        slice(None) if validation.common else slice(int(starts[client]), int(starts[client + 1]))
        for client in range(clients)
    ]
    return {
        client: (examples[piece], take(answers, piece))
        for client, piece in enumerate(pieces)
        if len(examples[piece])
    }


def _chosen(
    context: RunContext,
    parts: Sequence[OwnAnswers],
    client: int,
    examples: Sequence[Example],
    answers: Answers,
    alone: Mapping[int, Question],
) -> Answers:
    """Return the answers to validation examples that a client chooses itself."""
    local = None
    if client in alone:
        question = replace(alone[client], client=client, test="validation")
        (local,) = backend_of(context, question.method).answer([question])
    counts = label_counts(context.plan, context.data.train, client)
    return choose_answers(parts, counts, examples, answers, local)


def _values(
    answered: Mapping[int | None, tuple[Sequence[Example], Answers]], *, headline: bool
) -> dict[int | None, np.ndarray]:
    """Score the answers of all models in one call, since the rarity of a caption's words is counted over all of them."""
    scores = example_scores(
        [example for examples, _ in answered.values() for example in examples],
        concatenate([answers for _, answers in answered.values()]),
        headline=headline,
    )
    ends = np.cumsum([len(examples) for examples, _ in answered.values()])[:-1]
    return dict(zip(answered, np.split(scores, ends), strict=True))


def validation_scores(
    context: RunContext, values: Mapping[int | None, np.ndarray], rounds: Mapping[int | None, int]
) -> dict[str, Any]:
    """Average the scores of models on the validation set.

    Args:
        context: What all methods share.
        values: Each model's score of each of its validation examples, by client, or None for a global model.
        rounds: How many rounds each of these models was trained for.

    Returns:
        "score": the mean over all examples, which is that over clients weighted by their numbers of examples; "metric";
        "examples"; "clients": each client's mean, None if it has no examples, or None in all if the part belongs to no client
        and the model is global; "rounds": those of each model.
    """
    assert context.validation is not None
    return {
        **_summary(context.validation, np.concatenate(list(values.values()))),
        "clients": _by_client(context, values),
        "rounds": [rounds[client] for client in values],
    }


def _summary(validation: Validation, values: np.ndarray) -> dict[str, Any]:
    """Return the mean score, its metric, and the number of examples."""
    metric = HEADLINES[validation.tasks[0]] if len(validation.tasks) == 1 else "accuracy"
    return {"score": float(values.mean()), "metric": metric, "examples": len(values)}


def _by_client(context: RunContext, values: Mapping[int | None, np.ndarray]) -> list[float | None] | None:
    """Return the mean score on each client's examples; None if a global model answers a part that belongs to no client."""
    validation = context.validation
    assert validation is not None
    if None not in values:
        count = len(context.plan.clients)
        return [float(values[client].mean()) if client in values else None for client in range(count)]
    if validation.common:
        return None
    ends = validation.plan.offsets.tolist()
    return [
        float(values[None][start:end].mean()) if end > start else None
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]
