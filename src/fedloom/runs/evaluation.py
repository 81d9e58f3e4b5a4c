"""Evaluate models on the test set and on the validation set, and record the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedloom.client.site import Question
from fedloom.runs.train_in_backend import backend_of
from fedloom.scenarios.validation_part import Validation
from fedloom.system.timing import Clock
from fedloom.tasks.score_answers import HEADLINES, Answers, concatenate, example_scores, score
from fedloom.types import Example

if TYPE_CHECKING:
    from fedloom.runs.run_context import RunContext


def answer_test(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Mapping[int | None, int],
    part: str,
) -> list[Answers]:
    """Answer the test set with the modalities of one slice, with several models at once, and record the scores.

    Args:
        context: What all methods share.
        models: Models, by the client they belong to, or None for the global model.
        name: The method's name.
        rounds: How many rounds each of these models was trained for.
        part: The slice, a key of `SLICES`.
    """
    test, clock = context.data.test, Clock()
    questions = [replace(question, slice=part) for question in models.values()]
    answers = backend_of(context, name).answer(questions)
    clock.lap("evaluate")
    for client, own in zip(models, answers, strict=True):
        context.record.append(
            "evaluation",
            {
                "method": name,
                "client": client,
                "round": rounds[client],
                "slice": part,
                "examples": len(test),
                "seconds": clock.seconds["evaluate"] / len(models),
                "scores": score(test, own, context.metrics),
            },
        )
    return answers


def validate(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Mapping[int | None, int],
) -> dict[str, Any] | None:
    """Answer the validation set with models, and record the scores.

    A global model answers the validation examples of all clients, a client's own model those of this client, or the whole
    part if the data set has one for all clients. The score is the mean over clients, weighted by their numbers of validation
    examples.

    Args:
        context: What all methods share.
        models: Models, by the client they belong to, or None for a global model.
        name: The method's name.
        rounds: How many rounds each of these models was trained for.

    Returns:
        See `validation_scores`; None if no model has anything to answer.
    """
    if context.validation is None:
        return None
    answered: dict[int | None, tuple[list[Example], Answers]] = {}
    seconds: dict[int | None, float] = {}
    for client, question in models.items():
        share = context.validation.share(client)
        if not len(share):
            continue
        clock = Clock()
        examples = [context.validation.examples[index] for index in share.indices.tolist()]
        (answers,) = backend_of(context, name).answer([replace(question, client=client, test="validation")])
        clock.lap("validation")
        answered[client], seconds[client] = (examples, answers), clock.seconds["validation"]
    if not answered:
        return None
    values = _values(answered, headline=len(context.validation.tasks) == 1)
    for client, own in values.items():
        summary = _summary(context.validation, own)
        summary |= {"clients": _by_client(context, {client: own})} if client is None else {}
        line = {"method": name, "client": client, "round": rounds[client]}
        context.record.append("validation", {**line, **summary, "seconds": seconds[client]})
    return validation_scores(context, values, rounds)


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
