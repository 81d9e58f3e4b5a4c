"""How strongly two models agree on the same questions, which narrows the interval of their difference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.report.federation_gain import baseline_of, local_method
from fedloom.runs.modality_slices import dependent_groups, own_weights, slices_of
from fedloom.runs.run_folder import METHODS
from fedloom.scenarios.plan import Plan
from fedloom.tasks.score_answers import tasks_of
from fedloom.types import Example

Scores = dict[str, dict[int | None, NDArray[np.float64]]]
"""Method → client, or None for a model of all → score of every question, shape [slices, test examples]."""


def read_example_scores(folder: Path, methods: Sequence[str], test: Sequence[Example]) -> Scores:
    """Read the score of every example from the predictions of a run's methods; a method without predictions is left out."""
    scores: Scores = {}
    place, slices = {example.id: k for k, example in enumerate(test)}, slices_of(test)
    for method in methods:
        for row in _rows(sorted((folder / METHODS / method / "predictions").glob("*.jsonl"))):
            if row["example"] in place and row["slice"] in slices:
                models = scores.setdefault(method, {})
                empty = np.full((len(slices), len(test)), np.nan)
                model = models.setdefault(row["client"], empty)
                model[slices.index(row["slice"]), place[row["example"]]] = row["score"]
    return scores


def _rows(files: Iterable[Path]) -> Iterator[Mapping[str, Any]]:
    for file in files:
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def agreement(
    train: Sequence[Example], test: Sequence[Example], plan: Plan, scores: Scores
) -> dict[str, dict[str, Any]]:
    """Correlate the scores of each method with those of the models that clients trained alone, question by question.

    These are the models of the method's baseline; see `fedloom.report.federation_gain.baseline_of`.

    The correlation of two weighted means Σ w_i x_i and Σ w_i y_i is Σ_g u_g v_g / √(Σ_g u_g² Σ_g v_g²), where u_g and v_g
    are the sums of w_i (x_i − x̄) and w_i (y_i − ȳ) over a group g of questions that depend on each other, such as those
    about one image.

    Args:
        train: Training examples, which the plan divides.
        test: Test examples.
        plan: Who holds what.
        scores: The score of every test example.

    Returns:
        Method → under "clients" task → correlation for each client, on data like its own, and under "own" the same for the
        means over clients; and, if it is not plain `local`, the baseline under "alone". A correlation that is undefined, because one of the models has the same score on all questions,
        is missing. Empty without local training.
    """
    if (local := local_method(dict.fromkeys(scores))) is None:
        return {}
    groups, result = dependent_groups(test), {}
    for method, models in scores.items():
        if (alone := baseline_of(method, scores)) is None:
            continue
        entry: dict[str, Any] = {"own": {}, "clients": [{} for _ in plan.clients]}
        entry |= {"alone": alone} if alone != local else {}
        for task in tasks_of(test):
            sums = np.zeros((2, groups.max(initial=0) + 1))
            for client, share in enumerate(plan.clients):
                pair = (models.get(client, models.get(None)), scores[alone].get(client))
                weights = own_weights(share, train, test, slices_of(test), task)
                if weights is None or pair[0] is None or pair[1] is None:
                    continue
                residuals = np.stack([_residuals(weights, own, groups) for own in pair if own is not None])
                _correlate(entry["clients"][client], task, residuals)
                sums += residuals
            _correlate(entry["own"], task, sums)
        result[method] = entry
    return result


def _residuals(
    weights: NDArray[np.float64], scores: NDArray[np.float64], groups: NDArray[np.int64]
) -> NDArray[Any]:
    """Return for each group the weighted sum of what its scores differ from the mean, shape [groups]."""
    known = np.where(weights > 0, scores, 0.0)
    differences = weights * (known - (weights * known).sum() / weights.sum())
    return np.bincount(groups, differences.sum(0), minlength=groups.max(initial=0) + 1)


def _correlate(entry: dict[str, float], task: str, residuals: NDArray[np.float64]) -> None:
    """Set the correlation of two rows of residuals, unless one of them is zero."""
    size = float(np.sqrt((residuals[0] ** 2).sum() * (residuals[1] ** 2).sum()))
    if size > 1e-12 and np.isfinite(size):
        entry[task] = float(np.clip((residuals[0] * residuals[1]).sum() / size, -1.0, 1.0))
