"""Store encoder features in files, so that they are computed once for every client, round and run.

A shard is a safetensors file: `features` [images, T, E], and in its metadata the images' keys and the
SHA-256 of each row. The shards of one encoder are in a folder whose name is a digest of everything that the features
depend on besides the image: weights, processor, precision. Files are written atomically, so processes may
share the folder. Features can always be computed again, so a full disk, a folder that cannot be written
or a damaged file never ends a run; the reason is kept in `damaged`.

Shape legend: T image tokens of an image, E encoder width.
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
        folder: Folder of all encoders' shards.
        identity: Everything that the features depend on besides the image, as JSON values.
        limit: Bytes that all shards in `folder` may take; the least recently used ones are removed first.

    Attributes:
        damaged: Why features could not be stored or read: a damaged shard, a full disk, a folder without access.
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
        """Return the shape of an image's features without E, from the file's header; None if they are not stored."""
        row = self._rows.get(key)
        return None if row is None else self._shapes[row[0]][1:-1]

    def read(self, key: str) -> Tensor | None:
        """Return an image's features [T, E], or None if they are not stored or are damaged."""
        if key not in self._rows:
            return None
        file, row, digest = self._rows[key]
        try:
            with safe_open(file, "pt") as shard:
                # Without the copy the whole file would stay mapped, once for every image.
                value = shard.get_slice("features")[row].clone()
        except (OSError, SafetensorError):
            return self._drop(file, "it cannot be read")
        if _digest(value) != digest:
            return self._drop(file, "its content does not match its SHA-256")
        return value

    def write(self, features: Mapping[str, Tensor]) -> None:
        """Store the features of images, all of one shape, as one shard, and remove old shards beyond the limit.

        After a failure, such as a full disk, nothing more is written.
        """
        new = {key: value for key, value in features.items() if key not in self._rows}
        if not new or self._full:
            return
        rows = torch.stack([value.cpu() for value in new.values()]).contiguous()
        metadata = {"keys": json.dumps(list(new)), "sha256": json.dumps([_digest(row) for row in rows])}
        content = save({"features": rows}, metadata=metadata)
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
                metadata = shard.metadata() or {}
                shape = tuple(shard.get_slice("features").get_shape())
            keys, digests = json.loads(metadata["keys"]), json.loads(metadata["sha256"])
            if not shape[0] == len(keys) == len(digests):
                raise ValueError("rows, keys and digests differ in number")
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            self._drop(file, str(error))
            return
        with suppress(OSError):  # a cache of another user can still be read
            os.utime(file)
        self._shapes[file] = shape
        for row, (key, digest) in enumerate(zip(keys, digests, strict=True)):
            self._rows[key] = (file, row, digest)

    def _drop(self, file: Path, reason: str) -> None:
        self.damaged.append(f"{file}: {reason}")
        with suppress(OSError):
            file.unlink(missing_ok=True)
        self._forget(file)

    def _forget(self, file: Path) -> None:
        self._rows = {key: row for key, row in self._rows.items() if row[0] != file}

    def _make_room(self, newest: Path) -> None:
        shards = []
        for file in self._root.glob("*/*.safetensors"):
            with suppress(FileNotFoundError):  # another process may make room at the same time
                state = file.stat()
                shards.append((state.st_mtime, state.st_size, file))
        total = sum(size for _, size, _ in shards)
        for _, size, file in sorted(shards):
            if total <= self._limit:
                return
            if file != newest:
                file.unlink(missing_ok=True)
                self._forget(file)
                total -= size


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
