"""Check that all files of a run, a sweep or an adapter are as they were written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fedloom.client.client_memory import Files, round_of
from fedloom.engine.checkpoints import read_checkpoint, recorded_below
from fedloom.report.sweeps.sweep_results import read_sweep
from fedloom.run_log import read_lines, require_length
from fedloom.runs.run_folder import EXPERIMENT, MACHINE, METHODS, RECORD, RESULT, held
from fedloom.system.errors import UserError
from fedloom.system.manifest import MANIFEST, MEMORY, check_files, files_in, read_manifest, read_sealed

SWEEP = "sweep.json"

Check = Callable[[], object]
"""Reads a file; raises `UserError` where it is missing or damaged."""


def verify(folder: Path) -> tuple[int, list[str]]:
    """Compare every file below a folder with what is known of it.

    Args:
        folder: That of a run, a sweep or an exported adapter.

    Returns:
        The number of checks, and a sentence for each file that is missing or damaged.

    Raises:
        UserError: The folder holds none of them.
    """
    count, faults = 0, list[str]()
    for check in _checks(folder):
        count += 1
        try:
            check()
        except UserError as error:
            faults.append(str(error))
    if not count:
        raise UserError(f"{folder} is not the folder of a run, a sweep or an adapter: it has no {MANIFEST}")
    return count, list(dict.fromkeys(faults))


def _checks(folder: Path) -> Iterator[Check]:
    for file in sorted(folder.rglob(SWEEP)):
        yield partial(read_sweep, file.parent)
    places = {file.parent for name in (MANIFEST, EXPERIMENT) for file in folder.rglob(name)}
    for place in sorted(places):
        yield from _of_one(place)


def _of_one(folder: Path) -> Iterator[Check]:
    """Yield the checks of a run or an adapter: files that its manifest lists, and those that prove themselves."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        yield partial(read_manifest, folder)
        return
    if manifest is None:
        yield partial(held, folder)
        return
    for name in manifest.files:
        yield partial(check_files, folder, manifest, [name])
    for name in set(files_in(folder)) - set(manifest.files):
        file = folder / name
        if name == RECORD:
            yield partial(_read_all, file)
        elif name.startswith(f"{METHODS}/") and file.name.startswith("round-") and file.suffix == ".json":
            yield partial(read_checkpoint, file)
        elif name == MACHINE or (name.startswith(f"{METHODS}/") and file.name == RESULT):
            yield partial(read_sealed, file)
    for place in sorted((folder / METHODS).glob(f"*/{MEMORY}")):
        for checkpoint in sorted(place.parent.rglob("round-*.json")):
            if _is_over(checkpoint.parent):
                continue
            yield partial(_read_memories, folder, place.parent.name, checkpoint)


def _read_all(record: Path) -> None:
    deque(read_lines(record), maxlen=0)
    require_length(record, recorded_below(record.parent / METHODS))


def _is_over(folder: Path) -> bool:
    """Return whether a folder is that of a stage after which another has a checkpoint: then its memories are forgotten."""
    if not folder.name.startswith("stage-"):
        return False
    later = [one for one in folder.parent.glob("stage-*") if one.name > folder.name]
    return any(any(one.glob("round-*.json")) for one in (folder.parent, *later))


def _read_memories(folder: Path, method: str, checkpoint: Path) -> None:
    """Read what each client keeps as a checkpoint has it.

    What it kept of the best round is needed by the last checkpoint only: a run that goes on from an older one finds again
    the better rounds that came after it.
    """
    standing, others = read_checkpoint(checkpoint), checkpoint.parent.glob("round-*.json")
    last = all(round_of(one) <= round_of(checkpoint) for one in others)
    best = standing.best.since.items() if standing.best and last else ()
    for client, round in {*standing.since.items(), *best}:
        Files(folder / METHODS).read((method, client, round))
