"""Combine the scores that sites compute on their own held-out parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedloom.system.errors import UserError
from fedloom.tasks.score_answers import HEADLINES


def combine_site_scores(answers: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """Combine the scores of one model from several sites.

    Args:
        answers: Site → "examples", their number, and "scores", as `score` returned them there; or the "reason" why it has none.
        order: The site of each client.

    Returns:
        Scores as `score_model` returns them. A score is the mean over the sites that sent it, weighted by their numbers of
        examples, so accuracy is that over all examples. "sites" holds each site's answer.

    Raises:
        UserError: No site sent scores.
    """
    scored = {site: answer for site, answer in answers.items() if answer.get("scores", {}).get("tasks")}
    if not scored:
        reasons = "; ".join(
            f"{site}: {answer.get('reason', 'it sends no scores')}" for site, answer in answers.items()
        )
        raise UserError(f"no site sent scores ({reasons}), and the server has no test part")
    tasks = dict.fromkeys(task for answer in scored.values() for task in answer["scores"]["tasks"])
    top = _weighted_mean([(answer["examples"], answer["scores"]) for answer in scored.values()])
    by_task = {
        task: _weighted_mean(
            [
                (answer["examples"], answer["scores"]["tasks"][task])
                for answer in scored.values()
                if task in answer["scores"]["tasks"]
            ]
        )
        for task in tasks
    }
    scores = {**top, "tasks": by_task}
    client_tasks = [_headlines(scored[site]) if site in scored else {} for site in order]
    return {
        **scores,
        "slices": {"both": scores},
        "clients": [next(iter(headlines.values()), None) for headlines in client_tasks],
        "client_tasks": client_tasks,
        "sites": {site: dict(answer) for site, answer in answers.items()},
    }


def _headlines(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headline of each task of a site."""
    return {task: scores.get(HEADLINES[task]) for task, scores in answer["scores"]["tasks"].items()}


def _weighted_mean(sites: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, float]:
    """Average scores, weighted by numbers of examples; a score that no site could compute is left out."""
    names = dict.fromkeys(name for _, scores in sites for name in scores if name != "tasks")
    means = dict[str, float]()
    for name in names:
        values = [(count, scores[name]) for count, scores in sites if scores.get(name) is not None]
        if total := sum(count for count, _ in values):
            means[name] = sum(count * value for count, value in values) / total
    return means
