"""Read the methods of finished runs, and of the cells of sweeps, for a leaderboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedloom.config.engine_schema import Communication
from fedloom.config.old_spellings import current_document
from fedloom.config.schema import Aggregate, Data, Evaluate, Limits, Model, Scenario, Section, Strategy, Train
from fedloom.experiment.methods import UNTRAINED
from fedloom.report.client_verdicts import own_mean
from fedloom.report.federation_gain import count_clients, local_method, main_score, tasks_in
from fedloom.report.findings import is_share_of_questions
from fedloom.report.leaderboard import MethodResult
from fedloom.report.run_results import Json, at, number, read_document
from fedloom.report.significance import ClientCounts
from fedloom.report.tables import bytes_sent, counted, title
from fedloom.runs.run_folder import EXPERIMENT, PLACES, RESULT, is_finished
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import json_digest
from fedloom.system.find_files import find_files
from fedloom.system.json_files import read_json, require_key
from fedloom.system.manifest import Manifest, check_files, read_manifest

QUESTION: Mapping[str, type[Section]] = {
    "data": Data,
    "scenario": Scenario,
    "model": Model,
    "evaluate": Evaluate,
}
"""Sections of an experiment that decide which question it answers."""

SETTINGS: Mapping[str, type[Section]] = {
    "strategy": Strategy,
    "train": Train,
    "aggregate": Aggregate,
    "admission": Limits,
    "communication": Communication,
}
"""Sections of an experiment that are ranked."""

CONTENTS = (" examples", " images")
"""Ends of the names of the data's digests in a run's identity."""


def read_results(folders: Sequence[Path]) -> tuple[list[MethodResult], list[tuple[Path, str]]]:
    """Return the methods of all finished runs below folders, and each run that is left out, with the reason.

    Raises:
        UserError: A folder does not exist.
    """
    results, (found, unread) = list[MethodResult](), _run_folders(folders)
    skipped = list(unread.items())
    for folder in found:
        try:
            if is_finished(folder):
                results += run_results(folder)
            else:
                skipped.append((folder, "it is not finished"))
        except UserError as error:
            skipped.append((folder, str(error)))
    return results, skipped


def _run_folders(folders: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return the run folders below folders, and the folders that cannot be read, with the reasons."""
    runs, unread = dict[Path, None](), dict[Path, str]()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder; `fedloom run` writes to runs/ unless --out names another"
            )
        files, closed = find_files(folder, [EXPERIMENT])
        runs |= dict.fromkeys(file.parent for file in files)
        unread |= closed
    return list(runs), unread


def run_results(folder: Path) -> Iterator[MethodResult]:
    """Yield the methods of a finished run.

    Raises:
        UserError: A file of the run is missing or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has no manifest")
    check_files(folder, manifest, (EXPERIMENT, RESULT))
    experiment = current_document(read_json(folder / EXPERIMENT))
    result = read_document(folder / RESULT)
    for method in require_key(folder / RESULT, result, "scores", dict):
        require_key(folder / RESULT, result["scores"], method, dict)
    contents = {key: value for key, value in manifest.identity.items() if key.endswith(CONTENTS)}
    question = json_digest(
        [_given(experiment, QUESTION), manifest.identity.get("base model"), at(result, "tested")]
    )
    alone, metric, tasks = local_method(result["scores"]), main_score(result), tasks_in(result)
    share = len(tasks) == 1 and is_share_of_questions(result)
    tested = number(result, "independent_questions", "test", tasks[0]) if share else None
    for method, scores in result["scores"].items():
        settings = _settings(experiment, method, manifest)
        yield MethodResult(
            folder=str(folder),
            seed=int(experiment.get("seed", 0)),
            method=method,
            question=question,
            contents=json_digest(contents),
            about=_about(experiment, metric),
            settings=settings,
            entry=json_digest([question, method, settings])[:8],
            metric=metric,
            score=number(scores, metric),
            questions=tested,
            own=own_mean(scores),
            clients=count_clients(scores, result["scores"][alone])
            if alone not in (None, method)
            else ClientCounts(),
            sent=bytes_sent(result, method),
        )


def _given(experiment: Json, sections: Mapping[str, type[Section]]) -> dict[str, Any]:
    """Return section.key → value of the settings that differ from their defaults, without places of data and models."""
    given = dict[str, Any]()
    for section, kind in sections.items():
        defaults = kind().model_dump(mode="json")
        for key, value in (at(experiment, section) or {}).items():
            placed = key in PLACES.get(section, ()) or (section, key) == ("evaluate", "every")
            if not placed and value != defaults.get(key):
                given[f"{section}.{key}"] = value
    return given


def _settings(experiment: Json, method: str, manifest: Manifest) -> dict[str, Any]:
    """Return the settings that a method depends on, and digests of the code of plug-ins; a method that trains nothing has none."""
    if method in UNTRAINED:
        return {}
    settings = _given(experiment, SETTINGS)
    if experiment.get("mode") == "published":
        settings["mode"] = "published"
    for part in method.split("+"):
        for key, value in (at(experiment, "algorithms", part) or {}).items():
            settings[f"algorithms.{part}.{key}"] = value
    own = ("experiment", "base model", "code")
    others = {
        name: digest
        for name, digest in manifest.identity.items()
        if name not in own and not name.endswith(CONTENTS)
    }
    return settings | others


def _about(experiment: Json, metric: str) -> str:
    """Return the question in words."""
    scenario, data, model = (at(experiment, name) or {} for name in ("scenario", "data", "model"))
    variant = f" ({data['variant']})" if data.get("variant") else ""
    base = model.get("encoder") or model.get("path")
    words = [
        f"{title(metric)} on {data.get('name')}{variant}",
        f"{counted(int(scenario.get('clients', 0)), 'client')}, {scenario.get('partition')}, {scenario.get('pattern')}",
        f"model {Path(str(base)).name}",
    ]
    return "; ".join(words)
