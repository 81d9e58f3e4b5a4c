"""Train or read each method of a run, score it, and export the adapter of the main one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedloom.answering import answers_of, validated, validation_scores
from fedloom.client.site import Question
from fedloom.engine.federation import Federation
from fedloom.engine.rounds import Standing
from fedloom.engine.store import last_commit
from fedloom.experiment import Experiment
from fedloom.folder import ADAPTER, METHODS, RESULT
from fedloom.manifest import read_sealed, write_sealed
from fedloom.measure import at_sites, evidence_of, figures, headline, own_figures, slices_of
from fedloom.methods import Method
from fedloom.models.sentences import embed_sentences
from fedloom.scenarios.declared import site_of
from fedloom.scenarios.plan import Plan
from fedloom.setting import Setting
from fedloom.tasks.linear import linear_reference
from fedloom.tasks.scoring import Judged, each
from fedloom.training import best_questions, questions_of, train_method
from fedloom.tuning.adapters import export_adapter
from fedloom.types import Example, UserError

SCORED_TOGETHER = 4
"""Clients' own models that answer the test questions in one pass."""


def outcome(setting: Setting, name: str) -> dict[str, Any]:
    """Run one method, or read its result if it is finished.

    A result that is damaged, or whose parameters are to be exported and are in no checkpoint that is whole, is made
    again from the last checkpoint that is.

    Returns:
        What its `result.json` holds: "scores", "bytes" sent "up" and "down", "seconds", the size
        of the record ("recorded"), and whose result it is ("of").
    """
    file = setting.folder / METHODS / name / RESULT
    if file.exists():
        try:
            value = _of_this(setting, name, file)
        except UserError as error:
            setting.damaged(str(error))
        else:
            if name != setting.experiment.exported or _last(setting, name, setting.damaged) is not None:
                return value
    method = setting.experiment.method(name)
    begun = time.perf_counter()
    scores, up, down, validation = RUNS.get(method.base, _federated)(setting, method, name)
    value = {
        "scores": scores,
        "bytes": {"up": up, "down": down},
        "seconds": time.perf_counter() - begun,
        **({} if validation is None else {"validation": validation}),
        "recorded": setting.record.size,
        "of": setting.of(name),
    }
    write_sealed(file, value, setting.folder)
    return value


def _of_this(setting: Setting, name: str, file: Path) -> dict[str, Any]:
    """Read the result of a method; raise `UserError` for a damaged file and for that of another run or method."""
    value = read_sealed(file)
    if value.get("of") != setting.of(name):
        raise UserError(f"{file} is the result of another run or method")
    return value


def _last(setting: Setting, name: str, damaged: Callable[[str], None]) -> Standing | None:
    """Return where a finished method stands, or None where the checkpoint of its last round is damaged."""
    standing = last_commit(
        setting.folder / METHODS / name,
        setting.tuned.layout,
        damaged,
        setting.of(name, None, setting.stage_count(name) - 1),
    )
    return standing if standing is not None and standing.state.round == setting.rounds(name)[-1] else None


Outcome = tuple[dict[str, Any], int, int, dict[str, Any] | None]
"""Scores, bytes sent up, bytes sent down, validation scores. References send nothing: data are pooled, or do not move."""


def _zero_shot(setting: Setting, method: Method, name: str) -> Outcome:
    setting.progress.stage(name, len(slices_of(setting.data.test)))
    models: dict[int | None, Question] = {None: Question(name, 0, setting.tuned.start)}
    rounds: dict[int | None, int] = {None: 0}
    found = _scores(setting, models, name, rounds)[0]
    return found, 0, 0, validated(setting, models, name, rounds)


def _linear(setting: Setting, method: Method, name: str) -> Outcome:
    """Train the linear references on what clients see, pooled."""
    setting.progress.stage(name, 1)
    data = setting.data
    chances = linear_reference(_visible(data.train, setting.plan), data.test, _embedder(setting))
    answers = {
        part: Judged(tuple(int(row.argmax()) for row in rows), tuple(rows)) for part, rows in chances.items()
    }
    ordered = {part: answers[part] for part in slices_of(data.test) if part in answers}
    found = figures(data.train, data.test, setting.plan, ordered, metrics=setting.metrics)
    setting.progress.advance(1)
    return found, 0, 0, _linear_validated(setting, name)


def _linear_validated(setting: Setting, name: str) -> dict[str, Any] | None:
    """Score the linear references on the validation part, each example with the modalities that its client sees."""
    if setting.validation is None:
        return None
    asked = _visible(setting.validation.examples, setting.validation.plan)
    chances = linear_reference(_visible(setting.data.train, setting.plan), asked, _embedder(setting))
    if not chances:  # no client trains on a modality that is seen of the validation part
        return None
    picked = [chances[evidence_of(one, chances)][place] for place, one in enumerate(asked)]
    judged = Judged(tuple(int(row.argmax()) for row in picked), tuple(picked))
    found = validation_scores(setting, {None: each(asked, judged, headline=True)}, {None: 0})
    setting.record.append("validation", {"method": name, "client": None, "round": 0, **found})
    return found


def _embedder(setting: Setting) -> Callable[[Sequence[str]], Any] | None:
    """Return the function that embeds texts for the linear reference; None for word counts."""
    return embed_sentences if setting.experiment.evaluate.linear_text == "minilm" else None


def _visible(examples: Sequence[Example], plan: Plan) -> list[Example]:
    found: list[Example] = []
    for share in plan.clients:
        for index, image, text in zip(share.indices, share.image, share.text, strict=True):
            example = examples[index]
            found.append(
                replace(example, image=example.image if image else None, text=example.text if text else None)
            )
    return found


def _federated(setting: Setting, method: Method, name: str) -> Outcome:
    clients = range(len(setting.plan.clients))
    (standing,) = train_method(setting, method, name, [(None, clients)])
    models, rounds = _chosen(setting, method, name, [(None, standing)])
    validation = validated(setting, models, name, rounds)
    score = _global_scores if None in models else _own_scores
    scores = score(setting, models, name, rounds)
    if isinstance(there := setting.elsewhere, Federation) and there.own and setting.data.test:
        scores["sites"] = there.evaluate(models)
    return scores, standing.up, standing.down, validation


def _chosen(
    setting: Setting, method: Method, name: str, standings: Sequence[tuple[int | None, Standing]]
) -> tuple[dict[int | None, Question], dict[int | None, int]]:
    """Return the models that are reported, of the last round or the best one, and how many rounds each was trained for."""
    models: dict[int | None, Question] = {}
    rounds: dict[int | None, int] = {}
    for alone, standing in standings:
        own = questions_of(setting, method, name, standing, alone)
        if standing.best is not None:
            own = best_questions(setting, name, standing.best, list(own))
        models |= own
        rounds |= dict.fromkeys(own, standing.best.round if standing.best else sum(setting.rounds(name)))
    return models, rounds


def _centralised(setting: Setting, method: Method, name: str) -> Outcome:
    (standing,) = train_method(setting, method, name, [(None, range(1))])
    models, rounds = _chosen(setting, method, name, [(None, standing)])
    validation = validated(setting, models, name, rounds)
    return _global_scores(setting, models, name, rounds), 0, 0, validation


def _local(setting: Setting, method: Method, name: str) -> Outcome:
    """Let every client train alone; report the mean over clients, the best and the worst."""
    alone = [(client, range(client, client + 1)) for client in range(len(setting.plan.clients))]
    standings = train_method(setting, method, name, alone)
    clients = [client for client, _ in alone]
    trained = list(zip(clients, standings, strict=True))
    # Rounds in a row that had no effect, up to the end: the model is the one that its client began with.
    untrained = [client for client, standing in trained if standing.missed >= setting.rounds(name)[-1]]
    for client in untrained:
        setting.progress.message(
            f"{name}: no update of client {client} could be used; its model is untrained"
        )
    models, rounds = _chosen(setting, method, name, trained)
    validation = validated(setting, models, name, rounds)
    scores = _own_scores(setting, models, name, rounds)
    return {**scores, **({"untrained": untrained} if untrained else {})}, 0, 0, validation


Rounds = Mapping[int | None, int]
"""Client, or None for the global model → rounds that the model was trained for."""


def _global_scores(
    setting: Setting, models: Mapping[int | None, Question], name: str, rounds: Rounds
) -> dict[str, Any]:
    """Score the global model."""
    return _scores(setting, models, name, rounds)[0]


def _own_scores(
    setting: Setting, models: Mapping[int | None, Question], name: str, rounds: Rounds
) -> dict[str, Any]:
    """Score each client's own model: the mean over clients, the best and the worst."""
    found: list[dict[str, Any]] = []
    together = SCORED_TOGETHER if setting.tuned.stackable else 1
    for start in range(0, len(models), together):
        found += _scores(setting, dict(list(models.items())[start : start + together]), name, rounds)
    reached = [value for one in found if (value := headline(one)) is not None]
    own = own_figures(found)
    mean = _mean_of([{key: value for key, value in one.items() if key not in own} for one in found])
    return {**mean, **own, "best": max(reached, default=None), "worst": min(reached, default=None)}


def _mean_of(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average nested figures entry by entry; an entry that is None anywhere is None."""
    mean: dict[str, Any] = {}
    for key, first in values[0].items():
        found = [value[key] for value in values]
        if isinstance(first, dict):
            mean[key] = _mean_of(found)
        else:
            mean[key] = None if any(value is None for value in found) else sum(found) / len(found)
    return mean


RUNS: dict[str, Callable[[Setting, Method, str], Outcome]] = {
    "zero-shot": _zero_shot,
    "linear": _linear,
    "local": _local,
    "centralised": _centralised,
}
"""How each reference runs; every other name is a federated algorithm."""


def _scores(
    setting: Setting, models: Mapping[int | None, Question], name: str, rounds: Rounds
) -> list[dict[str, Any]]:
    """Score final parameters on every slice, several models at once; a global model's key is None.

    Where the server has no test part, the sites score the global model on theirs.
    """
    if not setting.data.test and isinstance(setting.elsewhere, Federation):
        if name == "zero-shot":
            setting.progress.advance(1)
        clients = {client: site for site, client in site_of(setting.plan, setting.data.train).items()}
        return [at_sites(setting.elsewhere.evaluate(models), [clients[one] for one in sorted(clients)])]
    answers: list[dict[str, Judged]] = [{} for _ in models]
    for part in slices_of(setting.data.test):
        judged = answers_of(setting, models, name, rounds, part)
        for found, one in zip(answers, judged, strict=True):
            found[part] = one
        if name == "zero-shot":
            setting.progress.advance(1)
    data, plan = setting.data, setting.plan
    return [figures(data.train, data.test, plan, found, setting.judge, setting.metrics) for found in answers]


def validation_of(setting: Setting, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what `result.json` holds of the validation part; an empty dict where there is none."""
    if (part := setting.validation) is None:
        return {}
    value = {"from": part.source, "examples": len(part.plan.indices), "without": part.sizes.count(0)}
    methods = {name: one.get("validation") for name, one in results.items()}
    return {"validation": {**value, "round": setting.experiment.evaluate.round, "methods": methods}}


def explained(experiment: Experiment) -> dict[str, str]:
    """Return what each algorithm and each part of the experiment's methods does, in a sentence."""
    methods = [experiment.method(name) for name in experiment.methods]
    names = dict.fromkeys(
        name for one in methods for name in (*([one.base] if one.federated else []), *one.parts)
    )
    return {name: experiment.entries[name].about for name in names}


def export(setting: Setting, main: str) -> None:
    """Write the adapter of a finished method, or each client's own, in PEFT's format.

    Raises:
        UserError: Its last checkpoint is damaged.
    """
    standing = _last(setting, main, setting.damaged)
    if standing is None:
        raise UserError(
            f"{setting.folder}: the last checkpoint of {main} is damaged; run the same command again"
        )
    for client, question in _chosen(setting, setting.experiment.method(main), main, [(None, standing)])[
        0
    ].items():
        if client is not None and setting.elsewhere is not None:
            continue  # it stays at its site
        folder = setting.folder / ADAPTER
        export_adapter(
            setting.tuned,
            setting.site.model(question),
            folder if client is None else folder / f"client-{client}",
        )
