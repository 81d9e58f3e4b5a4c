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
import time
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
        limit: Bytes that all shards in `folder` may take. Shards that nobody has asked for since this object was made are
            removed for new ones, the least recently used first. Where that does not make enough room, nothing more is written,
            so that a fixed subset of the images is stored.

    Attributes:
        full: Why features are not stored that would not fit; None while all fit.
        damaged: Why features could not be stored or read: a damaged shard, a full disk, a folder without access.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], limit: int) -> None:
        name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder, self._root, self._limit = folder / name, folder, limit
        self.damaged: list[str] = []
        self._rows: dict[str, tuple[Path, int, str]] = {}
        self._shapes: dict[Path, tuple[int, ...]] = {}
        self.full: str | None = None
        self._asked: set[Path] = set()
        self._opened = time.time()
        self._failed = False
        try:
            files = sorted(self.folder.glob("*.safetensors"))
        except OSError as error:
            files, _ = [], self.damaged.append(f"{self.folder}: {error.strerror}")
        for file in files:
            self._open(file)

    def __contains__(self, key: str) -> bool:
        if (row := self._rows.get(key)) is not None:
            self._use(row[0])
        return row is not None

    def grid(self, key: str) -> tuple[int, ...] | None:
        """Return the shape of an image's features without E, from the file's header; None if they are not stored."""
        return self._shapes[self._rows[key][0]][1:-1] if key in self else None

    def read(self, key: str) -> Tensor | None:
        """Return an image's features [T, E], or None if they are not stored or are damaged."""
        if key not in self:
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
        """Store the features of images, all of one shape, as one shard.

        When the limit is reached, or after a failure such as a full disk, nothing more is written.
        """
        new = {key: value for key, value in features.items() if key not in self._rows}
        if not new or self._failed or self.full:
            return
        rows = torch.stack([value.cpu() for value in new.values()]).contiguous()
        metadata = {"keys": json.dumps(list(new)), "sha256": json.dumps([_digest(row) for row in rows])}
        content = save({"features": rows}, metadata=metadata)
        file = self.folder / f"{hashlib.sha256(content).hexdigest()[:24]}.safetensors"
        try:
            if not self._make_room(len(content)):
                self.full = (
                    f"the features of all images need more than engine.cache_gigabytes, {self._limit / 1e9:g}: those that "
                    "are not stored are computed again whenever they are needed; a larger value stores them"
                )
                return
            write_atomic(file, content)
            self._open(file)
            self._use(file)
        except OSError as error:
            self._failed = True
            self.damaged.append(f"{file}: no features are kept ({error.strerror or error})")

    def _open(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as shard:
                metadata = shard.metadata() or {}
                shape = tuple(shard.get_slice("features").get_shape())
            keys, digests = _texts(metadata["keys"]), _texts(metadata["sha256"])
            if len(shape) < 2 or not shape[0] == len(keys) == len(digests):
                raise ValueError("rows, keys and digests differ in number")
        except (OSError, SafetensorError, LookupError, ValueError, RecursionError) as error:
            self._drop(file, str(error))
            return
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

    def _use(self, file: Path) -> None:
        """Note that a shard is used, so that neither this object nor another process removes it."""
        if file not in self._asked:
            self._asked.add(file)
            with suppress(OSError):  # a cache of another user can still be read
                os.utime(file)

    def _make_room(self, size: int) -> bool:
        """Remove shards that are not used until another one of some bytes fits; return whether it does."""
        shards = []
        for file in self._root.glob("*/*.safetensors"):
            with suppress(FileNotFoundError):  # another process may make room at the same time
                state = file.stat()
                shards.append((state.st_mtime, state.st_size, file))
        total = size + sum(one for _, one, _ in shards)
        unused = [
            shard for shard in sorted(shards) if shard[0] < self._opened and shard[2] not in self._asked
        ]
        if total - sum(one for _, one, _ in unused) > self._limit:
            return False
        for _, one, file in unused:
            if total <= self._limit:
                break
            with suppress(OSError):
                file.unlink(missing_ok=True)
            self._forget(file)
            total -= one
        return True


def _texts(content: str) -> list[str]:
    """Return a list of texts from JSON.

    Raises:
        ValueError, RecursionError: It is something else.
    """
    value = json.loads(content)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("keys and digests must be lists of texts")
    return value


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
