"""Run an experiment from data to report: every method of it, each resumable at every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedloom.algorithms import COMPARED
from fedloom.client.site import Site
from fedloom.data import load_data, usable
from fedloom.data.pictures import know_keys
from fedloom.engine.memory import keep_freed
from fedloom.engine.store import recorded_below
from fedloom.experiment import Experiment
from fedloom.folder import (
    ADAPTER,
    METHODS,
    RECORD,
    REPORT,
    RESULT,
    begin,
    folder_state,
    held,
    require_whole,
    resumable,
    working,
    written,
)
from fedloom.hashes import cache_folder, combined, json_digest
from fedloom.identity import contents_of, family_code, identity, require_same
from fedloom.manifest import Manifest, list_files, read_manifest
from fedloom.methods import parse_method
from fedloom.models.assemble import base_digest, connected, load_base, parts_digest
from fedloom.models.fitness import Checked, checked
from fedloom.models.judge import load_judge
from fedloom.models.load import Vlm, others, placed, versions, with_store
from fedloom.models.sentences import sentence_source
from fedloom.models.source import Source
from fedloom.models.texts import check_pattern
from fedloom.outcomes import explained, export, outcome, validation_of
from fedloom.progress import Progress
from fedloom.record import Clock, Record, read_json, require_length, write_json
from fedloom.report.gain import comparison
from fedloom.report.page import write_report
from fedloom.scenarios.plan import Plan
from fedloom.scenarios.validation import divided, plan_json
from fedloom.setting import Elsewhere, Setting, record_start
from fedloom.sites import clause_of, make_site
from fedloom.tasks import TASKS
from fedloom.tasks.linear import require_choice
from fedloom.tuning.adapters import Tuned, prepare, release, replica
from fedloom.tuning.strategy import LoRA, Strategy, strategy, whole
from fedloom.types import Conversation, DataSet, Example, Presence, UserError

T = TypeVar("T")

Models = dict[str, Any]
"""Loaded base models and judges by the settings they were loaded with; models remember what they made of images and texts."""

BESIDE_BASE = {"connector", "connector_weights", "queries", "max_tokens", "threads"}
"""Keys of the section `model` that the base model does not depend on."""

SHOWN = 5
"""Skipped records that a run names in its output; the record has all of them."""

Cell = tuple[Experiment, Path]
"""What is run, and its run folder."""

Result = dict[str, Any]
"""What `result.json` of a run holds."""


def run_experiment(
    experiment: Experiment,
    out: Path,
    progress: Progress,
    models: Models | None = None,
    elsewhere: Elsewhere | None = None,
) -> Result:
    """Run an experiment into a new folder, or go on with it.

    Args:
        experiment: Every choice.
        out: The run folder; made if missing.
        progress: Told how far the run has come.
        models: Models to use again, and where to put one that is loaded; changes no result.
        elsewhere: Reaches the sites of clients that are on other machines; changes no result either.

    Returns:
        What `result.json` holds.

    Raises:
        UserError: The folder holds another experiment, or the experiment cannot be run.
    """
    models = {} if models is None else models
    if folder_state(out, experiment) == "finished":
        return finished_result(experiment, out, elsewhere)
    if (
        before := held(out, experiment.plugins)
    ) is not None:  # data and models may have moved; the rest stays as it was begun
        experiment = experiment.model_copy(update={"name": before.name, "engine": before.engine})
    with working(out):
        folder_state(out, experiment)  # another process may have begun, or ended, something else here
        manifest = read_manifest(out)
        if manifest is None or RESULT not in manifest.files:
            begun = time.perf_counter()
            result = _results(experiment, out, progress, models, elsewhere)
            Record(out / RECORD).append("end", {"seconds": time.perf_counter() - begun})
            write_json(out / RESULT, result, out)
            list_files(out, written(out))
        else:  # a run that ended before its report was written
            finished_result(experiment, out, elsewhere)
        write_report([out], out / REPORT)  # which also lists it
    return read_json(out / RESULT, {"scores": dict})


def resume_run(folder: Path, progress: Progress, models: Models | None = None) -> Result:
    """Continue a run from its last checkpoint; a finished run returns its result.

    The arguments are those of `run_experiment`.

    Raises:
        UserError: There is no run in the folder, or its data, base model or code changed since it began.
    """
    return run_experiment(resumable(folder), folder, progress, models)


def finished_result(experiment: Experiment, folder: Path, elsewhere: Elsewhere | None = None) -> Result:
    """Read the result of a finished run, after a check that it is the one that would be run now.

    Args:
        experiment: What the folder must hold.
        folder: The run folder.
        elsewhere: As in `run_experiment`.

    Raises:
        UserError: Its data, base model or code changed, or a file is damaged; which one is named.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} was removed while it was being written to")
    contents = contents_of(_data(experiment, elsewhere))
    require_same(folder, manifest.identity, _now(experiment, contents))
    require_whole(folder, manifest)
    return read_json(folder / RESULT, {"scores": dict})


def stale(cells: Mapping[int, Cell]) -> dict[int, str]:
    """Return for each run that cannot be gone on with, or handed out, the reason: it changed, or is damaged."""
    contents: dict[str, dict[str, str]] = {}  # which cells with the same data share
    reasons: dict[int, str] = {}
    for place, (experiment, folder) in cells.items():
        try:
            if folder_state(folder, experiment) != "new" and (manifest := read_manifest(folder)) is not None:
                of = [experiment.data.model_dump_json(), experiment.seed, dict(experiment.added.digests)]
                if (key := json_digest(of)) not in contents:
                    contents[key] = contents_of(_data(experiment))
                require_same(folder, manifest.identity, _now(experiment, contents[key]))
                require_whole(folder, manifest)
        except UserError as error:
            reasons[place] = str(error)
    return reasons


def _data(experiment: Experiment, elsewhere: Elsewhere | None = None) -> DataSet:
    if elsewhere is not None and elsewhere.data is not None:
        return elsewhere.data
    data = load_data(experiment.data, experiment.seed, experiment.datasets)
    pictures = [image for one in data.examples for image in (*one.pictures, *one.spare)]
    know_keys(pictures, cache_folder() / "hashes" / "images.json")
    return data


def identity_now(experiment: Experiment, data: DataSet | None = None) -> dict[str, str]:
    """Return the identity of an experiment as it would run here and now, with what its data say where they are given."""
    return _now(experiment, {} if data is None else contents_of(data))


def _now(experiment: Experiment, contents: Mapping[str, str]) -> dict[str, str]:
    """Return the identity that a run would have if it began now."""
    return identity(experiment, contents, _base(experiment))


def _results(
    experiment: Experiment, folder: Path, progress: Progress, models: Models, elsewhere: Elsewhere | None
) -> Result:
    """Run or read every method, and return what `result.json` holds."""
    with ExitStack() as live:
        setting = _prepare(experiment, folder, progress, models, live, elsewhere)
        main = experiment.exported
        if elsewhere is not None:
            setting = replace(setting, elsewhere=live.enter_context(elsewhere.open(setting)))
        results = {name: outcome(setting, name) for name in experiment.methods}
        if main is not None:
            export(setting, main)
    return {
        "name": experiment.name,
        "digest": experiment.digest,
        "main": main,
        "scores": {name: one["scores"] for name, one in results.items()},
        "parts": explained(experiment),
        "scoring": experiment.evaluate.scoring,
        **({"metrics": [*setting.metrics]} if setting.metrics else {}),
        "comparison": comparison({name: one["scores"] for name, one in results.items()}),
        "bytes": {name: one["bytes"] for name, one in results.items()},
        "seconds": {name: one["seconds"] for name, one in results.items()},
        **validation_of(setting, results),
        "adapter": "adapter" if main is not None and (folder / ADAPTER).is_dir() else None,
        "report": "report.html",
    }


@contextmanager
def _adapted(experiment: Experiment, models: Models) -> Iterator[tuple[Tuned, tuple[Tuned, ...]]]:
    """Put an experiment's adapters into its model, and into copies on the other devices that it wants."""
    tuned = prepare(_loaded(experiment, models), whole(_stages(experiment)), experiment.seed)
    try:
        chosen, there = experiment.engine.workers, others(tuned.vlm)
        wanted = there if chosen == "auto" else there[: chosen - 1]
        yield tuned, tuple(replica(tuned, device) for device in wanted)
    finally:
        release(tuned)


@contextmanager
def open_site(
    experiment: Experiment, folder: Path, own: tuple[DataSet, Callable[[DataSet], Plan]] | None = None
) -> Iterator[Site]:
    """Open the site of all clients of an experiment, without a server.

    Args:
        experiment: Every choice.
        folder: Where the site keeps what its clients keep.
        own: The site's own data, and who holds what of them; None for the data and the plan of the experiment.
    """
    _set_threads(experiment)
    with _adapted(experiment, {}) as (tuned, _):
        data = _fitted(experiment, tuned.vlm, own[0] if own else _data(experiment)).data
        plan, validation = (
            (own[1](data), None)
            if own
            else divided(data, experiment.data, experiment.scenario, experiment.seed)
        )
        yield make_site(experiment, data, plan, tuned, _stages(experiment), folder, validation)


def _set_threads(experiment: Experiment) -> None:
    import torch

    keep_freed()
    if experiment.model.threads is not None:
        torch.set_num_threads(experiment.model.threads)


def _prepare(
    experiment: Experiment,
    folder: Path,
    progress: Progress,
    models: Models,
    live: ExitStack,
    elsewhere: Elsewhere | None,
) -> Setting:
    """Read the data, load the model, divide the examples; begin the run's folder, or check that it is this run's.

    Args:
        experiment: Every choice.
        folder: The run folder.
        progress: Told what was found.
        models: Models and judges to use again.
        live: Takes the adapters out of the model again when it closes.
        elsewhere: Sites on other machines.
    """
    import fedloom

    _set_threads(experiment)
    data, manifest = _data(experiment, elsewhere), read_manifest(folder)
    now = _now(experiment, contents_of(data))
    if manifest is not None:
        require_same(folder, manifest.identity, now)
        require_whole(folder, manifest)
    if "linear" in experiment.methods:
        require_choice(data.examples)
    tuned, twins = live.enter_context(_adapted(experiment, models))
    vlm, path, clock = tuned.vlm, experiment.evaluate.judge, Clock()
    check_pattern(vlm.family, experiment.scenario.pattern)
    check = _fitted(experiment, vlm, data, complete=elsewhere is None or elsewhere.data is None)
    clock.lap("vision")
    data = check.data
    plan, validation = divided(data, experiment.data, experiment.scenario, experiment.seed)
    judge = path and _kept(models, f"judge {path} {vlm.device}", partial(load_judge, path, vlm.device))
    found = versions()
    if manifest is None:
        began = Manifest(fedloom.__version__, now, found)
        begin(folder, experiment, plan_json(plan, data.train, validation), began)
    elif manifest.versions != found:
        told = ", ".join(f"{name} {value}" for name, value in manifest.versions.items())
        progress.message(f"this run began with {told}; with other versions its numbers may round differently")
    record = Record(folder / RECORD)
    require_length(record.path, recorded_below(folder / METHODS))
    record_start(record, experiment, tuned, check, clock.seconds["vision"], validation)
    rejected = [str(one) for one in data.rejected]
    for line in (*rejected[:SHOWN], *check.messages[:SHOWN]):
        progress.message(f"data: {line}")
    stages = _stages(experiment)
    site = make_site(experiment, data, plan, tuned, stages, folder / METHODS, validation)
    return Setting(
        experiment, folder, data, plan, site, stages, record, progress, json_digest(now), judge or None, twins, validation
    )  # fmt: skip


def _fitted(experiment: Experiment, vlm: Vlm, data: DataSet, *, complete: bool = True) -> Checked:
    """Check the examples against the model, as any of the experiment's prompts shows them with all evidence."""
    wordings = {clause_of(experiment, parse_method(name)) for name in (COMPARED, f"{COMPARED}+prompt")}
    whole, answer = Presence(image=True, text=True), experiment.evaluate.answer

    def shapes(example: Example) -> list[Conversation]:
        render = TASKS[example.task].render
        return [render(example, whole, clause=clause, answer_form=answer) for clause in wordings]

    found = checked(vlm, data, shapes, experiment.data.too_long, experiment.model.max_tokens)
    return replace(found, data=usable(found.data, experiment.data)) if complete else found


def _stages(experiment: Experiment) -> Strategy:
    chosen = experiment.strategy
    return strategy(chosen.name, LoRA(chosen.rank, chosen.alpha, chosen.targets, chosen.dropout))


def _base(experiment: Experiment) -> str:
    """Return a digest of the models that an experiment names: the base model's, and the judge's if there is one."""
    found, judge = {"model": base_digest(experiment.model, experiment.seed)}, experiment.evaluate.judge
    if judge is not None:
        found["judge"] = Source("evaluate.judge", judge, network=False).digest
    if experiment.evaluate.linear_text == "minilm" and "linear" in experiment.methods:
        found["linear text"] = sentence_source("evaluate.linear_text").digest
    return combined(found)


def _loaded(experiment: Experiment, models: Models) -> Vlm:
    """Return an experiment's model: its connector in a base model, which is loaded unless another experiment did so."""
    settings, engine = experiment.model, experiment.engine

    def load() -> Vlm:
        return placed(load_base(settings, experiment.families), settings.device, settings.precision)

    # By content too: files may have changed since another experiment loaded them.
    code = "".join(family_code(experiment).values())
    key = f"{settings.model_dump_json(exclude=BESIDE_BASE)} {parts_digest(settings)} {code}"
    vlm = connected(_kept(models, key, load), settings, experiment.seed)
    if not engine.cache or not vlm.family.images:
        return vlm
    return with_store(vlm, cache_folder() / "features", int(engine.cache_gigabytes * 1e9), code)


def _kept(models: Models, key: str, load: Callable[[], T]) -> T:
    """Return what was loaded under a key before, or load it now and keep it."""
    if key not in models:
        models[key] = load()
    return models[key]
