"""Write a checkpoint of every finished round, so that a run killed at any moment goes on from the last one.

A checkpoint is two files: `round-0003.safetensors` with the server's tensors, and `round-0003.json`, renamed
into place last, with the other's SHA-256 and its own. A pair that is incomplete or damaged is passed over for the one
before it; the last two are kept. What a client keeps lies in files of its own, `memory/0/7/round-0003.safetensors`
for client 7, written before the pair and read when the client trains again: a run of a million clients opens only its
cohort's. The checkpoint holds the round of each client's newest file, so that no older one can take its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from fedloom.algorithms.base import ServerState
from fedloom.engine.rounds import Best, Standing
from fedloom.manifest import MEMORY, read_sealed, write_sealed
from fedloom.params import Layout, Params
from fedloom.record import write_atomic
from fedloom.types import Tensors, UserError

KEPT = 2
"""Checkpoints that are kept, and files of one client's memory besides the one of the round that goes on."""

INDEX = ("memory/clients", "memory/rounds")
"""Tensors of a checkpoint: clients that keep something, and the round of each one's newest file, both [clients]."""

BEST = "best/"
"""Beginning of the names of tensors that hold the models of the best round: "all", or a client's number."""

FOLDER = 1000
"""Clients whose memories lie in one folder."""


def opened(folder: Path, standing: Standing) -> Stored:
    """Open the files that the next round's clients write what they keep to."""
    known = standing.memories.rounds if isinstance(standing.memories, Stored) else {}
    return Stored(folder, standing.state.round + 1, dict(known))


def commit(folder: Path, standing: Standing, recorded: int = 0, of: str = "") -> None:
    """Write the checkpoint of a round, and drop those older than the last two.

    What clients keep is in files already; see `opened`.

    Args:
        folder: An existing folder.
        standing: Where the run stands after the round.
        recorded: Bytes of the run's record that the checkpoint follows; see `recorded_below`.
        of: Names the training of a run; a checkpoint of another one is not read in its place.

    Raises:
        UserError: The folder was removed.
    """
    tensors: dict[str, Tensor] = {"params": standing.state.params.flat}
    tensors |= {f"slots/{name}": value for name, value in standing.state.slots.items()}
    if isinstance(standing.memories, Stored) and standing.memories.rounds:
        columns = (standing.memories.rounds, standing.memories.rounds.values())
        tensors |= {name: torch.tensor([*one]) for name, one in zip(INDEX, columns, strict=True)}
    if standing.best is not None:
        tensors |= {
            f"{BEST}{_whose(one)}": params.flat.clone() for one, params in standing.best.models.items()
        }
    content = save({name: value.contiguous() for name, value in tensors.items()})
    name = f"round-{standing.state.round:04}"
    write_atomic(folder / f"{name}.safetensors", content, folder)
    figures = {
        "round": standing.state.round,
        "tensors": hashlib.sha256(content).hexdigest(),
        "layout": json.loads(standing.state.params.layout.to_json()),
        "norms": list(standing.norms),
        "missed": standing.missed,
        "recorded": recorded,
        "of": of,
        "up": standing.up,
        "down": standing.down,
        "seconds": standing.seconds,
        **(
            {}
            if standing.best is None
            else {"best": {"round": standing.best.round, "score": standing.best.score}}
        ),
    }
    write_sealed(folder / f"{name}.json", figures, folder)
    for old in _by_round(folder.glob("round-*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def recorded_below(folder: Path) -> int:
    """Return how many bytes the run's record must have: those that checkpoints and results below a folder follow."""
    found = 0
    for file in folder.rglob("*.json"):
        with suppress(UserError):  # what is damaged is passed over, or refused, by whoever reads it
            found = max(found, read_sealed(file).get("recorded", 0))
    return found


@dataclass(frozen=True)
class Stored(Mapping[int, Tensors]):
    """What clients keep, as it was after some round: read from files when asked for.

    Writing adds a file for this round; those of earlier rounds stay until a third is written, so that a run
    can go on from either of its last two checkpoints.

    Attributes:
        folder: The training's folder; the files lie in `memory` below it.
        round: What is written belongs to this round.
        rounds: Client → round of its newest file.
    """

    folder: Path
    round: int
    rounds: dict[int, int] = field(default_factory=dict[int, int])

    def __getitem__(self, client: int) -> Tensors:
        file = self._file(client, self.rounds[client])
        try:
            with safe_open(file, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
                whole = (opened.metadata() or {}).get("sha256") == _digest(tensors, file.parts[-2:])
        except (OSError, SafetensorError, ValueError):
            tensors, whole = {}, False
        if not whole:
            raise UserError(
                f"{file}: what client {client} keeps is missing or damaged, and no earlier checkpoint can do without "
                "it; run again from the start with --rerun"
            )
        return tensors

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.rounds))

    def __len__(self) -> int:
        return len(self.rounds)

    def __setitem__(self, client: int, memory: Tensors) -> None:
        tensors = {name: value.contiguous() for name, value in memory.items()}
        file = self._file(client, self.round)
        content = save(tensors, metadata={"sha256": _digest(tensors, file.parts[-2:])})
        write_atomic(file, content, self.folder)
        older = [one for one in file.parent.glob("round-*.safetensors") if _round(one) < self.round]
        for old in _by_round(older)[:-KEPT]:
            old.unlink()
        self.rounds[client] = self.round

    def _file(self, client: int, round: int) -> Path:
        return self.folder / MEMORY / str(client // FOLDER) / str(client) / f"round-{round:04}.safetensors"


def _round(file: Path) -> int:
    number = file.stem.removeprefix("round-")
    return int(number) if number.isdecimal() else -1


def _by_round(files: Iterable[Path]) -> list[Path]:
    # By number: as texts, round-10000 stands before round-9999.
    return sorted(files, key=_round)


def _digest(tensors: Tensors, place: Sequence[str]) -> str:
    """Return the SHA-256 of what a client keeps, and of whose it is and since which round."""
    sha = hashlib.sha256("/".join(place).encode())
    for name, value in sorted(tensors.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.numpy().tobytes())
    return sha.hexdigest()


def _ignore(reason: str) -> None:
    pass


def last_commit(
    folder: Path,
    layout: Layout | None = None,
    passed_over: Callable[[str], None] = _ignore,
    of: str | None = None,
) -> Standing | None:
    """Read the newest checkpoint that is whole, or None where there is none.

    A checkpoint is whole if its two files are as they were written, its layout is the one given, and the memories that
    clients wrote in its round can be read.

    Args:
        folder: A training's folder.
        layout: That of the parameters; None accepts any.
        passed_over: Called with the reason for each newer checkpoint that is not whole.
        of: The training that they must belong to; None accepts any.
    """
    for file in reversed(_by_round(folder.glob("round-*.json"))):
        try:
            return read_commit(file, layout, of)
        except UserError as error:
            passed_over(str(error))
    return None


def read_commit(file: Path, layout: Layout | None = None, of: str | None = None) -> Standing:
    """Read a checkpoint.

    Args:
        file: Its JSON file.
        layout: What its layout must be; None accepts any.
        of: The training that it must belong to; None accepts any.

    Raises:
        UserError: It is not whole, of another layout or of another training; see `last_commit`.
    """
    figures, beside = read_sealed(file), file.with_suffix(".safetensors")
    try:
        content = beside.read_bytes()
    except OSError as error:
        raise UserError(f"{beside} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != figures["tensors"]:
        raise UserError(f"{beside} is damaged: its content does not match the SHA-256 in {file.name}")
    if _round(file) != figures["round"]:
        raise UserError(f"{file} is the checkpoint of another round")
    if of not in (None, figures["of"]):
        raise UserError(f"{file} is the checkpoint of another run or method")
    own = Layout.from_json(json.dumps(figures["layout"]))
    if layout not in (None, own):
        raise UserError(f"{file} was made for another model or strategy")
    tensors = load(content)
    clients, rounds = (tensors.pop(name).tolist() if name in tensors else [] for name in INDEX)
    slots = {name[len("slots/") :]: value for name, value in tensors.items() if name.startswith("slots/")}
    state = ServerState(Params(own, tensors["params"]), figures["round"], slots)
    stored = Stored(file.parent, figures["round"], dict(zip(clients, rounds, strict=True)))
    for client in (client for client, round in stored.rounds.items() if round == figures["round"]):
        _ = stored[client]
    return Standing(
        state,
        stored,
        tuple(figures["norms"]),
        figures.get("missed", 0),
        figures["up"],
        figures["down"],
        figures["seconds"],
        _best(figures.get("best"), tensors, own),
    )


def _whose(client: int | None) -> str:
    return "all" if client is None else str(client)


def _best(figures: Mapping[str, Any] | None, tensors: Tensors, layout: Layout) -> Best | None:
    """Return the best round of a checkpoint, or None where none was looked for."""
    if figures is None:
        return None
    named = {name[len(BEST) :]: value for name, value in tensors.items() if name.startswith(BEST)}
    models = {None if name == "all" else int(name): Params(layout, value) for name, value in named.items()}
    return Best(figures["round"], figures["score"], dict(sorted(models.items(), key=lambda one: one[0] or 0)))
