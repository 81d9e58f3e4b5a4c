"""Which model a score on everybody's questions is of: the one that all clients share, or each client's own.

A method whose clients end with models of their own has top-level scores that are means over these; under "shared" it has those of
the shared model, if there is one. Training alone has no shared model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedloom.report.run_results import Json, at, number

SHARED_MODEL, OWN_MODELS, OWN_DATA = (
    "Global test, shared model",
    "Global test, own models",
    "Own data, own model",
)
"""Headings of the three scores of methods whose clients have own models: never one of them alone."""

ABOUT = (
    "Global test: on everybody's questions, with the model that all clients share, and the mean over the clients' own models where "
    "they have any. Own data: on data like each client's own, with its own model where it has one, else with the shared one."
)


def has_own_models(scores: Json) -> bool:
    """Return whether a method's top-level scores are means over models, one for each client."""
    return number(scores, "best") is not None


def shared_model(scores: Json) -> Json | None:
    """Return the scores of a method's shared model; None if there is none, or if it was not scored."""
    if not has_own_models(scores):
        return scores
    shared = at(scores, "shared")
    return shared if isinstance(shared, Mapping) else None


def own_models(scores: Json) -> Json | None:
    """Return a method's means over clients' own models; None if clients have none."""
    return scores if has_own_models(scores) else None


def for_everybody(scores: Json) -> Json:
    """Return the scores of a method's shared model; where there is none, the means over clients' own models."""
    shared = shared_model(scores)
    return scores if shared is None else shared


def has_both(scores: Mapping[Any, Any]) -> bool:
    """Return whether any of several methods has both kinds of models, so that tables need a column for each.

    Args:
        scores: Method → its scores.
    """
    return any(
        has_own_models(entry) and shared_model(entry) is not None
        for entry in scores.values()
        if isinstance(entry, Mapping)
    )
