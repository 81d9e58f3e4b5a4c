"""Checks of a run folder before a run writes to it, so that no run ever overwrites another."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fedloom.document import override, read
from fedloom.experiment import Experiment, takes_text
from fedloom.hashes import file_digest
from fedloom.manifest import (
    LOCK,
    MANIFEST,
    Manifest,
    check_files,
    files_in,
    read_manifest,
    read_sealed,
    write_manifest,
)
from fedloom.mistakes import resolve
from fedloom.plugins import Plugins
from fedloom.record import TEMPORARY, read_lines, read_text, write_atomic, write_json
from fedloom.types import UserError

EXPERIMENT, PLAN, RECORD, RESULT, REPORT = (
    "experiment.json", "plan.json", "record.jsonl", "result.json", "report.html"
)  # fmt: skip
METHODS, ADAPTER, MACHINE, FLOWER = "methods", "adapter", "machine.json", "flower"
HELD = (EXPERIMENT, PLAN, MANIFEST, RECORD, MACHINE, "engine.json", METHODS, ADAPTER, RESULT, REPORT, FLOWER)
"""All that a run writes into its folder."""

PLACES = {
    "data": {"root"},
    "model": {"path", "encoder", "llm", "connector_weights", "network"},
    "evaluate": {"judge"},
}
"""Keys of an experiment, by section, that name places; they may change after a run has begun, if the content does not."""

Plugged = Sequence[str | Plugins]
"""Paths of plug-ins, or values."""

State = Literal["new", "unfinished", "finished"]


def default_folder(experiment: Experiment) -> Path:
    """Return `runs/<name>-<first 8 of the digest>`."""
    return Path("runs") / f"{experiment.name}-{experiment.digest[:8]}"


def chosen(experiment: Experiment) -> str:
    """Return the SHA-256 of an experiment without names, places of data and models, and how fast it is done."""
    return experiment.digest_without({"name": True, "engine": True, "plugins": True, **PLACES})


def held(folder: Path, plugins: Plugged = ()) -> Experiment | None:
    """Return the experiment whose run a folder holds, or None where no run was begun.

    Args:
        folder: The run folder.
        plugins: Where its plug-ins are now, or the values themselves; empty for where they were.

    Raises:
        UserError: It is damaged, or a version before 0.2 wrote it.
    """
    manifest = read_manifest(folder)
    if manifest is None and (folder / RECORD).exists():
        raise UserError(_without_manifest(folder))
    if manifest is None or EXPERIMENT not in manifest.files:  # that of a sweep or an adapter
        return None
    check_files(folder, manifest, [EXPERIMENT])
    return _read(folder, plugins)


def resumable(folder: Path, changes: Sequence[str] = (), plugins: Plugged = ()) -> Experiment:
    """Return the experiment to go on with in a folder, also where a run was killed while it began.

    Args:
        folder: The run folder.
        changes: New places of data and models, such as `data.root=elsewhere`.
        plugins: New places of its plug-ins; empty for where they were.

    Raises:
        UserError: There is none, it is damaged, a version before 0.2 wrote it, or a change is not of a place.
    """
    if (experiment := held(folder, plugins)) is None:
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


def moves(folder: Path, experiment: Experiment) -> list[str]:
    """Return the places in which an experiment differs from the one in a folder, as changes such as `data.root=NEW`."""
    if (before := held(folder, experiment.plugins)) is None:
        return []
    old, new = (one.model_dump(mode="json", include=dict(PLACES)) for one in (before, experiment))
    return [
        f"{section}.{key}={json.dumps(value) if value is None or isinstance(value, bool) else value}"
        for section, values in new.items()
        for key, value in values.items()
        if value != old[section][key]
    ]


def _read(folder: Path, plugins: Plugged = (), changes: Sequence[str] = ()) -> Experiment:
    document = read(read_text(folder / EXPERIMENT), str(folder / EXPERIMENT))
    if plugins and isinstance(document.value, dict):
        document = replace(document, value={**document.value, "plugins": list(plugins)})
    for change in changes:
        document = override(document, change, takes_text)
    return resolve(Experiment, document)


def folder_state(folder: Path, experiment: Experiment) -> State:
    """Return how far this experiment has come in a folder.

    Raises:
        UserError: The folder holds something else, or is damaged.
    """
    if not folder.exists():
        return "new"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another one with --out")
    before = held(folder, experiment.plugins)
    if before is None:
        # Before its manifest is written, a run has begun nothing: a kill may leave the files of its start.
        others = {one.name for one in folder.iterdir() if not temporary(one)} - {
            LOCK,
            EXPERIMENT,
            PLAN,
            FLOWER,
        }
        if others:
            raise UserError(
                f"{folder} is not empty and is not a run folder; choose another folder with --out"
            )
        if (folder / EXPERIMENT).exists():
            _read(folder, experiment.plugins)  # what is no experiment is not a run's
        return "new"
    if chosen(before) != chosen(experiment):
        digests = f"{before.digest[:8]}, not {experiment.digest[:8]}"
        raise UserError(f"{folder} holds another experiment ({digests}); choose another folder with --out")
    return "finished" if finished(folder) else "unfinished"


def finished(folder: Path) -> bool:
    """Return whether a run wrote all its files; the report comes last.

    Raises:
        UserError: The manifest is damaged.
    """
    manifest = read_manifest(folder)
    return manifest is not None and {RESULT, REPORT} <= set(manifest.files)


def begin(folder: Path, experiment: Experiment, plan: Mapping[str, Any], manifest: Manifest) -> None:
    """Write what a run begins with; only with the manifest, which comes last, it has begun.

    Args:
        folder: A folder of which `folder_state` says that it is new.
        experiment: What is run.
        plan: Who holds what.
        manifest: What the run is; its files are filled in.
    """
    write_atomic(folder / EXPERIMENT, experiment.to_json().encode(), folder)
    write_json(folder / PLAN, plan, folder)
    files = {name: file_digest(folder / name) for name in (EXPERIMENT, PLAN)}
    write_manifest(folder, replace(manifest, files=files))


def written(folder: Path) -> Iterator[str]:
    """Yield the paths below a folder of what a run wrote and its manifest lists."""
    return (name for name in files_in(folder) if name.partition("/")[0] in set(HELD) - {FLOWER})


def require_whole(folder: Path, manifest: Manifest) -> None:
    """Check what results are read from, or what a run goes on with; checkpoints are checked where they are read.

    Raises:
        UserError: A file is missing or damaged; which one is named.
    """
    check_files(folder, manifest, [name for name in manifest.files if not name.startswith(f"{METHODS}/")])
    if RESULT in manifest.files:
        return
    if (folder / RECORD).exists():
        deque(read_lines(folder / RECORD), maxlen=0)
    if (folder / MACHINE).exists():
        read_sealed(folder / MACHINE)


def discard(folder: Path) -> None:
    """Remove what a run wrote into its folder, and nothing else; a folder that holds no run stays as it is.

    Raises:
        UserError: There are files of others in it, or another process works in it.
    """
    if not any((folder / name).is_file() for name in (EXPERIMENT, RECORD)):
        return
    others = sorted({one.name for one in folder.iterdir() if not temporary(one)} - {LOCK, *HELD})
    if others:
        raise UserError(
            f"{folder} also holds files that no run wrote, such as {others[0]!r}; move them elsewhere"
        )
    with alone(folder):
        for place in (folder / name for name in reversed(HELD)):  # a kill leaves what can be discarded again
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)


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


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Make a folder if there is none, keep others out, and leave no folder behind in which nothing was begun.

    Raises:
        UserError: Another process works in it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with alone(folder):
            tidy(folder)
            yield
    finally:
        with suppress(OSError):
            if made and {one.name for one in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder that exists; nothing stays locked when this one ends or dies.

    Raises:
        UserError: Another process works in it.
    """
    number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    with open(number, "w", encoding="ascii") as file:
        try:
            # Unlike flock, this is not passed on to copies of the process.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            message = f"{folder}: another process is working in it"
            raise UserError(f"{message}; wait until it ends, or choose another folder with --out") from None
        yield


def tidy(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left in a folder that is this one's `alone`."""
    for left in filter(temporary, [*folder.rglob(".*")]):
        left.unlink()


def temporary(file: Path) -> bool:
    """Return whether a file is one that was being written when its process ended."""
    return TEMPORARY.fullmatch(file.name) is not None and file.is_file()
