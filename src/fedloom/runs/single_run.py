"""Run an experiment from data to report: all its methods, each of which can be resumed at every round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedloom.experiment.experiment import Experiment
from fedloom.report.federation_gain import compare_methods
from fedloom.run_log import Follower, RunLog
from fedloom.runs.followers import follow_with
from fedloom.runs.method_predictions import join_parts, remove_parts
from fedloom.runs.method_results import export, run_method, validation_of
from fedloom.runs.modality_slices import independent_questions
from fedloom.runs.paired_answers import agreement, read_example_scores
from fedloom.runs.privacy_ledger import privacy_of
from fedloom.runs.record_prediction import record_prediction
from fedloom.runs.run_context import RemoteSites, RunContext
from fedloom.runs.run_folder import (
    ADAPTER,
    RECORD,
    RESULT,
    discard_failed_start,
    experiment_to_resume,
    folder_state,
    held_experiment,
    require_whole,
    run_files,
)
from fedloom.runs.run_identity import contents_of, require_same
from fedloom.runs.run_lock import open_run_folder
from fedloom.runs.run_setup import Models, current_identity, load_run_data, set_up_run
from fedloom.runs.write_pages import write_pages
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import json_digest
from fedloom.system.json_files import read_json, write_json
from fedloom.system.manifest import add_to_manifest, read_manifest
from fedloom.system.memory import forget_peak, peak_bytes
from fedloom.system.progress import Progress
from fedloom.types import DataSet

Cell = tuple[Experiment, Path]
"""An experiment and its run folder."""

Result = dict[str, Any]
"""The content of a run's `result.json`."""


def run_experiment(
    experiment: Experiment,
    out: Path,
    progress: Progress,
    models: Models | None = None,
    remote: RemoteSites | None = None,
    followers: Sequence[Follower] = (),
    callbacks: Follower | None = None,
) -> Result:
    """Run an experiment into a new folder, or go on with it.

    Args:
        experiment: Every choice.
        out: The run folder; created if missing.
        progress: Shows the progress of the run.
        models: Loaded models, to which newly loaded ones are added; they change no result.
        remote: Sites of clients that are on other machines; they change no result either.
        followers: Called with each line of the run's log; one that raises is called no more, and the run goes on.
        callbacks: Called with each line of the run's log; what it raises ends the run.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: The folder holds another experiment, or the experiment cannot be run.
    """
    models = {} if models is None else models
    if folder_state(out, experiment) == "finished":
        return finished_result(experiment, out, remote)
    # Data and models may have moved since the run began; everything else stays.
    if (before := held_experiment(out, experiment.plugins)) is not None:
        experiment = experiment.model_copy(
            update={"name": before.name, "engine": before.engine, "report": before.report}
        )
    with open_run_folder(out):
        folder_state(out, experiment)  # another process may have begun, or ended, something else here
        manifest = read_manifest(out)
        if manifest is None or RESULT not in manifest.files:
            started = time.perf_counter()
            forget_peak()
            follow = follow_with(followers, progress.message, callbacks)
            try:
                result, data = _run_methods(experiment, out, progress, models, remote, follow)
            except Exception:
                if manifest is None and remote is None:
                    discard_failed_start(out)
                raise
            join_parts(out, experiment.methods)
            seconds = time.perf_counter() - started
            RunLog(out / RECORD, follow).append("end", {"seconds": seconds, "peak_bytes": peak_bytes()})
            write_json(out / RESULT, result, out)
            add_to_manifest(out, run_files(out))
        else:  # a run that ended before its report was written
            finished_result(experiment, out, remote)
            data = (remote and remote.data) or load_run_data(experiment)
        remove_parts(out, experiment.methods)
        write_pages(out, data=data)  # which also lists them
    return read_json(out / RESULT, {"scores": dict})


def resume_run(folder: Path, progress: Progress, models: Models | None = None) -> Result:
    """Continue a run from its last checkpoint; a finished run returns its result.

    The arguments are those of `run_experiment`.

    Raises:
        UserError: There is no run in the folder, or its data, base model or code changed since it began.
    """
    return run_experiment(experiment_to_resume(folder), folder, progress, models)


def finished_result(experiment: Experiment, folder: Path, remote: RemoteSites | None = None) -> Result:
    """Return the result of a finished run if its data, model and code are unchanged.

    Args:
        experiment: The experiment that the folder must hold.
        folder: The run folder.
        remote: See `run_experiment`.

    Raises:
        UserError: Its data, base model or code changed, or a file is damaged; the message names it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} was removed while it was being written to")
    contents = contents_of((remote and remote.data) or load_run_data(experiment))
    require_same(folder, manifest.identity, current_identity(experiment, contents, folder))
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
                    contents[key] = contents_of(load_run_data(experiment))
                require_same(folder, manifest.identity, current_identity(experiment, contents[key], folder))
                require_whole(folder, manifest)
        except UserError as error:
            reasons[place] = str(error)
    return reasons


def _run_methods(
    experiment: Experiment,
    folder: Path,
    progress: Progress,
    models: Models,
    remote: RemoteSites | None,
    follow: Follower,
) -> tuple[Result, DataSet]:
    """Run every method or read its result, and return the content of `result.json`, and the data."""
    with ExitStack() as live:
        context = set_up_run(experiment, folder, progress, models, live, remote and remote.data, follow)
        main = experiment.exported
        if remote is None:
            record_prediction(context)
        if remote is not None:
            context = replace(context, remote=remote.connect(context))
        results = {name: run_method(context, name) for name in experiment.methods}
        certainty = _certainty(context, experiment.methods)
        if main is not None:
            export(context, main)
    return _result(context, results, certainty), context.data


def _result(
    context: RunContext, results: Mapping[str, dict[str, Any]], certainty: Mapping[str, Any]
) -> Result:
    experiment = context.experiment
    main, folder = experiment.exported, context.folder
    return {
        "name": experiment.name,
        "digest": experiment.digest,
        "main": main,
        "scores": {name: result["scores"] for name, result in results.items()},
        "parts": _explanations(experiment),
        "scoring": experiment.evaluate.scoring,
        **({} if context.sites is None or context.data.test else {"tested": "sites"}),
        **({"metrics": [*context.metrics]} if context.metrics else {}),
        "comparison": compare_methods({name: result["scores"] for name, result in results.items()}),
        **certainty,
        "bytes": {name: result["bytes"] for name, result in results.items()},
        "seconds": {name: result["seconds"] for name, result in results.items()},
        **validation_of(context, results),
        **privacy_of(context),
        "adapter": "adapter" if main is not None and (folder / ADAPTER).is_dir() else None,
        "report": "report.html",
    }


MAX_CLIENTS = 10_000
"""Runs of more clients have no intervals for single clients, because each would take a pass over the test set."""


def _certainty(context: RunContext, methods: Sequence[str]) -> dict[str, Any]:
    """Return what intervals of scores need: the numbers of independent questions, and the agreement with models trained alone."""
    train, test, plan = context.data.train, context.data.test, context.plan
    if not test or len(plan.clients) > MAX_CLIENTS:
        return {}
    scores = read_example_scores(context.folder, methods, test)
    return {
        "independent_questions": independent_questions(train, test, plan),
        "agreement": agreement(train, test, plan, scores),
    }


def _explanations(experiment: Experiment) -> dict[str, str]:
    """Return a sentence about each algorithm, and each part, of the experiment's methods."""
    methods = [experiment.method(name) for name in experiment.methods]
    names = dict.fromkeys(
        name for method in methods for name in (*([method.base] if method.federated else []), *method.parts)
    )
    return {name: experiment.entries[name].about for name in names}
