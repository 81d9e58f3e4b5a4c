"""What a frozen encoder makes of pictures, kept in files: computed once for every client, round and run.

A shard is a safetensors file: `features` [pictures, T, E], and in its metadata the pictures' keys and the
SHA-256 of each row. Shards of one encoder lie in a folder named by everything that the features depend
on besides the picture: weights, processor, precision. Files appear whole or not at all, so processes may
share the folder. What is kept can always be computed again, so a full disk, a folder that cannot be written
or a damaged file never ends a run; the reason is remembered instead.

Shape legend: T image tokens of a picture, E encoder width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedloom.system.json_files import write_atomic


class FeatureStore:
    """Features of one encoder on disk, read through a memory map.

    Args:
        folder: Where all encoders' shards lie.
        identity: What the features depend on besides the picture, as JSON can write it.
        limit: Bytes that all shards in `folder` may take; the ones used longest ago go first.

    Attributes:
        damaged: Why something could not be kept or read: a damaged shard, a full disk, a folder without access.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], limit: int) -> None:
        name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder, self._root, self._limit = folder / name, folder, limit
        self.damaged: list[str] = []
        self._rows: dict[str, tuple[Path, int, str]] = {}
        self._shapes: dict[Path, tuple[int, ...]] = {}
        self._full = False
        try:
            files = sorted(self.folder.glob("*.safetensors"))
        except OSError as error:
            files, _ = [], self.damaged.append(f"{self.folder}: {error.strerror}")
        for file in files:
            self._open(file)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def grid(self, key: str) -> tuple[int, ...] | None:
        """Return the shape of a picture's features without E, from the file's header; None where none are kept."""
        place = self._rows.get(key)
        return None if place is None else self._shapes[place[0]][1:-1]

    def read(self, key: str) -> Tensor | None:
        """Return a picture's features [T, E], or None where they are not kept or were damaged."""
        place = self._rows.get(key)
        if place is None:
            return None
        file, row, digest = place
        try:
            with safe_open(file, "pt") as shard:
                # A copy, or the whole file would stay mapped, once for every picture.
                value = shard.get_slice("features")[row].clone()
        except (OSError, SafetensorError):
            return self._drop(file, "it cannot be read")
        if _digest(value) != digest:
            return self._drop(file, "its content does not match its SHA-256")
        return value

    def write(self, features: Mapping[str, Tensor]) -> None:
        """Keep the features of some pictures, all of one shape, as one shard; then see to the limit.

        After a failure, such as a full disk, no more is written.
        """
        fresh = {key: value for key, value in features.items() if key not in self._rows}
        if not fresh or self._full:
            return
        rows = torch.stack([value.cpu() for value in fresh.values()]).contiguous()
        told = {"keys": json.dumps(list(fresh)), "sha256": json.dumps([_digest(row) for row in rows])}
        content = save({"features": rows}, metadata=told)
        if len(content) > self._limit:
            return
        file = self.folder / f"{hashlib.sha256(content).hexdigest()[:24]}.safetensors"
        try:
            write_atomic(file, content)
            self._open(file)
            self._make_room(file)
        except OSError as error:
            self._full = True
            self.damaged.append(f"{file}: no features are kept ({error.strerror or error})")

    def _open(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as shard:
                told = shard.metadata() or {}
                shape = tuple(shard.get_slice("features").get_shape())
            keys, digests = json.loads(told["keys"]), json.loads(told["sha256"])
            if not shape[0] == len(keys) == len(digests):
                raise ValueError("rows, keys and digests differ in number")
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            self._drop(file, str(error))
            return
        with suppress(OSError):  # a cache that others own can still be read
            os.utime(file)
        self._shapes[file] = shape
        for row, (key, digest) in enumerate(zip(keys, digests, strict=True)):
            self._rows[key] = (file, row, digest)

    def _drop(self, file: Path, reason: str) -> None:
        self.damaged.append(f"{file}: {reason}")
        with suppress(OSError):
            file.unlink(missing_ok=True)
        self._rows = {key: place for key, place in self._rows.items() if place[0] != file}

    def _make_room(self, newest: Path) -> None:
        found = []
        for file in self._root.glob("*/*.safetensors"):
            with suppress(FileNotFoundError):  # another process may make room at the same time
                state = file.stat()
                found.append((state.st_mtime, state.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self._limit:
                return
            if file != newest:
                file.unlink(missing_ok=True)
                self._rows = {key: place for key, place in self._rows.items() if place[0] != file}
                total -= size


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
