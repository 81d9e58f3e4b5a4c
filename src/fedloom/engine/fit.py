"""How many clients to train at once, in processes and side by side: as many as memory holds, if it is faster.

What is faster depends on the machine, so it is measured once and remembered there; a run writes down what
it chose and keeps to it when it goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedloom.client.train import Work
from fedloom.engine.in_process import WINDOW
from fedloom.models.batch import answer_losses, collate
from fedloom.processes import can_fork, forked, threads_each
from fedloom.record import write_json
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.tuning.dropout import dropping

MOST = 32
"""Rows beyond which nothing is tried: what a pass costs besides its arithmetic is spread thin by then."""

MISSES = 2
"""So many times in a row more rows may be no faster before no more are tried."""

WORTHWHILE = 1.05
"""Gain below which clients train one by one: less is noise."""

COPIES = 1.2
"""Gain below which no copies are made: sending updates and sharing the memory's speed cost what a pass does not show."""


@dataclass(frozen=True)
class Fit:
    """What was chosen, and what for.

    Attributes:
        rows: Clients that train side by side.
        gain: Measured speed over one client at a time, or None where there was nothing to measure.
        tried: The most rows that were measured.
        room: Clients that memory holds at once.
        workers: Processes that train clients at once, each with its share of the threads.
    """

    rows: int
    gain: float | None = None
    tried: int = 1
    room: int = MOST
    workers: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the choice as JSON can write it."""
        return asdict(self)


def copyable(tuned: Tuned) -> bool:
    """Tell whether copies of this process could use the model."""
    return tuned.vlm.device.type == "cpu" and can_fork()


def cores(tuned: Tuned) -> int:
    """Return how many processes may train clients at once: one for each thread, where processes can be copied."""
    return torch.get_num_threads() if copyable(tuned) else 1


def fit(
    tuned: Tuned,
    works: Sequence[Work],
    cohort: int | None = None,
    workers: int = 1,
    free: int | None = None,
) -> Fit:
    """Choose the number of workers and of rows for works like these.

    Times one forward and backward pass of one client and of several side by side, in this process and in copies of
    it, twice each; nothing is learnt from it. Rows are doubled as long as that is faster. What is less simple must be
    faster. Copies are not tried where making them alone takes too long.

    Args:
        tuned: The model with one row.
        works: Some of a round's works.
        cohort: How many works a round has; None means these.
        workers: The most workers to take.
        free: Bytes that may be used; None asks the system.
    """
    if len(works) < 2:
        return Fit(1)
    cohort = len(works) if cohort is None else cohort
    free = free_memory() if free is None else free
    # Twice what forward saves, since backward needs about as much again; values, gradients and optimiser of a row; and
    # the updates, and what clients keep, of all works that are looked at together.
    needed = (
        2 * saved_bytes(tuned, works[0]) + (4 + 2 * WINDOW) * tuned.flat.element_size() * tuned.layout.size
    )
    room = MOST * workers if free is None else max(1, int(free / needed))
    workers = min(workers, room, cohort)
    room = min(room, MOST * workers)
    counts = sorted({1, workers})
    most = min(MOST, len(works)) if tuned.stackable else 1
    steps = {count: doubled(math.ceil(cohort / count), min(room // count, most)) for count in counts}
    if steps == {1: [1]}:
        return Fit(1, room=room)
    _seconds(tuned, works[:1])  # the first pass of all is slower
    seconds: dict[tuple[int, int], float] = {}
    for count in counts:
        if count > 1 and not _worth_copying(min(seconds.values()), count):
            break
        least, misses = math.inf, 0
        for rows in steps[count]:
            seconds[count, rows] = took = _round(tuned, works[:rows], count, cohort)
            misses = 0 if took < least else misses + 1
            least = min(least, took)
            if misses == MISSES:
                break
    for (count, rows), before in seconds.items():
        seconds[count, rows] = min(before, _round(tuned, works[:rows], count, cohort))
    best = simple = (1, 1)
    for way, took in seconds.items():
        least = WORTHWHILE if way[0] == best[0] else COPIES
        if took * least <= seconds[best]:
            best = way
    gain = seconds[simple] / seconds[best]
    return Fit(best[1], round(gain, 3), max(rows for _, rows in seconds), room, best[0])


def _worth_copying(alone: float, count: int) -> bool:
    """Tell whether copies could be `COPIES` times as fast as a round in one process, if they shared it out evenly."""

    def nothing() -> Iterator[bytes]:
        yield b""

    begun = time.perf_counter()
    for _ in forked([nothing] * count, threads_each(count)):
        pass
    return COPIES * (time.perf_counter() - begun + alone / count) <= alone


def doubled(clients: int, most: int) -> list[int]:
    """Return numbers of rows to try, fewest first, each about twice the one before and none leaving many rows idle.

    Example:
        >>> doubled(20, 32), doubled(20, 8)
        ([1, 2, 3, 5, 10, 20], [1, 2, 4, 7])
    """
    rows = [math.ceil(clients / math.ceil(clients / most))]
    while rows[-1] > 1:
        rows.append(math.ceil(rows[-1] / 2))
    return rows[::-1]


def remembered(
    file: Path, tuned: Tuned, works: Sequence[Work], cohort: int, workers: int, *, compiled: bool = False
) -> Fit:
    """Return the choice this machine made before for such works, or make it and remember it in `file`.

    What a machine chose while it was busy with other work is not remembered.
    """
    settings, dropout = works[0].settings, bool(tuned.stage.lora and tuned.stage.lora.dropout)
    key = hashlib.sha256(
        f"doubled {tuned.vlm.digest} {tuned.layout.to_json()} {settings.batch_size} {min(cohort, MOST * workers)} "
        f"{workers} {dropout} {compiled} {torch.get_num_threads()} {torch.__version__}".encode()
    ).hexdigest()
    known: dict[str, Any] = {}
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
        return Fit(**known[key])
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not there, damaged, or of another version: measured again
    found = fit(tuned, works, cohort, workers)
    if not _busy():
        write_json(file, {**known, key: found.to_json()})
    return found


def _busy() -> bool:
    """Tell whether more was running over the last minute than this machine has processors, and this process besides."""
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1) + 1
    except (OSError, AttributeError):  # a system that does not say
        return False


def _round(tuned: Tuned, works: Sequence[Work], workers: int, cohort: int) -> float:
    """Return the seconds that a round of `cohort` such clients takes: these side by side, in each of the processes.

    Clients that are left over fill a pass no less than others. Copying the process, and the pages that the copy's
    first pass takes, are paid for once.
    """

    def part() -> Iterator[bytes]:
        _seconds(tuned, works)
        yield str(_seconds(tuned, works)).encode()

    passes = math.ceil(cohort / (workers * len(works))) * works[0].steps
    if workers == 1:
        return passes * _seconds(tuned, works)
    begun = time.perf_counter()
    later = sum(float(message) for _, message in forked([part] * workers, threads_each(workers))) / workers
    first = time.perf_counter() - begun - later
    return first + (passes - 1) * later


def _seconds(tuned: Tuned, works: Sequence[Work]) -> float:
    with side_by_side(tuned, len(works)) as stack:
        for row, work in enumerate(works):
            stack.write(work.broadcast.params, row)
        batch = collate(stack.vlm, [next(work.batches()) for work in works])
        begun = time.perf_counter()
        with dropping(stack, batch, [work.masks(0) for work in works]):
            losses = answer_losses(stack.vlm, batch, stack.connects(len(works)))
            if losses.requires_grad:
                losses.sum().backward()
        return time.perf_counter() - begun


def saved_bytes(tuned: Tuned, work: Work) -> int:
    """Count the bytes that one client's step keeps for its backward pass; shared weights do not count."""
    own = {value.untyped_storage().data_ptr() for value in tuned.vlm.model.state_dict().values()}
    own.add(tuned.flat.untyped_storage().data_ptr())
    seen: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    tuned.write(work.broadcast.params)
    batch = collate(tuned.vlm, [next(work.batches())])
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value)
    with hooks, dropping(tuned, batch, [work.masks(0)]):
        # The losses are held until all is counted, so that no address is used twice.
        losses = answer_losses(tuned.vlm, batch)
    del losses
    return sum(seen.values())


def short_of_memory(tuned: Tuned, work: Work, free: int | None = None) -> bool:
    """Tell whether one client's step would take more than half of the memory that is free.

    Reckoned from a single example, so that finding out does not take the memory itself.
    """
    free = free_memory() if free is None else free
    one = saved_bytes(tuned, replace(work, conversations=work.conversations[:1]))
    return free is not None and 2 * one * work.settings.batch_size > free / 2


def free_memory() -> int | None:
    """Return the bytes of memory that are free where the model is, or None where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
