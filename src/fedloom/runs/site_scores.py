"""Let sites score models on their own test and validation parts, and combine these scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedloom.client.site import Question
from fedloom.runs.modality_slices import headline
from fedloom.runs.run_context import RunContext
from fedloom.scenarios.declared_examples import clients_by_site
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.tasks.score_answers import HEADLINES, means_of_tasks


def scores_at_sites(context: RunContext, models: Mapping[int | None, Question]) -> dict[str, Any]:
    """Let sites score models on their own test parts, and combine the scores; see `combine_site_scores`.

    Args:
        context: What all methods share.
        models: The global model under None, or each client's own model, which stays at its site.
    """
    assert context.sites is not None
    scores = combine_site_scores(context.sites.evaluate(models), _order(context))
    known = [score for score in scores["clients"] if score is not None]
    if None in models or not known:
        return scores
    return {**scores, "best": max(known), "worst": min(known)}


def validate_at_sites(
    context: RunContext,
    models: Mapping[int | None, Question],
    name: str,
    rounds: Mapping[int | None, int],
) -> dict[str, Any] | None:
    """Let sites score models on their own validation parts; see `fedloom.runs.evaluation.validate`."""
    assert context.sites is not None
    clock = Clock()
    questions = {client: replace(question, test="validation") for client, question in models.items()}
    answers = context.sites.evaluate(questions)
    clock.lap("validation")
    if not _scored(answers):
        return None
    scores = combine_site_scores(answers, _order(context))
    tasks = list(scores["tasks"])
    metric = HEADLINES[tasks[0]] if len(tasks) == 1 else "accuracy"
    if (value := headline(scores)) is None:
        return None
    summary = {"score": value, "metric": metric, "examples": scores["examples"], "clients": scores["clients"]}
    line = {"method": name, "client": None, "round": max(rounds.values()), **summary}
    context.record.append("validation", {**line, "seconds": clock.seconds["validation"]})
    return {**summary, "rounds": [rounds[client] for client in models]}


def _order(context: RunContext) -> list[str]:
    """Return the site of each client."""
    clients = clients_by_site(context.plan, context.data.train)
    return sorted(clients, key=clients.__getitem__)


def combine_site_scores(answers: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """Combine the scores of one model from several sites.

    Args:
        answers: Site → "examples", their number, "counts", that of each task, and "scores", as `score` returned them there; or
            the "reason" why it has none.
        order: The site of each client.

    Returns:
        Scores as `score_model` returns them. A task's score is the mean over the sites that sent it, weighted by their numbers of
        examples of this task, so its accuracy is that over all of them; on top are the means over tasks, as in one process. "examples" is the number of these, and "sites" holds each site's answer.

    Raises:
        UserError: No site sent scores.
    """
    scored = _scored(answers)
    if not scored:
        reasons = "; ".join(
            f"{site}: {answer.get('reason', 'it sends no scores')}" for site, answer in answers.items()
        )
        raise UserError(f"no site sent scores ({reasons}), and the server has no test part")
    tasks = dict.fromkeys(task for answer in scored.values() for task in answer["scores"]["tasks"])
    by_task = {
        task: _weighted_mean(
            [
                (_count(answer, task), answer["scores"]["tasks"][task])
                for answer in scored.values()
                if task in answer["scores"]["tasks"]
            ]
        )
        for task in tasks
    }
    top = means_of_tasks(list(by_task.values()))
    scores = {**top, "tasks": by_task}
    client_tasks = [_headlines(scored[site]) if site in scored else {} for site in order]
    return {
        **scores,
        "slices": {"both": scores},
        "clients": [next(iter(headlines.values()), None) for headlines in client_tasks],
        "client_tasks": client_tasks,
        "examples": sum(answer["examples"] for answer in scored.values()),
        "sites": {site: dict(answer) for site, answer in answers.items()},
    }


def _scored(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the answers of the sites that sent scores."""
    return {site: answer for site, answer in answers.items() if answer.get("scores", {}).get("tasks")}


def _count(answer: Mapping[str, Any], task: str) -> int:
    """Return the number of a site's test examples of a task; a site with one task need not send it."""
    return answer.get("counts", {}).get(task, answer["examples"])


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
