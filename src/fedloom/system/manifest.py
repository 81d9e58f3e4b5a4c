"""What proves that a run's files are those it wrote: JSON that holds its own digest, and a manifest of all digests.

`manifest.json` of a run folder holds the version that made the run, its identity (see `fedloom.runs.run_identity`) and the
SHA-256 of every file, but for those that prove themselves: clients' memories and lines of the record. Files that a
run needs before it is finished, such as checkpoints, are sealed: their last key is the SHA-256 of the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest, json_digest
from fedloom.system.json_files import TEMPORARY, read_json, to_json, write_json

MANIFEST = "manifest.json"
LOCK = ".lock"
"""The empty file by which a process shows others that it works in a folder."""

FORMAT = 1
SEAL = "sha256"
"""The key under which a sealed file holds the digest of its other values."""

MEMORY = "memory"
"""Folders of files that hold their own digests, of which there may be very many."""


def seal(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object without its seal, whatever the order of its keys."""
    return json_digest({key: one for key, one in value.items() if key != SEAL})


def write_sealed(path: Path, value: Mapping[str, Any], root: Path | None = None) -> None:
    """Write a JSON object with its own digest; see `fedloom.system.json_files.write_atomic` for `root`."""
    plain = json.loads(to_json(value))  # as it will be read: keys that are numbers become texts
    write_json(path, {**plain, SEAL: seal(plain)}, root)


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file that `write_sealed` wrote, without its seal.

    Raises:
        UserError: It is missing, is no JSON object, or is not as it was written.
    """
    value = read_json(path)
    if value.pop(SEAL, None) != seal(value):
        raise UserError(f"{path} is damaged: its content does not match the SHA-256 in it")
    return value


@dataclass(frozen=True)
class Manifest:
    """What a run is and what it wrote.

    Attributes:
        version: The version of fedloom that made it.
        identity: What decided its results, by name; empty for what has no identity of its own.
        versions: Versions of Python and libraries, and the kind of machine, when it began.
        files: Path below the folder → SHA-256 of its content.
    """

    version: str
    identity: Mapping[str, str] = field(default_factory=dict[str, str])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, str] = field(default_factory=dict[str, str])


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, or None where there is none.

    Raises:
        UserError: It is damaged, or a later version of fedloom wrote it.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    value = read_sealed(file)
    if value.get("format") != FORMAT:
        raise UserError(
            f"{file} has format {value.get('format')!r} and was written by fedloom {value.get('version')}; "
            f"this version reads format {FORMAT}"
        )
    return Manifest(value["version"], value["identity"], value["versions"], value["files"])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder that exists."""
    value = {
        "format": FORMAT,
        "version": manifest.version,
        "identity": dict(manifest.identity),
        "versions": dict(manifest.versions),
        "files": dict(sorted(manifest.files.items())),
    }
    write_sealed(folder / MANIFEST, value, folder)


def list_files(folder: Path, names: Iterable[str]) -> None:
    """Put the digests of files into the manifest of a folder.

    Args:
        folder: A folder with a manifest.
        names: Paths below it.

    Raises:
        UserError: The manifest is gone or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder / MANIFEST} was removed during the run")
    found = {name: file_digest(folder / name) for name in names}
    write_manifest(folder, replace(manifest, files={**manifest.files, **found}))


def files_in(folder: Path) -> Iterator[str]:
    """Yield the paths of the files below a folder that a manifest lists."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not _left_out(name):
            yield name.as_posix()


def _left_out(name: Path) -> bool:
    # A run's memories lie in methods/NAME/memory; a sweep's cells have manifests of their own.
    return (
        TEMPORARY.fullmatch(name.name) is not None
        or name.as_posix() in (LOCK, MANIFEST)
        or MEMORY in name.parent.parts
    )


def check_files(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Compare files with the manifest; those that it does not list are passed over.

    Raises:
        UserError: One is missing or is not as it was written.
    """
    for name in names:
        if name in manifest.files and (fault := fault_of(folder / name, manifest.files[name])):
            raise UserError(f"{folder / name} {fault}; `fedloom verify {folder}` checks all files")


def fault_of(path: Path, wanted: str) -> str | None:
    """Return what is wrong with a file whose digest is known, or None."""
    if not path.is_file():
        return "is missing"
    return None if file_digest(path) == wanted else "is damaged: its content does not match the manifest"
