"""Write a checkpoint of every finished round, so that a run that is killed at any moment goes on from the last one.

A checkpoint consists of two files: `round-0003.safetensors` with the server's tensors, and `round-0003.json` with the SHA-256
of the first and its own, which is renamed into place last. If a pair is incomplete or damaged, the one before it is used; the
last two are kept. What clients keep stays at their sites (`fedloom.client.client_memory`). The checkpoint names the rounds
whose memory the server has accepted, so that no older or newer one can take its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedloom.algorithms.algorithm import ServerState
from fedloom.client.client_memory import round_of
from fedloom.engine.rounds import MEMORIES_KEPT, Best, TrainingState
from fedloom.params import Layout, Params
from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic
from fedloom.system.manifest import read_sealed, write_sealed

CHECKPOINTS = 2
"""Number of checkpoints that are kept."""

INDEX = ("memory/clients", "memory/rounds")
"""Tensors of a checkpoint: the clients that keep memory, [clients], and the rounds of it, [clients, MEMORIES_KEPT], -1 for none."""

BEST = "best/"
"""The prefix of the names of the best round's tensors: its parameters, and an index as above."""


def write_checkpoint(folder: Path, training_state: TrainingState, recorded: int = 0, of: str = "") -> None:
    """Write the checkpoint of a round, and delete all but the last two.

    Args:
        folder: An existing folder.
        training_state: The training's state after the round.
        recorded: Number of bytes of the run's record when the checkpoint is written; see `recorded_below`.
        of: Digest of the training, so that no checkpoint of another one is read in its place.

    Raises:
        UserError: The folder was removed.
    """
    tensors: dict[str, Tensor] = {"params": training_state.state.params.flat}
    tensors |= {f"slots/{name}": value for name, value in training_state.state.slots.items()}
    tensors |= _index(training_state.kept)
    if (best := training_state.best) is not None:
        tensors[f"{BEST}params"] = best.params.flat
        index = _index({client: (round,) for client, round in best.since.items()})
        tensors |= {f"{BEST}{name}": value for name, value in index.items()}
    # Copies, since a file holds no tensor that shares its memory with another.
    content = save({name: value.contiguous().clone() for name, value in tensors.items()})
    name = f"round-{training_state.state.round:04}"
    write_atomic(folder / f"{name}.safetensors", content, folder)
    figures = {
        "round": training_state.state.round,
        "tensors": hashlib.sha256(content).hexdigest(),
        "layout": json.loads(training_state.state.params.layout.to_json()),
        "norms": list(training_state.norms),
        "missed": training_state.missed,
        "recorded": recorded,
        "of": of,
        "up": training_state.bytes_up,
        "down": training_state.bytes_down,
        "seconds": training_state.seconds,
        **(
            {}
            if training_state.best is None
            else {"best": {"round": training_state.best.round, "score": training_state.best.score}}
        ),
    }
    write_sealed(folder / f"{name}.json", figures, folder)
    for old in _by_round(folder.glob("round-*.json"))[:-CHECKPOINTS]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def recorded_below(folder: Path) -> int:
    """Return the bytes that the run's record must have: its length when the last file below a folder was written."""
    recorded = 0
    for file in folder.rglob("*.json"):
        with suppress(UserError):  # whoever reads a damaged file skips or refuses it
            recorded = max(recorded, read_sealed(file).get("recorded", 0))
    return recorded


def _index(kept: Mapping[int, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors that name the accepted memories, by client and round; none where no client keeps any."""
    if not kept:
        return {}
    rounds = [[-1] * (MEMORIES_KEPT - len(numbers)) + list(numbers) for numbers in kept.values()]
    return dict(zip(INDEX, (torch.tensor([*kept]), torch.tensor(rounds)), strict=True))


def _kept(tensors: dict[str, Tensor], under: str = "") -> dict[int, tuple[int, ...]]:
    """Remove the tensors of `_index` from those of a checkpoint, and return the rounds that they name."""
    clients, rounds = (
        tensors.pop(f"{under}{name}").tolist() if f"{under}{name}" in tensors else [] for name in INDEX
    )
    return {
        client: tuple(number for number in row if number >= 0)
        for client, row in zip(clients, rounds, strict=True)
    }


def _by_round(files: Iterable[Path]) -> list[Path]:
    # By number: as text, round-10000 comes before round-9999.
    return sorted(files, key=round_of)


def _ignore(reason: str) -> None:
    pass


def _sound(number: int, training_state: TrainingState) -> None:
    pass


def last_checkpoint(
    folder: Path,
    layout: Layout | None = None,
    passed_over: Callable[[str], None] = _ignore,
    of: str | None = None,
    check: Callable[[TrainingState], None] = partial(_sound, 0),
) -> TrainingState | None:
    """Read the newest whole checkpoint, or return None if there is none.

    A checkpoint is whole if its two files are as they were written, it has the given layout, and `check` accepts it.

    Args:
        folder: A training's folder.
        layout: The layout of the parameters; None accepts any.
        passed_over: Called with the reason for each newer checkpoint that is not whole.
        of: Digest of the training to which checkpoints must belong; None accepts any.
        check: Raises UserError if the run cannot go on from a checkpoint.
    """
    for file in reversed(_by_round(folder.glob("round-*.json"))):
        try:
            training_state = read_checkpoint(file, layout, of)
            check(training_state)
            return training_state
        except UserError as error:
            passed_over(str(error))
    return None


Stages = Sequence[tuple[Path, str | None]]
"""The stages of a training in order: the folder of a stage's checkpoints, and the digest by which they prove whose they are."""


def last_of_stage(
    stages: Stages,
    number: int,
    layout: Layout | None = None,
    passed_over: Callable[[str], None] = _ignore,
    check: Callable[[int, TrainingState], None] = _sound,
) -> TrainingState | None:
    """Read the newest whole checkpoint of a stage, or return None if there is none; see `last_checkpoint`.

    Args:
        stages: All stages of the training.
        number: Number of the stage, from 0.
        layout: The layout of the parameters; None accepts any.
        passed_over: Called with the reason for each newer checkpoint that is not whole.
        check: Called with the number of a stage that is not over and a checkpoint of it; raises UserError if what clients
            kept cannot be read.
    """
    folder, of = stages[number]
    needed = _sound if is_over(stages, number, layout, check) else check
    return last_checkpoint(folder, layout, passed_over, of, partial(needed, number))


def is_over(
    stages: Stages,
    number: int,
    layout: Layout | None = None,
    check: Callable[[int, TrainingState], None] = _sound,
) -> bool:
    """Return whether the next stage has a checkpoint to go on from, so that what clients kept of this one may be gone.

    See `last_of_stage` for the arguments.
    """
    return number + 1 < len(stages) and last_of_stage(stages, number + 1, layout, check=check) is not None


def read_checkpoint(file: Path, layout: Layout | None = None, of: str | None = None) -> TrainingState:
    """Read a checkpoint.

    Args:
        file: Its JSON file.
        layout: The layout that it must have; None accepts any.
        of: Digest of the training to which it must belong; None accepts any.

    Raises:
        UserError: The checkpoint is not whole, or has another layout or belongs to another training; see `last_checkpoint`.
    """
    figures, tensor_file = read_sealed(file), file.with_suffix(".safetensors")
    try:
        content = tensor_file.read_bytes()
    except OSError as error:
        raise UserError(f"{tensor_file} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != figures["tensors"]:
        raise UserError(f"{tensor_file} is damaged: its content does not match the SHA-256 in {file.name}")
    if round_of(file) != figures["round"]:
        raise UserError(f"{file} is the checkpoint of another round")
    if of not in (None, figures["of"]):
        raise UserError(f"{file} is the checkpoint of another run or method")
    own = Layout.from_json(json.dumps(figures["layout"]))
    if layout not in (None, own):
        raise UserError(f"{file} was made for another model or strategy")
    tensors = load(content)
    if any(tensors[name].dim() != 2 for name in (INDEX[1], BEST + INDEX[1]) if name in tensors):
        raise UserError(
            f"{file} was written by another version of fedloom, which stores the memory of clients differently"
        )
    kept, best = _kept(tensors), _best(figures.get("best"), tensors, own)
    slots = {name[len("slots/") :]: value for name, value in tensors.items() if name.startswith("slots/")}
    state = ServerState(Params(own, tensors["params"]), figures["round"], slots)
    return TrainingState(
        state,
        kept,
        tuple(figures["norms"]),
        figures.get("missed", 0),
        figures["up"],
        figures["down"],
        figures["seconds"],
        best,
    )


def _best(figures: Mapping[str, Any] | None, tensors: dict[str, Tensor], layout: Layout) -> Best | None:
    """Return the best round of a checkpoint, or None where none was chosen."""
    if figures is None:
        return None
    since = {client: rounds[-1] for client, rounds in _kept(tensors, BEST).items()}
    return Best(figures["round"], figures["score"], Params(layout, tensors[f"{BEST}params"]), since)
