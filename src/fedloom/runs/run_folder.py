"""Checks of a run folder before a run writes to it, so that no run ever overwrites another."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fedloom.config.validation_errors import build_model
from fedloom.config.yaml_document import apply_override, read_document
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.recipes import takes_text
from fedloom.plugins.plugins import Plugins
from fedloom.run_log import read_lines
from fedloom.runs.run_lock import is_temporary, lock_folder
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest
from fedloom.system.json_files import read_text, write_atomic, write_json
from fedloom.system.manifest import (
    LOCK,
    MANIFEST,
    Manifest,
    check_files,
    files_in,
    own_manifest,
    read_manifest,
    read_sealed,
    write_manifest,
)
from fedloom.tasks.predictions import PREDICTIONS

EXPERIMENT, PLAN, RECORD, RESULT, REPORT = (
    "experiment.json", "plan.json", "record.jsonl", "result.json", "report.html"
)  # fmt: skip
METHODS, ADAPTER, MACHINE, FLOWER = "methods", "adapter", "machine.json", "flower"
ANSWERS = "answers.html"
PARTS = "predictions"
"""Name of the folder, below that of a method, that holds its predictions until the run ends."""

HELD = (
    EXPERIMENT, PLAN, MANIFEST, RECORD, MACHINE, "engine.json", METHODS, ADAPTER, PREDICTIONS, RESULT, ANSWERS, REPORT,
    FLOWER,
)  # fmt: skip
"""All that a run writes into its folder."""

PLACES = {
    "data": {"root"},
    "model": {"path", "encoder", "llm", "connector_weights", "network"},
    "evaluate": {"judge"},
}
"""Keys of an experiment, by section, that name places; they may change after a run has begun if the content stays the same."""

Plugged = Sequence[str | Plugins]
"""Paths of plug-ins, or values."""

State = Literal["new", "unfinished", "finished"]


def stage_folder(training: Path, number: int, count: int) -> Path:
    """Return the folder of a stage's checkpoints below that of its training: the last stage's is the training's own.

    Args:
        training: The folder of the training.
        number: Number of the stage, from 0.
        count: Number of stages of the training.

    Example:
        >>> stage_folder(Path("fedavg"), 0, 2).as_posix(), stage_folder(Path("fedavg"), 1, 2).as_posix()
        ('fedavg/stage-1', 'fedavg')
    """
    return training if number == count - 1 else training / f"stage-{number + 1}"


def stage_folders(training: Path) -> list[Path]:
    """Return the folders of a training's stages, in order; see `stage_folder`."""
    numbers = [folder.name.removeprefix("stage-") for folder in training.glob("stage-*")]
    count = 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)
    return [stage_folder(training, number, count) for number in range(count)]


def default_folder(experiment: Experiment) -> Path:
    """Return `runs/<name>-<first 8 of the digest>`."""
    return Path("runs") / f"{experiment.name}-{experiment.digest[:8]}"


def choices_digest(experiment: Experiment) -> str:
    """Return the SHA-256 of an experiment without names, places of data and models, and settings of speed and reports."""
    return experiment.digest_without({"name": True, "plugins": True, **PLACES})


def held_experiment(folder: Path, plugins: Plugged = ()) -> Experiment | None:
    """Return the experiment whose run a folder holds, or None if no run has begun there.

    Args:
        folder: The run folder.
        plugins: The present paths of its plug-ins, or the values themselves; empty for the paths of the experiment.

    Raises:
        UserError: The folder is damaged, or a version before 0.2 wrote it.
    """
    manifest = read_manifest(folder)
    if manifest is None and (folder / RECORD).exists():
        raise UserError(_without_manifest(folder))
    if manifest is None or EXPERIMENT not in manifest.files:  # the manifest of a sweep or an adapter
        return None
    check_files(folder, manifest, [EXPERIMENT])
    return _read(folder, plugins)


def experiment_to_resume(folder: Path, changes: Sequence[str] = (), plugins: Plugged = ()) -> Experiment:
    """Return the experiment to resume in a folder, even if the run was killed while it began.

    Args:
        folder: The run folder.
        changes: New places of data and models, such as `data.root=elsewhere`.
        plugins: New paths of its plug-ins; empty for the paths of the experiment.

    Raises:
        UserError: There is no run, it is damaged, a version before 0.2 wrote it, or a change is not one of a place.
    """
    if (experiment := held_experiment(folder, plugins)) is None:
        if not (folder / EXPERIMENT).is_file():
            raise UserError(f"{folder} is not a run folder: it has no {EXPERIMENT}")
        experiment = _read(folder, plugins)
    moved = _read(folder, plugins, changes) if changes else experiment
    if moved.model_dump(exclude=dict(PLACES)) != experiment.model_dump(exclude=dict(PLACES)):
        keys = ", ".join(f"{section}.{key}" for section, names in PLACES.items() for key in sorted(names))
        raise UserError(
            f"{folder} holds a run that has begun; only its places of data and models may change: {keys}. For another experiment "
            "use `fedloom run` with another folder (--out)"
        )
    return moved


def _read(folder: Path, plugins: Plugged = (), changes: Sequence[str] = ()) -> Experiment:
    document = read_document(read_text(folder / EXPERIMENT), str(folder / EXPERIMENT))
    if plugins and isinstance(document.value, dict):
        document = replace(document, value={**document.value, "plugins": list(plugins)})
    for change in changes:
        document = apply_override(document, change, takes_text)
    return build_model(Experiment, document)


def folder_state(folder: Path, experiment: Experiment) -> State:
    """Return the state of an experiment's run in a folder.

    Raises:
        UserError: The folder holds something else, or is damaged.
    """
    if not folder.exists():
        return "new"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another one with --out")
    before = held_experiment(folder, experiment.plugins)
    if before is None:
        # Before its manifest is written, a run has begun nothing: a kill may leave the files of its start.
        others = {file.name for file in folder.iterdir() if not is_temporary(file)}
        others -= {LOCK, EXPERIMENT, PLAN, FLOWER}
        if others:
            raise UserError(
                f"{folder} is not empty and is not a run folder; choose another folder with --out"
            )
        if (folder / EXPERIMENT).exists():
            _read(folder, experiment.plugins)  # raises if the file is no experiment
        return "new"
    if choices_digest(before) != choices_digest(experiment):
        digests = f"{before.digest[:8]}, not {experiment.digest[:8]}"
        raise UserError(f"{folder} holds another experiment ({digests}); choose another folder with --out")
    return "finished" if is_finished(folder) else "unfinished"


def is_finished(folder: Path) -> bool:
    """Return whether a run has written all its files, of which the report is the last.

    Raises:
        UserError: The manifest is damaged.
    """
    manifest = read_manifest(folder)
    return manifest is not None and {RESULT, REPORT} <= set(manifest.files)


def begin_run(folder: Path, experiment: Experiment, plan: Mapping[str, Any], manifest: Manifest) -> None:
    """Write the first files of a run; it has begun once the last of them, the manifest, is written.

    Args:
        folder: A folder of which `folder_state` says that it is new.
        experiment: What is run.
        plan: The examples of each client.
        manifest: The run's manifest, to which these files are added.
    """
    write_atomic(folder / EXPERIMENT, experiment.to_json().encode(), folder)
    write_json(folder / PLAN, plan, folder)
    files = {name: file_digest(folder / name) for name in (EXPERIMENT, PLAN)}
    write_manifest(folder, replace(manifest, files=files))


def run_files(folder: Path) -> Iterator[str]:
    """Yield the paths, below a folder, of the files that a run wrote."""
    for name in files_in(folder):
        if name.partition("/")[0] in set(HELD) - {FLOWER} and not _is_part(name):
            yield name


def _is_part(name: str) -> bool:
    """Return whether a path below a run folder is that of a part of predictions, which are joined and then removed."""
    places = name.split("/")
    return places[0] == METHODS and PARTS in places[2:-1]


def refuse_file_of_run(file: Path, own: Path | None = None) -> None:
    """Check that a file, which a command is told to write, is not one that a run, a sweep or an adapter wrote.

    Args:
        file: The file.
        own: A run folder whose pages may be written again, or None.

    Raises:
        UserError: It is such a file.
    """
    file = file.parent.resolve() / file.name
    if own is not None and file in (own.resolve() / REPORT, own.resolve() / ANSWERS):
        return
    for folder in file.parents:
        name = file.relative_to(folder).as_posix()
        held = (folder / EXPERIMENT).is_file() and name in HELD
        manifest = own_manifest(folder)
        listed = manifest is not None and name in {*manifest.files, MANIFEST}
        further = file.parent == folder and file.suffix == ".html" and name not in (REPORT, ANSWERS)
        if held or (listed and not further):  # a further page in the folder was written by such a command
            raise UserError(f"{file} is a file of {folder}, which would be lost; choose another name")


def require_whole(folder: Path, manifest: Manifest) -> None:
    """Check the files from which results are read or a run goes on; checkpoints are checked when they are read.

    Raises:
        UserError: A file is missing or damaged; the message names it.
    """
    check_files(folder, manifest, [name for name in manifest.files if not name.startswith(f"{METHODS}/")])
    if RESULT in manifest.files:
        return
    if (folder / RECORD).exists():
        deque(read_lines(folder / RECORD), maxlen=0)
    if (folder / MACHINE).exists():
        read_sealed(folder / MACHINE)


def discard(folder: Path) -> None:
    """Remove what a run wrote into its folder, and nothing else; a folder without a run stays as it is.

    Raises:
        UserError: The folder also holds other files, or another process is working in it.
    """
    if not any((folder / name).is_file() for name in (EXPERIMENT, RECORD)):
        return
    others = sorted({file.name for file in folder.iterdir() if not is_temporary(file)} - {LOCK, *HELD})
    if others:
        raise UserError(
            f"{folder} also holds files that no run wrote, such as {others[0]!r}; move them elsewhere"
        )
    with lock_folder(folder):
        for path in (
            folder / name for name in reversed(HELD)
        ):  # after a kill the remaining files can be discarded again
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def discard_failed_start(folder: Path) -> None:
    """Remove what a run that failed wrote before its first checkpoint or result, so that nothing looks like an interrupted run.

    Args:
        folder: A folder that this process has locked, and that was new when the run began.
    """
    methods = folder / METHODS
    if any(file.is_file() and not is_temporary(file) for file in methods.rglob("*")):
        return
    shutil.rmtree(methods, ignore_errors=True)
    for name in (MANIFEST, RECORD, MACHINE, PLAN, EXPERIMENT):
        (folder / name).unlink(missing_ok=True)


def _without_manifest(folder: Path) -> str:
    version = next((line.get("version") for _, line in read_lines(folder / RECORD, checked=False)), None)
    if str(version).startswith("0.1."):
        return (
            f"{folder} was written by fedloom {version}, which stored no digests: `fedloom report` still reads it, but "
            "only that version can resume it. Run it again with --rerun, or choose another folder with --out"
        )
    return (
        f"{folder / MANIFEST} is missing, so the run cannot be verified; run it again with --rerun, or "
        "choose another folder with --out"
    )
