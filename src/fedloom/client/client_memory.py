"""The memory of clients: tensors that they keep at their site from round to round, by method, client and round.

A site writes what a client keeps before it replies, as the memory of that round, in this process or in files. It learns from
later assignments whether the update was accepted: `since` is the round whose memory the client starts from. So where an
update is refused, or the server goes back to an earlier checkpoint, the client's memory goes back, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic
from fedloom.system.manifest import MEMORY
from fedloom.types import Tensors

CLIENTS_PER_FOLDER = 1000
"""Number of clients whose memories share a folder."""

Key = tuple[str, int, int]
"""Method, client, and round counted over all stages."""


class Memory(Protocol):
    """A store of what clients keep."""

    @property
    def shared(self) -> bool:
        """Whether copies of the process write to the same store."""
        ...

    def read(self, key: Key) -> Tensors:
        """Return the memory that was written under a key.

        Raises:
            UserError: The memory is missing or damaged.
        """
        ...

    def write(self, key: Key, memory: Tensors, keep: Iterable[int]) -> None:
        """Write what a client keeps of a round, and delete what it kept of other rounds except those in `keep`."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A store in a dict, which is lost when the process ends."""

    memories: dict[Key, Tensors] = field(default_factory=dict[Key, Tensors])

    @property
    def shared(self) -> bool:
        """See `Memory`."""
        return False

    def read(self, key: Key) -> Tensors:
        """See `Memory`."""
        if key not in self.memories:
            raise UserError(f"what client {key[1]} kept of round {key[2]} is lost")
        return self.memories[key]

    def write(self, key: Key, memory: Tensors, keep: Iterable[int]) -> None:
        """See `Memory`."""
        kept = {*keep, key[2]}
        for other in [other for other in self.memories if other[:2] == key[:2] and other[2] not in kept]:
            del self.memories[other]
        self.memories[key] = memory


@dataclass(frozen=True)
class Files:
    """A store in files such as `METHOD/memory/0/7/round-0003.safetensors` (client 7) below a folder, each with its SHA-256."""

    folder: Path

    @property
    def shared(self) -> bool:
        """See `Memory`."""
        return True

    def read(self, key: Key) -> Tensors:
        """See `Memory`."""
        file = self.file(key)
        try:
            with safe_open(file, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
                whole = (opened.metadata() or {}).get("sha256") == _digest(tensors, file.parts[-2:])
        except (OSError, SafetensorError, ValueError):
            tensors, whole = {}, False
        if not whole:
            raise UserError(
                f"{file}: what client {key[1]} keeps is missing or damaged; if no earlier checkpoint can do without it, "
                "run again from the start with --rerun"
            )
        return tensors

    def write(self, key: Key, memory: Tensors, keep: Iterable[int]) -> None:
        """See `Memory`."""
        # Copies, since a file holds no tensor that shares its memory with another.
        tensors = {name: value.detach().contiguous().clone() for name, value in memory.items()}
        file, kept = self.file(key), {*keep, key[2]}
        content = save(tensors, metadata={"sha256": _digest(tensors, file.parts[-2:])})
        write_atomic(file, content, self.folder)
        for old in file.parent.glob("round-*.safetensors"):
            if round_of(old) not in kept:
                old.unlink()

    def file(self, key: Key) -> Path:
        """Return the file of a memory."""
        method, client, round = key
        return (
            self.folder
            / method
            / MEMORY
            / str(client // CLIENTS_PER_FOLDER)
            / str(client)
            / f"round-{round:04}.safetensors"
        )


def round_of(file: Path) -> int:
    """Return the round that a file is of, by its name; -1 if it has none."""
    number = file.stem.removeprefix("round-")
    return int(number) if number.isdecimal() else -1


def _digest(tensors: Tensors, path: Sequence[str]) -> str:
    """Return the SHA-256 of a memory and of its client and round, which are the last two parts of its path."""
    sha = hashlib.sha256("/".join(path).encode())
    for name, value in sorted(tensors.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return sha.hexdigest()
