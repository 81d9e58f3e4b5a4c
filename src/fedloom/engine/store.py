"""Commit every finished round so that a run killed at any moment goes on from the last one.

A commit is two files: `round-0003.safetensors` with the server's tensors, and `round-0003.json`, renamed
into place last, with the other's SHA-256. A pair that is incomplete or damaged is passed over for the one
before it; the last two are kept. What a client keeps lies in files of its own, `memory/0/7/round-0003.safetensors`
for client 7, written before the pair and read when the client trains again: a run of a million clients
opens only its cohort's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from fedloom.algorithms.base import ServerState
from fedloom.engine.rounds import Standing
from fedloom.params import Layout, Params
from fedloom.record import write_atomic, write_json
from fedloom.types import Tensors, UserError

KEPT = 2


def opened(folder: Path, standing: Standing) -> Stored:
    """Open the files that the next round's clients write what they keep to."""
    return Stored(folder / "memory", standing.state.round + 1)


def commit(folder: Path, standing: Standing) -> None:
    """Write where a run stands after a round, and drop commits older than the last two.

    What clients keep is in files already; see `opened`.
    """
    tensors: dict[str, Tensor] = {"params": standing.state.params.flat}
    tensors |= {f"slots/{name}": value for name, value in standing.state.slots.items()}
    content = save({name: value.contiguous() for name, value in tensors.items()})
    name = f"round-{standing.state.round:04}"
    write_atomic(folder / f"{name}.safetensors", content)
    figures = {
        "round": standing.state.round,
        "sha256": hashlib.sha256(content).hexdigest(),
        "layout": json.loads(standing.state.params.layout.to_json()),
        "norms": list(standing.norms),
        "missed": standing.missed,
        "up": standing.up,
        "down": standing.down,
        "seconds": standing.seconds,
    }
    write_json(folder / f"{name}.json", figures)
    for old in sorted(folder.glob("round-*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


@dataclass(frozen=True)
class Stored(Mapping[int, Tensors]):
    """What clients keep, as it was after some round: read from files when asked for.

    Writing adds a file for this round; those of earlier rounds stay until a third is written, so that a run
    can go on from either of its last two commits.

    Attributes:
        folder: Where the files lie.
        round: Files of later rounds, left by a run that was killed, are not seen.
    """

    folder: Path
    round: int

    def __getitem__(self, client: int) -> Tensors:
        files = [file for file in self._files(client) if _round(file) <= self.round]
        if not files:
            raise KeyError(client)
        try:
            with safe_open(files[-1], "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                whole = (file.metadata() or {}).get("sha256") == _digest(tensors)
        except (OSError, SafetensorError):
            tensors, whole = {}, False
        if not whole:
            raise UserError(f"{files[-1]}: what client {client} keeps is damaged; start the run anew")
        return tensors

    def __iter__(self) -> Iterator[int]:
        found = sorted(int(place.name) for place in self.folder.glob("*/*"))
        return (client for client in found if any(_round(file) <= self.round for file in self._files(client)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __setitem__(self, client: int, memory: Tensors) -> None:
        tensors = {name: value.contiguous() for name, value in memory.items()}
        content = save(tensors, metadata={"sha256": _digest(tensors)})
        write_atomic(self._place(client) / f"round-{self.round:04}.safetensors", content)
        for old in self._files(client)[: -KEPT - 1]:
            old.unlink()

    def _place(self, client: int) -> Path:
        return self.folder / str(client // 1000) / str(client)

    def _files(self, client: int) -> list[Path]:
        return sorted(self._place(client).glob("round-*.safetensors"))


def _round(file: Path) -> int:
    return int(file.stem.removeprefix("round-"))


def _digest(tensors: Tensors) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.numpy().tobytes())
    return sha.hexdigest()


def last_commit(folder: Path, layout: Layout) -> Standing | None:
    """Read the newest commit that is whole and fits the layout, or None."""
    for file in sorted(folder.glob("round-*.json"), reverse=True):
        standing = _read(file, layout)
        if standing is not None:
            return standing
    return None


def _read(file: Path, layout: Layout) -> Standing | None:
    try:
        figures: dict[str, Any] = json.loads(file.read_text())
        content = file.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != figures["sha256"]:
            return None
        if Layout.from_json(json.dumps(figures["layout"])) != layout:
            return None
        tensors = load(content)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    slots = {name[len("slots/") :]: value for name, value in tensors.items() if name.startswith("slots/")}
    state = ServerState(Params(layout, tensors["params"]), figures["round"], slots)
    stored = Stored(file.parent / "memory", figures["round"])
    return Standing(
        state,
        stored,
        tuple(figures["norms"]),
        figures.get("missed", 0),
        figures["up"],
        figures["down"],
        figures["seconds"],
    )
