"""Commit every finished round so that a run killed at any moment goes on from the last one.

A commit is two files: `round-0003.safetensors` with every tensor, and `round-0003.json`, renamed into place
last, with the other's SHA-256. A pair that is incomplete or damaged is passed over for the one before it;
the last two are kept.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedloom.algorithms.base import ServerState
from fedloom.engine.rounds import Standing
from fedloom.params import Layout, Params
from fedloom.record import write_atomic, write_json

KEPT = 2


def commit(folder: Path, standing: Standing) -> None:
    """Write where a run stands after a round, and drop commits older than the last two."""
    tensors: dict[str, Tensor] = {"params": standing.state.params.flat}
    tensors |= {f"slots/{name}": value for name, value in standing.state.slots.items()}
    for client, memory in standing.memories.items():
        tensors |= {f"memory/{client}/{name}": value for name, value in memory.items()}
    content = save({name: value.contiguous() for name, value in tensors.items()})
    name = f"round-{standing.state.round:04}"
    write_atomic(folder / f"{name}.safetensors", content)
    figures = {
        "round": standing.state.round,
        "sha256": hashlib.sha256(content).hexdigest(),
        "layout": json.loads(standing.state.params.layout.to_json()),
        "norms": list(standing.norms),
        "up": standing.up,
        "down": standing.down,
        "seconds": standing.seconds,
    }
    write_json(folder / f"{name}.json", figures)
    for old in sorted(folder.glob("round-*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


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
    memories: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("memory/"):
            _, client, key = name.split("/", 2)
            memories.setdefault(int(client), {})[key] = value
    slots = {name[len("slots/") :]: value for name, value in tensors.items() if name.startswith("slots/")}
    state = ServerState(Params(layout, tensors["params"]), figures["round"], slots)
    return Standing(
        state, memories, tuple(figures["norms"]), figures["up"], figures["down"], figures["seconds"]
    )
