"""Run an experiment from data to report: all its methods, each of which can be resumed at every round."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedloom.algorithms import COMPARED
from fedloom.client.site import Site
from fedloom.data import check_usable, load_data
from fedloom.data.images import read_keys
from fedloom.engine.checkpoints import recorded_below
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import parse_method
from fedloom.models.assemble_model import base_digest, load_base, parts_digest, with_connector
from fedloom.models.example_checks import CheckedData, check_examples
from fedloom.models.hub import Source
from fedloom.models.judge_model import load_judge
from fedloom.models.load_model import Vlm, move_model, other_devices, with_feature_store
from fedloom.models.sentence_embeddings import sentence_source
from fedloom.models.text_only import check_pattern
from fedloom.report.federation_gain import compare_methods
from fedloom.report.run_page import write_report
from fedloom.run_log import RunLog, require_length
from fedloom.runs.method_results import export, run_method, validation_of
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import (
    METHODS,
    RECORD,
    REPORT,
    RESULT,
    begin_run,
    experiment_to_resume,
    folder_state,
    held_experiment,
    require_whole,
    run_files,
)
from fedloom.runs.run_identity import contents_of, family_code, identity, require_same
from fedloom.runs.run_lock import open_run_folder
from fedloom.runs.site_setup import clause_of, make_site
from fedloom.scenarios.validation_part import Validation, plan_and_validation, plan_json
from fedloom.system.allocator import keep_freed
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import cache_folder, combine_digests, json_digest
from fedloom.system.json_files import read_json, write_json
from fedloom.system.manifest import Manifest, add_to_manifest, read_manifest
from fedloom.system.progress import Progress
from fedloom.system.timing import Clock
from fedloom.tasks import TASKS
from fedloom.tasks.linear_baseline import require_choice
from fedloom.tuning.adapters import Tuned, prepare, release, replica
from fedloom.tuning.strategies import LoRA, Strategy, merged_stage, strategy
from fedloom.types import Conversation, DataSet, Example, Presence
from fedloom.version import __version__

T = TypeVar("T")

Models = dict[str, Any]
"""Settings → the base model or judge that was loaded with them; models keep the images and texts that they have encoded."""

BESIDE_BASE = {"connector", "connector_weights", "queries", "max_tokens", "threads"}
"""Keys of the section `model` that the base model does not depend on."""

SHOWN = 5
"""Number of skipped records that a run names in its output; the record has all of them."""

Cell = tuple[Experiment, Path]
"""An experiment and its run folder."""

Result = dict[str, Any]
"""The content of a run's `result.json`."""


def run_experiment(
    experiment: Experiment, out: Path, progress: Progress, models: Models | None = None
) -> Result:
    """Run an experiment into a new folder, or go on with it.

    Args:
        experiment: Every choice.
        out: The run folder; created if missing.
        progress: Shows the progress of the run.
        models: Loaded models, to which newly loaded ones are added; they change no result.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: The folder holds another experiment, or the experiment cannot be run.
    """
    models = {} if models is None else models
    if folder_state(out, experiment) == "finished":
        return finished_result(experiment, out)
    # Data and models may have moved since the run began; everything else stays.
    if (before := held_experiment(out, experiment.plugins)) is not None:
        experiment = experiment.model_copy(update={"name": before.name, "engine": before.engine})
    with open_run_folder(out):
        folder_state(out, experiment)  # another process may have begun, or ended, something else here
        manifest = read_manifest(out)
        if manifest is None or RESULT not in manifest.files:
            started = time.perf_counter()
            result = _run_methods(experiment, out, progress, models)
            RunLog(out / RECORD).append("end", {"seconds": time.perf_counter() - started})
            write_json(out / RESULT, result, out)
            add_to_manifest(out, run_files(out))
        else:  # a run that ended before its report was written
            finished_result(experiment, out)
        write_report([out], out / REPORT)  # which also lists it
    return read_json(out / RESULT, {"scores": dict})


def resume_run(folder: Path, progress: Progress, models: Models | None = None) -> Result:
    """Continue a run from its last checkpoint; a finished run returns its result.

    The arguments are those of `run_experiment`.

    Raises:
        UserError: There is no run in the folder, or its data, base model or code changed since it began.
    """
    return run_experiment(experiment_to_resume(folder), folder, progress, models)


def finished_result(experiment: Experiment, folder: Path) -> Result:
    """Return the result of a finished run if its data, model and code are unchanged.

    Args:
        experiment: The experiment that the folder must hold.
        folder: The run folder.

    Raises:
        UserError: Its data, base model or code changed, or a file is damaged; the message names it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} was removed while it was being written to")
    contents = contents_of(_data(experiment))
    require_same(folder, manifest.identity, _current_identity(experiment, contents))
    require_whole(folder, manifest)
    return read_json(folder / RESULT, {"scores": dict})


def unusable_cells(cells: Mapping[int, Cell]) -> dict[int, str]:
    """Return, for each run that can neither be resumed nor used, the reason: its inputs changed, or it is damaged."""
    contents: dict[str, dict[str, str]] = {}  # shared by cells with the same data
    reasons: dict[int, str] = {}
    for place, (experiment, folder) in cells.items():
        try:
            if folder_state(folder, experiment) != "new" and (manifest := read_manifest(folder)) is not None:
                of = [experiment.data.model_dump_json(), experiment.seed, dict(experiment.added.digests)]
                if (key := json_digest(of)) not in contents:
                    contents[key] = contents_of(_data(experiment))
                require_same(folder, manifest.identity, _current_identity(experiment, contents[key]))
                require_whole(folder, manifest)
        except UserError as error:
            reasons[place] = str(error)
    return reasons


def _data(experiment: Experiment) -> DataSet:
    data = load_data(experiment.data, experiment.seed, experiment.datasets)
    images = [image for example in data.examples for image in (*example.pictures, *example.spare)]
    read_keys(images, cache_folder() / "hashes" / "images.json")
    return data


def _current_identity(experiment: Experiment, contents: Mapping[str, str]) -> dict[str, str]:
    """Return the identity that a run would have if it began now."""
    return identity(experiment, contents, _models_digest(experiment))


def _run_methods(experiment: Experiment, folder: Path, progress: Progress, models: Models) -> Result:
    """Run every method or read its result, and return the content of `result.json`."""
    with ExitStack() as live:
        context, main = _prepare(experiment, folder, progress, models, live), experiment.exported
        results = {name: run_method(context, name) for name in experiment.methods}
        if main is not None:
            export(context, main)
    return {
        "name": experiment.name,
        "digest": experiment.digest,
        "main": main,
        "scores": {name: result["scores"] for name, result in results.items()},
        "parts": _explanations(experiment),
        "scoring": experiment.evaluate.scoring,
        **({"metrics": [*context.metrics]} if context.metrics else {}),
        "comparison": compare_methods({name: result["scores"] for name, result in results.items()}),
        "bytes": {name: result["bytes"] for name, result in results.items()},
        "seconds": {name: result["seconds"] for name, result in results.items()},
        **validation_of(context, results),
        "adapter": "adapter" if main is not None else None,
        "report": "report.html",
    }


def _explanations(experiment: Experiment) -> dict[str, str]:
    """Return a sentence about each algorithm, and each part, of the experiment's methods."""
    methods = [experiment.method(name) for name in experiment.methods]
    names = dict.fromkeys(
        name for method in methods for name in (*([method.base] if method.federated else []), *method.parts)
    )
    return {name: experiment.entries[name].about for name in names}


@contextmanager
def _adapted(experiment: Experiment, models: Models) -> Iterator[tuple[Tuned, tuple[Tuned, ...]]]:
    """Insert an experiment's adapters into its model, and into copies on the other devices that it uses."""
    tuned = prepare(_loaded(experiment, models), merged_stage(_stages(experiment)), experiment.seed)
    try:
        workers, devices = experiment.engine.workers, other_devices(tuned.vlm)
        used = devices if workers == "auto" else devices[: workers - 1]
        yield tuned, tuple(replica(tuned, device) for device in used)
    finally:
        release(tuned)


@contextmanager
def open_site(experiment: Experiment, folder: Path) -> Iterator[Site]:
    """Open the site of all clients of an experiment, without a server.

    Args:
        experiment: Every choice.
        folder: The folder of the clients' memories.
    """
    _set_threads(experiment)
    with _adapted(experiment, {}) as (tuned, _):
        data = _checked_data(experiment, tuned.vlm, _data(experiment)).data
        plan, validation = plan_and_validation(data, experiment.data, experiment.scenario, experiment.seed)
        yield make_site(experiment, data, plan, tuned, _stages(experiment), folder, validation)


def _set_threads(experiment: Experiment) -> None:
    import torch

    keep_freed()
    if experiment.model.threads is not None:
        torch.set_num_threads(experiment.model.threads)


def _prepare(
    experiment: Experiment, folder: Path, progress: Progress, models: Models, live: ExitStack
) -> RunContext:
    """Read the data, load the model, divide the examples; begin the run's folder, or check that it belongs to this run.

    Args:
        experiment: Every choice.
        folder: The run folder.
        progress: Shows messages about data and versions.
        models: Loaded models and judges; see `run_experiment`.
        live: Removes the adapters from the model when it closes.
    """
    _set_threads(experiment)
    data, manifest = _data(experiment), read_manifest(folder)
    now = _current_identity(experiment, contents_of(data))
    if manifest is not None:
        require_same(folder, manifest.identity, now)
        require_whole(folder, manifest)
    if "linear" in experiment.methods:
        require_choice(data.examples)
    tuned, replicas = live.enter_context(_adapted(experiment, models))
    vlm, path, clock = tuned.vlm, experiment.evaluate.judge, Clock()
    check_pattern(vlm.family, experiment.scenario.pattern)
    check = _checked_data(experiment, vlm, data)
    clock.lap("vision")
    data = check.data
    plan, validation = plan_and_validation(data, experiment.data, experiment.scenario, experiment.seed)
    judge = path and _load_once(models, f"judge {path} {vlm.device}", partial(load_judge, path, vlm.device))
    versions = _versions()
    if manifest is None:
        began = Manifest(__version__, now, versions)
        begin_run(folder, experiment, plan_json(plan, data.train, validation), began)
    elif manifest.versions != versions:
        before = ", ".join(f"{name} {value}" for name, value in manifest.versions.items())
        progress.message(
            f"this run began with {before}; with other versions its numbers may round differently"
        )
    record = RunLog(folder / RECORD)
    require_length(record.path, recorded_below(folder / METHODS))
    _record_start(record, experiment, tuned, check, clock.seconds["vision"], validation)
    skipped = [str(record) for record in data.rejected]
    for line in (*skipped[:SHOWN], *check.messages[:SHOWN]):
        progress.message(f"data: {line}")
    stages = _stages(experiment)
    site = make_site(experiment, data, plan, tuned, stages, folder / METHODS, validation)
    return RunContext(
        experiment, folder, data, plan, site, stages, record, progress, json_digest(now), judge or None, replicas, validation
    )  # fmt: skip


def _versions() -> dict[str, str]:
    """Return the versions that last bits may depend on."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _record_start(
    record: RunLog,
    experiment: Experiment,
    tuned: Tuned,
    check: CheckedData,
    seconds: float,
    validation: Validation | None,
) -> None:
    """Record the versions, model and data with which a run starts, and the `seconds` that encoding its images took."""
    import torch

    vlm, data = tuned.vlm, check.data
    record.append(
        "start",
        {
            "digest": experiment.digest,
            "version": __version__,
            "seed": experiment.seed,
            **_versions(),
            "threads": torch.get_num_threads(),
            "model": vlm.digest,
            "trained": tuned.layout.size,
            **({} if vlm.family.images else {"images": False}),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    counts = {"name": data.name, "train": len(data.train), "test": len(data.test)}
    counts |= {} if validation is None else {"validation": len(validation.plan.indices)}
    record.append(
        "data", {**counts, "rejected": [str(record) for record in data.rejected], **check.for_run_log}
    )
    record.append(
        "vision",
        {
            "pictures": len({image.key for example in data.examples for image in example.pictures}),
            "computed": check.computed,
            "seconds": seconds,
            "damaged": vlm.memo.store.damaged if vlm.memo.store else [],
        },
    )


def _checked_data(experiment: Experiment, vlm: Vlm, data: DataSet) -> CheckedData:
    """Check the examples against the model, with all modalities and with each of the experiment's prompts."""
    clauses = {clause_of(experiment, parse_method(name)) for name in (COMPARED, f"{COMPARED}+prompt")}
    everything, answer = Presence(image=True, text=True), experiment.evaluate.answer

    def shapes(example: Example) -> list[Conversation]:
        render = TASKS[example.task].render
        return [render(example, everything, clause=clause, answer_form=answer) for clause in clauses]

    check = check_examples(vlm, data, shapes, experiment.data.too_long, experiment.model.max_tokens)
    return replace(check, data=check_usable(check.data, experiment.data))


def _stages(experiment: Experiment) -> Strategy:
    chosen = experiment.strategy
    return strategy(chosen.name, LoRA(chosen.rank, chosen.alpha, chosen.targets, chosen.dropout))


def _models_digest(experiment: Experiment) -> str:
    """Return a digest of the models that an experiment names: the base model, and the judge if there is one."""
    digests, judge = {"model": base_digest(experiment.model, experiment.seed)}, experiment.evaluate.judge
    if judge is not None:
        digests["judge"] = Source("evaluate.judge", judge, network=False).digest
    if experiment.evaluate.linear_text == "minilm" and "linear" in experiment.methods:
        digests["linear text"] = sentence_source("evaluate.linear_text").digest
    return combine_digests(digests)


def _loaded(experiment: Experiment, models: Models) -> Vlm:
    """Return an experiment's model: its connector in a base model, which is loaded unless `models` holds it."""
    settings, engine = experiment.model, experiment.engine

    def load() -> Vlm:
        return move_model(load_base(settings, experiment.families), settings.device, settings.precision)

    # The key includes the content of files, which may have changed since another experiment loaded them.
    code = "".join(family_code(experiment).values())
    key = f"{settings.model_dump_json(exclude=BESIDE_BASE)} {parts_digest(settings)} {code}"
    vlm = with_connector(_load_once(models, key, load), settings, experiment.seed)
    if not engine.cache or not vlm.family.images:
        return vlm
    return with_feature_store(vlm, cache_folder() / "features", int(engine.cache_gigabytes * 1e9), code)


def _load_once(models: Models, key: str, load: Callable[[], T]) -> T:
    """Return what `models` holds under a key; if there is nothing, load it and add it."""
    if key not in models:
        models[key] = load()
    return models[key]
