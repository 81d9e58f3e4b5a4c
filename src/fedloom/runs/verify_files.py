"""Check that all files of a run, a sweep or an adapter are as they were written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from fedloom.client.client_memory import Files, round_of
from fedloom.engine.checkpoints import is_over, read_checkpoint, recorded_below
from fedloom.report.sweeps.sweep_results import read_sweep
from fedloom.run_log import head_of, position_of_head, read_lines, require_length
from fedloom.runs.left_this_site import NAME as LEFT_THIS_SITE
from fedloom.runs.method_predictions import check_parts
from fedloom.runs.run_folder import (
    EXPERIMENT,
    MACHINE,
    METHODS,
    RECORD,
    RESULT,
    held_experiment,
    stage_folders,
)
from fedloom.system.errors import UserError, user_errors
from fedloom.system.find_files import find_files
from fedloom.system.manifest import MANIFEST, MEMORY, check_files, files_in, read_manifest, read_sealed

SWEEP = "sweep.json"
LEFT = f"{LEFT_THIS_SITE}.jsonl"

Check = Callable[[], object]
"""A function that reads a file and raises `UserError` if it is missing or damaged."""


def verify(folder: Path) -> tuple[int, list[str]]:
    """Check every file below a folder against its digest.

    Args:
        folder: The folder of a run, a sweep, a site or an exported adapter.

    Returns:
        The number of checks, and a sentence for each file that is missing or damaged.

    Raises:
        UserError: The folder holds no run, sweep, site or adapter.
    """
    files, unread = find_files(folder, (SWEEP, MANIFEST, EXPERIMENT, LEFT), links=True)
    count, faults = 0, list(unread.values())
    for check in _checks(files):
        count += 1
        try:
            with user_errors():  # one file that cannot be read does not hide the faults of others
                check()
        except UserError as error:
            faults.append(str(error))
    if not count:
        reason = f"is not the folder of a run, a sweep or an adapter: it has no {MANIFEST}"
        raise UserError(faults[0] if faults else f"{folder} {reason}")
    return count, list(dict.fromkeys(faults))


def log_heads(folder: Path) -> dict[str, str]:
    """Return path below a folder → head, of each log that is whole and has one; see `fedloom.run_log.head_of`."""
    heads = dict[str, str]()
    for file in _logs(folder):
        with suppress(UserError), user_errors():  # `verify` reports it
            if head := head_of(file):
                heads[file.relative_to(folder).as_posix()] = head
    return heads


def head_fault(folder: Path, head: str) -> str | None:
    """Return why no log below a folder continues the one whose head was kept, or None where one does.

    Raises:
        UserError: There is no log below the folder.
    """
    faults = list[str]()
    for file in _logs(folder):
        try:
            with user_errors():
                position_of_head(file, head)
            return None
        except UserError as error:
            faults.append(str(error))
    if not faults:
        raise UserError(f"{folder} holds no log; `fedloom run` writes {RECORD}, and a site {LEFT}")
    return faults[0] if len(faults) == 1 else f"{folder}: none of its {len(faults)} logs has the head {head}"


def _logs(folder: Path) -> list[Path]:
    return find_files(folder, (RECORD, LEFT), links=True)[0]  # `verify` reports what cannot be read


def _checks(files: Sequence[Path]) -> Iterator[Check]:
    yield from (partial(read_sweep, file.parent) for file in files if file.name == SWEEP)
    for inner in sorted({file.parent for file in files if file.name in (MANIFEST, EXPERIMENT)}):
        yield from _checks_of(inner)
    yield from (partial(deque, read_lines(file), 0) for file in files if file.name == LEFT)


def _checks_of(folder: Path) -> Iterator[Check]:
    """Yield the checks of a run or an adapter: of files that its manifest lists, and of those with a digest inside."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        yield partial(read_manifest, folder)
        return
    if manifest is None:
        yield partial(held_experiment, folder)
        return
    for name in manifest.files:
        yield partial(check_files, folder, manifest, [name])
    for name in set(files_in(folder)) - set(manifest.files):
        file = folder / name
        if name == RECORD:
            yield partial(_read_all, file)
        elif name.startswith(f"{METHODS}/") and file.name.startswith("round-") and file.suffix == ".json":
            yield partial(read_checkpoint, file)
        elif name == MACHINE:
            yield partial(read_sealed, file)
        elif name.startswith(f"{METHODS}/") and file.name == RESULT:
            yield partial(_read_method, folder, file)
    for memory in sorted((folder / METHODS).glob(f"*/{MEMORY}")):
        method = memory.parent
        for training in sorted({method, *method.glob("client-*")}):
            yield from _memories_of(folder / METHODS, method.name, training)


def _read_method(folder: Path, result: Path) -> None:
    """Read the result of a method of an unfinished run, and its predictions."""
    check_parts(folder, result.parent.name, read_sealed(result)["predictions"])


def _read_all(record: Path) -> None:
    deque(read_lines(record), maxlen=0)
    require_length(record, recorded_below(record.parent / METHODS))


def _memories_of(methods: Path, method: str, training: Path) -> Iterator[Check]:
    """Yield the checks of what clients keep, as the checkpoints of a training have it; nothing is kept of stages that are over."""
    stages = [(folder, None) for folder in stage_folders(training)]
    for number, (folder, _) in enumerate(stages):
        if not is_over(stages, number):
            for checkpoint in sorted(folder.glob("round-*.json")):
                yield partial(_read_memories, methods, method, checkpoint)


def _read_memories(methods: Path, method: str, checkpoint: Path) -> None:
    """Read what each client keeps as a checkpoint has it.

    What it kept of the best round is needed by the last checkpoint only: a run that goes on from an older one reaches the
    better rounds after it again.
    """
    training_state, others = read_checkpoint(checkpoint), checkpoint.parent.glob("round-*.json")
    last = all(round_of(other) <= round_of(checkpoint) for other in others)
    best = training_state.best.since.items() if training_state.best and last else ()
    for client, round in {*training_state.since.items(), *best}:
        Files(methods).read((method, client, round))
