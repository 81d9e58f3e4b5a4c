"""Run an experiment from data to report: every method of it, each resumable at every round."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedloom.client.train import OWN
from fedloom.data import load_data
from fedloom.engine.memory import keep_freed
from fedloom.engine.rounds import Standing
from fedloom.engine.store import last_commit
from fedloom.experiment import Experiment
from fedloom.measure import figures, headline, own_figures, slices_of
from fedloom.methods import Method, parse_method
from fedloom.models.assemble import load_model
from fedloom.models.features import cache_folder
from fedloom.models.judge import load_judge
from fedloom.models.load import Vlm, placed, with_store
from fedloom.params import Params
from fedloom.progress import Progress
from fedloom.record import Clock, Record, write_atomic, write_json
from fedloom.report.gain import comparison
from fedloom.report.page import write_report
from fedloom.scenarios.plan import Plan, build_plan, pooled
from fedloom.tasks.linear import linear_reference, require_choice
from fedloom.tasks.scoring import Judged
from fedloom.training import Setting, algorithm_of, answers_of, train_method
from fedloom.tuning.adapters import export_adapter, prepare, release
from fedloom.tuning.masks import own_start, shared_mask
from fedloom.tuning.strategy import LoRA, strategy, whole
from fedloom.types import DataSet, Example, UserError

SCORED_TOGETHER = 4
"""Clients' own models that answer the test questions in one pass."""

Models = dict[str, Vlm]
"""Loaded models by the settings they were loaded with; they remember what they made of pictures and texts."""


def run_experiment(
    experiment: Experiment, out: Path, progress: Progress, models: Models | None = None
) -> dict[str, Any]:
    """Run an experiment into a new folder.

    Args:
        experiment: Every choice.
        out: The run folder; made if missing.
        progress: Told how far the run has come.
        models: Models to use again, and where to put one that is loaded; changes no result.

    Returns:
        What `result.json` holds.

    Raises:
        UserError: The folder holds another experiment, or the experiment cannot be run.
    """
    file = out / "experiment.json"
    if file.exists() and Experiment.from_json(file.read_text(encoding="utf-8"), str(file)) != experiment:
        raise UserError(f"{out} holds another experiment; choose another folder with --out")
    write_atomic(file, experiment.to_json().encode())
    return _run(experiment, out, progress, {} if models is None else models)


def resume_run(folder: Path, progress: Progress, models: Models | None = None) -> dict[str, Any]:
    """Continue a run from its last committed round; a finished run returns its result.

    The arguments are those of `run_experiment`.

    Raises:
        UserError: There is no run in the folder, or its data changed since it began.
    """
    file = folder / "experiment.json"
    if not file.exists():
        raise UserError(f"{folder} holds no run: there is no experiment.json in it")
    experiment = Experiment.from_json(file.read_text(encoding="utf-8"), str(file))
    return _run(experiment, folder, progress, {} if models is None else models)


def _run(experiment: Experiment, folder: Path, progress: Progress, models: Models) -> dict[str, Any]:
    result_file = folder / "result.json"
    if result_file.exists():
        if not (folder / "report.html").exists():
            write_report([folder], folder / "report.html")
        return json.loads(result_file.read_text(encoding="utf-8"))
    begun = time.perf_counter()
    setting = _prepare(experiment, folder, progress, models)
    main = experiment.exported
    try:
        results = {name: _method(setting, name) for name in experiment.methods}
        if main is not None:
            _export(setting, main)
    finally:
        release(setting.tuned)
    result = {
        "name": experiment.name,
        "digest": experiment.digest,
        "main": main,
        "scores": {name: one["scores"] for name, one in results.items()},
        "scoring": experiment.evaluate.scoring,
        "comparison": comparison({name: one["scores"] for name, one in results.items()}),
        "bytes": {name: one["bytes"] for name, one in results.items()},
        "seconds": {name: one["seconds"] for name, one in results.items()},
        "adapter": "adapter" if main is not None else None,
        "report": "report.html",
    }
    setting.record.append("end", {"seconds": time.perf_counter() - begun})
    write_json(result_file, result)
    write_report([folder], folder / "report.html")
    return result


def _prepare(experiment: Experiment, folder: Path, progress: Progress, models: Models) -> Setting:
    import torch
    import transformers

    import fedloom

    keep_freed()
    if experiment.model.threads is not None:
        torch.set_num_threads(experiment.model.threads)
    data = load_data(experiment.data, experiment.seed)
    if "linear" in experiment.methods:
        require_choice([*data.train, *data.test])
    plan = build_plan(data.train, experiment.scenario, experiment.seed)
    _check_plan(folder / "plan.json", plan, data)
    vlm = _loaded(experiment, models)
    judge = None if experiment.evaluate.judge is None else load_judge(experiment.evaluate.judge, vlm.device)
    chosen = experiment.strategy
    stages = strategy(chosen.name, LoRA(chosen.rank, chosen.alpha, chosen.targets, chosen.dropout))
    tuned = prepare(vlm, whole(stages), experiment.seed)
    record = Record(folder / "record.jsonl")
    record.append(
        "start",
        {
            "digest": experiment.digest,
            "version": fedloom.__version__,
            "seed": experiment.seed,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
            "machine": f"{platform.system()} {platform.machine()}",
            "model": vlm.digest,
            "trained": tuned.layout.size,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    rejected = [str(one) for one in data.rejected]
    record.append(
        "data", {"name": data.name, "train": len(data.train), "test": len(data.test), "rejected": rejected}
    )
    pictures = [one.image for one in (*data.train, *data.test) if one.image is not None]
    clock = Clock()
    computed = vlm.warm(pictures)
    clock.lap("vision")
    record.append(
        "vision",
        {
            "pictures": len({one.key for one in pictures}),
            "computed": computed,
            "seconds": clock.seconds["vision"],
            "damaged": vlm.store.damaged if vlm.store else [],
        },
    )
    return Setting(experiment, folder, data, plan, tuned, stages, record, progress, judge)


def _loaded(experiment: Experiment, models: Models) -> Vlm:
    """Load an experiment's model, or take the one that was loaded with the same settings before."""
    settings, engine = experiment.model, experiment.engine
    # A fresh connector depends on the seed.
    seed = experiment.seed if settings.connector or settings.encoder else None
    key = f"{settings.model_dump_json(exclude={'threads'})} {seed}"
    if key not in models:
        vlm = load_model(settings, experiment.seed)
        models[key] = placed(vlm, settings.device, settings.precision)
    if not engine.cache:
        return models[key]
    return with_store(models[key], cache_folder() / "features", int(engine.cache_gigabytes * 1e9))


def _check_plan(file: Path, plan: Plan, data: DataSet) -> None:
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))["digest"]
        if before != plan.digest:
            raise UserError(
                f"{file}: the data changed since this run began; start a new run with another --out"
            )
    else:
        write_json(file, plan.to_json(data.train))


def _method(setting: Setting, name: str) -> dict[str, Any]:
    """Run one method, or read what it came to if it is finished."""
    file = setting.folder / "methods" / name / "result.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    begun = time.perf_counter()
    method = parse_method(name)
    scores, up, down = RUNS.get(method.base, _federated)(setting, method, name)
    seconds = time.perf_counter() - begun
    value = {"scores": scores, "bytes": {"up": up, "down": down}, "seconds": seconds}
    write_json(file, value)
    return value


Outcome = tuple[dict[str, Any], int, int]
"""Scores, bytes sent up, bytes sent down. References send nothing: data are pooled, or stay where they are."""


def _zero_shot(setting: Setting, method: Method, name: str) -> Outcome:
    setting.progress.stage(name, len(slices_of(setting.data.test)))
    return _scores(setting, {None: setting.tuned.start}, method, name)[0], 0, 0


def _linear(setting: Setting, method: Method, name: str) -> Outcome:
    """Train the linear references on what clients see, pooled."""
    setting.progress.stage(name, 1)
    data = setting.data
    chances = linear_reference(_visible(data, setting.plan), data.test)
    answers = {
        part: Judged(tuple(int(row.argmax()) for row in rows), tuple(rows)) for part, rows in chances.items()
    }
    ordered = {part: answers[part] for part in slices_of(data.test) if part in answers}
    found = figures(data.train, data.test, setting.plan, ordered)
    setting.progress.advance(1)
    return found, 0, 0


def _visible(data: DataSet, plan: Plan) -> list[Example]:
    found: list[Example] = []
    for share in plan.clients:
        for index, image, text in zip(share.indices, share.image, share.text, strict=True):
            example = data.train[index]
            found.append(
                replace(example, image=example.image if image else None, text=example.text if text else None)
            )
    return found


def _federated(setting: Setting, method: Method, name: str) -> Outcome:
    clients = range(len(setting.plan.clients))
    (standing,) = train_method(setting, method, name, setting.plan, [(None, clients)])
    models = _models_of(setting, method, standing)
    if None in models:
        return _scores(setting, models, method, name)[0], standing.up, standing.down
    return _own_scores(setting, models, method, name), standing.up, standing.down


def _models_of(setting: Setting, method: Method, standing: Standing) -> dict[int | None, Params]:
    """Return the global model, or each client's own where parts are personal."""
    params = algorithm_of(setting, method).broadcast(standing.state).params
    shared = shared_mask(setting.tuned.layout, setting.stages[-1])
    if shared is None:
        return {None: params}
    return {
        client: own_start(params, standing.memories.get(client, {}).get(OWN), shared)
        for client in range(len(setting.plan.clients))
    }


def _centralised(setting: Setting, method: Method, name: str) -> Outcome:
    (standing,) = train_method(setting, method, name, pooled(setting.plan), [(None, range(1))])
    return _scores(setting, {None: standing.state.params}, method, name)[0], 0, 0


def _local(setting: Setting, method: Method, name: str) -> Outcome:
    """Let every client train alone; report the mean over clients, the best and the worst."""
    alone = [(client, range(client, client + 1)) for client in range(len(setting.plan.clients))]
    standings = train_method(setting, method, name, setting.plan, alone)
    models: dict[int | None, Params] = {
        client: standing.state.params for (client, _), standing in zip(alone, standings, strict=True)
    }
    return _own_scores(setting, models, method, name), 0, 0


def _own_scores(
    setting: Setting, models: Mapping[int | None, Params], method: Method, name: str
) -> dict[str, Any]:
    """Score each client's own model: the mean over clients, the best and the worst."""
    found: list[dict[str, Any]] = []
    together = SCORED_TOGETHER if setting.tuned.stackable else 1
    for start in range(0, len(models), together):
        found += _scores(setting, dict(list(models.items())[start : start + together]), method, name)
    reached = [headline(one) or 0.0 for one in found]
    own = own_figures(found)
    mean = _mean_of([{key: value for key, value in one.items() if key not in own} for one in found])
    return {**mean, **own, "best": max(reached), "worst": min(reached)}


def _mean_of(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average nested figures entry by entry; an entry unknown anywhere is unknown."""
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
    setting: Setting, models: Mapping[int | None, Params], method: Method, name: str
) -> list[dict[str, Any]]:
    """Score final parameters on every slice, several models at once; a global model's key is None."""
    rounds = 0 if method.base == "zero-shot" else sum(setting.rounds)
    answers: list[dict[str, Judged]] = [{} for _ in models]
    for part in slices_of(setting.data.test):
        judged = answers_of(setting, models, method, name, rounds, part)
        for found, one in zip(answers, judged, strict=True):
            found[part] = one
        if method.base == "zero-shot":
            setting.progress.advance(1)
    data, plan = setting.data, setting.plan
    return [figures(data.train, data.test, plan, found, setting.judge) for found in answers]


def _export(setting: Setting, main: str) -> None:
    standing = last_commit(setting.folder / "methods" / main, setting.tuned.layout)
    if standing is None:
        raise UserError(
            f"{setting.folder}: the last commit of {main} is damaged; delete the folder and run again"
        )
    for client, params in _models_of(setting, parse_method(main), standing).items():
        folder = setting.folder / "adapter"
        export_adapter(setting.tuned, params, folder if client is None else folder / f"client-{client}")
