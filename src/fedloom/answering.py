"""Evaluate models on the test part and on the validation part, and record the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedloom.backends import backend_of
from fedloom.client.site import Question
from fedloom.record import Clock
from fedloom.scenarios.validation import Validation
from fedloom.tasks.scoring import HEADLINES, Judged, each, joined, score
from fedloom.types import Example

if TYPE_CHECKING:
    from fedloom.setting import Setting


def answers_of(
    setting: Setting,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Mapping[int | None, int],
    part: str,
) -> list[Judged]:
    """Answer the test part with the modalities of one slice, with several models at once, and record the scores.

    Args:
        setting: What all methods share.
        models: Models, by the client they belong to, or None for the global model.
        name: The method's name.
        rounds: How many rounds each of these models was trained for.
        part: The slice, a key of `SLICES`.
    """
    test, clock = setting.data.test, Clock()
    questions = [replace(one, slice=part) for one in models.values()]
    judged = backend_of(setting, name).answer(questions)
    clock.lap("evaluate")
    for client, found in zip(models, judged, strict=True):
        setting.record.append(
            "evaluation",
            {
                "method": name,
                "client": client,
                "round": rounds[client],
                "slice": part,
                "examples": len(test),
                "seconds": clock.seconds["evaluate"] / len(models),
                "scores": score(test, found, setting.metrics),
            },
        )
    return judged


def validated(
    setting: Setting,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Mapping[int | None, int],
) -> dict[str, Any] | None:
    """Answer the validation part with models, and record the scores.

    A global model answers the examples that all clients keep out, a client's own model those that this client keeps
    out, or all of the owners' part where that is common. The score is the mean over clients, weighted by their numbers of
    validation examples.

    Args:
        setting: What all methods share.
        models: Models, by the client they belong to, or None for a global model.
        name: The method's name.
        rounds: How many rounds each of these models was trained for.

    Returns:
        As `validation_scores`; None where no model has anything to answer.
    """
    if setting.validation is None:
        return None
    asked: dict[int | None, tuple[list[Example], Judged]] = {}
    seconds: dict[int | None, float] = {}
    for client, question in models.items():
        share = setting.validation.share(client)
        if not len(share):
            continue
        clock = Clock()
        examples = [setting.validation.examples[index] for index in share.indices.tolist()]
        (judged,) = backend_of(setting, name).answer([replace(question, client=client, test="validation")])
        clock.lap("validation")
        asked[client], seconds[client] = (examples, judged), clock.seconds["validation"]
    if not asked:
        return None
    values = _values(asked, headline=len(setting.validation.tasks) == 1)
    for client, own in values.items():
        found = _summed(setting.validation, own)
        found |= {"clients": _by_client(setting, {client: own})} if client is None else {}
        line = {"method": name, "client": client, "round": rounds[client]}
        setting.record.append("validation", {**line, **found, "seconds": seconds[client]})
    return validation_scores(setting, values, rounds)


def _values(
    asked: Mapping[int | None, tuple[Sequence[Example], Judged]], *, headline: bool
) -> dict[int | None, np.ndarray]:
    """Score the answers of all models in one call, since the rarity of a caption's words is counted over all of them."""
    whole = each(
        [example for examples, _ in asked.values() for example in examples],
        joined([judged for _, judged in asked.values()]),
        headline=headline,
    )
    ends = np.cumsum([len(examples) for examples, _ in asked.values()])[:-1]
    return dict(zip(asked, np.split(whole, ends), strict=True))


def validation_scores(
    setting: Setting, values: Mapping[int | None, np.ndarray], rounds: Mapping[int | None, int]
) -> dict[str, Any]:
    """Average the scores of models on the validation part.

    Args:
        setting: What all methods share.
        values: Each model's score of each of its validation examples, by client, or None for a global model.
        rounds: How many rounds each of these models was trained for.

    Returns:
        "score": the mean over all examples, which is that over clients weighted by their numbers of examples; "metric";
        "examples"; "clients": each client's mean, None where it has no examples, or null where the part is common and
        the model global; "rounds": those of each model.
    """
    assert setting.validation is not None
    found = _summed(setting.validation, np.concatenate(list(values.values())))
    return {
        **found,
        "clients": _by_client(setting, values),
        "rounds": [rounds[one] for one in values],
    }


def _summed(validation: Validation, values: np.ndarray) -> dict[str, Any]:
    """Return the mean score, its metric, and the number of examples."""
    metric = HEADLINES[validation.tasks[0]] if len(validation.tasks) == 1 else "accuracy"
    return {"score": float(values.mean()), "metric": metric, "examples": len(values)}


def _by_client(setting: Setting, values: Mapping[int | None, np.ndarray]) -> list[float | None] | None:
    """Return the mean score on each client's examples; None where a global model answers a common part."""
    validation = setting.validation
    assert validation is not None
    if None not in values:
        count = len(setting.plan.clients)
        return [float(values[one].mean()) if one in values else None for one in range(count)]
    if validation.common:
        return None
    ends = validation.plan.offsets.tolist()
    return [
        float(values[None][start:end].mean()) if end > start else None
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]
