"""Score a method's final models on the test set: the shared model for everybody, and each client's own for that client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedloom.algorithms.own_answers import OwnAnswers
from fedloom.client.site import Question
from fedloom.runs.evaluation import answer_once, answer_test
from fedloom.runs.method_predictions import write_part
from fedloom.runs.modality_slices import client_scores, headline, score_model, score_own_models, slices_of
from fedloom.runs.own_answers import choose_answers, label_counts, own_answers_of
from fedloom.runs.run_context import RunContext
from fedloom.runs.site_scores import scores_at_sites
from fedloom.tasks.score_answers import Answers

SCORED_TOGETHER = 4
"""Number of clients' own models that answer the test questions in one pass."""


Rounds = Mapping[int | None, int]
"""Client, or None for the global model → the number of rounds that the model was trained for."""


def global_scores(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Rounds,
    alone: Mapping[int, Question] | None = None,
) -> dict[str, Any]:
    """Score a method's global model."""
    _begin_evaluation(context, name, 1)
    return model_scores(context, models, name, rounds, alone)[0]


def shared_scores(
    context: RunContext, models: Mapping[int | None, Question], name: str, rounds: Rounds
) -> dict[str, Any]:
    """Score the shared model of a method whose clients have their own; personal parameters in it are those of the start."""
    client, question = next(iter(models.items()))
    shared: dict[int | None, Question] = {None: replace(question, client=None, since=-1, own_share=1.0)}
    _begin_evaluation(context, name, 1)
    return model_scores(context, shared, name, {None: rounds[client]}, kind="shared")[0]


def own_scores(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Rounds,
    alone: Mapping[int, Question] | None = None,
) -> dict[str, Any]:
    """Score each client's own model: the mean over clients, the best and the worst."""
    if context.sites is not None:
        return scores_at_sites(context, models)
    scores: list[dict[str, Any]] = []
    together = _together(context)
    _begin_evaluation(context, name, -(-len(models) // together))
    for start in range(0, len(models), together):
        scores += model_scores(
            context, dict(list(models.items())[start : start + together]), name, rounds, alone
        )
    headlines = [value for model in scores if (value := headline(model)) is not None]
    own = score_own_models(scores)
    mean = _mean_of([{key: value for key, value in model.items() if key not in own} for model in scores])
    return {**mean, **own, "best": max(headlines, default=None), "worst": min(headlines, default=None)}


def _begin_evaluation(context: RunContext, name: str, passes: int) -> None:
    """Begin the stage in which a method's final models answer the test set, in a number of passes over its slices."""
    context.progress.stage(f"{name}, evaluation", passes * max(1, len(slices_of(context.data.test))))


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


def model_scores(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Rounds,
    alone: Mapping[int, Question] | None = None,
    kind: str = "evaluation",
) -> list[dict[str, Any]]:
    """Score final parameters on every slice, several models at once; a global model's key is None.

    Where clients choose their own answers, "clients" and "client_tasks" are of these, also for a global model, and all other
    scores are those of the model. Its own "clients" and "client_tasks" are then under "shared". Lines of another kind than
    "evaluation" are scored without the clients' choice.

    If the server has no test part, the sites score the global model on their own.
    """
    if not context.data.test and context.sites is not None:
        context.progress.advance(1)
        return [scores_at_sites(context, models)]
    answers: list[dict[str, Answers]] = [{} for _ in models]
    for part in slices_of(context.data.test):
        of_part = answer_test(context, models, name, rounds, part, kind)
        for by_slice, own in zip(answers, of_part, strict=True):
            by_slice[part] = own
        context.progress.advance(1)
    data, plan = context.data, context.plan
    scores = [
        score_model(data.train, data.test, plan, by_slice, context.judge, context.metrics)
        for by_slice in answers
    ]
    predicted: dict[int | None, dict[str, Answers]] = dict(zip(models, answers, strict=True))
    if kind != "evaluation" or not (parts := own_answers_of(context.experiment, name)):
        write_part(context.folder, name, data.test, predicted)
        return scores
    chosen = _choose(context, parts, models, answers, alone or {})
    for own in chosen:
        predicted |= own
    write_part(context.folder, name, data.test, predicted)
    return [
        {
            **model,
            **client_scores(data.train, data.test, plan, by_slice, own),
            **({"shared": model} if client is None else {}),
        }
        for client, model, by_slice, own in zip(models, scores, answers, chosen, strict=True)
    ]


def _choose(
    context: RunContext,
    parts: Sequence[OwnAnswers],
    models: Mapping[int | None, Question],
    answers: Sequence[dict[str, Answers]],
    alone: Mapping[int, Question],
) -> list[dict[int, dict[str, Answers]]]:
    """Return for each model the test answers by slice that its client, or each client of a global model, chooses itself."""
    data, chosen = context.data, list[dict[int, dict[str, Answers]]]()
    holders = [holder for client in models for holder in _holders(context, client) if holder in alone]
    local = _local_answers(context, {holder: alone[holder] for holder in holders}, list(answers[0]))
    for client, by_slice in zip(models, answers, strict=True):
        own = dict[int, dict[str, Answers]]()
        for holder in _holders(context, client):
            counts, other = label_counts(context.plan, data.train, holder), local.get(holder, {})
            own[holder] = {
                part: choose_answers(parts, counts, data.test, given, other.get(part))
                for part, given in by_slice.items()
            }
        chosen.append(own)
    return chosen


def _holders(context: RunContext, client: int | None) -> Sequence[int]:
    """Return the clients that are served by a model of a client, or by the global one for None."""
    return range(len(context.plan.clients)) if client is None else (client,)


def _together(context: RunContext) -> int:
    """Return how many clients' own models answer the test questions in one pass."""
    return SCORED_TOGETHER if context.tuned.stackable else 1


def _local_answers(
    context: RunContext, alone: Mapping[int, Question], slices: Sequence[str]
) -> dict[int, dict[str, Answers]]:
    """Return client → slice → test answers of the model that it trained alone, asked in groups as `own_scores` does."""
    answers: dict[int, dict[str, Answers]] = {client: {} for client in alone}
    clients, together = list(alone), _together(context)
    for start in range(0, len(clients), together):
        group = clients[start : start + together]
        for part in slices:
            asked = [replace(alone[client], slice=part) for client in group]
            for client, own in zip(group, answer_once(context, asked[0].method, asked), strict=True):
                answers[client][part] = own
    return answers
