"""Prove that the files of a run are as it wrote them, by JSON with its own digest and a manifest of all digests.

`manifest.json` of a run folder holds the version of fedloom, the run's identity (see `fedloom.runs.run_identity`) and the
SHA-256 of every file except those with checksums of their own: clients' memories and the run's log. Files that a run
needs before it is finished, such as checkpoints, are sealed: their last key is the SHA-256 of the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest, json_digest
from fedloom.system.find_files import files_below
from fedloom.system.json_files import TEMPORARY, read_json, to_json, write_json
from fedloom.system.terminal import shell_word

MANIFEST = "manifest.json"
LOCK = ".lock"
"""The empty file that a process locks while it works in a folder."""

FORMAT = 1
SEAL = "sha256"
"""The key under which a sealed file holds the digest of its other values."""

MEMORY = "memory"
"""Name of folders whose files, possibly very many, hold their own digests."""


def seal(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object without its seal, whatever the order of its keys."""
    return json_digest({key: inner for key, inner in value.items() if key != SEAL})


def write_sealed(path: Path, value: Mapping[str, Any], root: Path | None = None) -> None:
    """Write a JSON object with its own digest; see `fedloom.system.json_files.write_atomic` for `root`."""
    plain = json.loads(to_json(value))  # as it will be read: numbers as keys become texts
    write_json(path, {**plain, SEAL: seal(plain)}, root)


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file that `write_sealed` wrote, without its seal.

    Raises:
        UserError: It is missing, is no JSON object, or is damaged.
    """
    value = read_json(path)
    if value.pop(SEAL, None) != seal(value):
        raise UserError(f"{path} is damaged: its content does not match the SHA-256 in it")
    return value


@dataclass(frozen=True)
class Manifest:
    """The identity of a run, and the digests of its files.

    Attributes:
        version: The version of fedloom that wrote it.
        identity: Name → digest of each thing that decides the results; empty for a folder without an identity.
        versions: Versions of Python and libraries, and the kind of machine, when the run began.
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


def own_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, or None where there is none, or another program's file of that name."""
    try:
        return read_manifest(folder)
    except UserError:
        return None


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


def add_to_manifest(folder: Path, names: Iterable[str]) -> None:
    """Add the digests of files to the manifest of a folder.

    Args:
        folder: A folder with a manifest.
        names: Paths of files below it.

    Raises:
        UserError: The manifest is missing or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder / MANIFEST} was removed during the run")
    digests = {name: file_digest(folder / name) for name in names}
    write_manifest(folder, replace(manifest, files={**manifest.files, **digests}))


def files_in(folder: Path) -> Iterator[str]:
    """Yield the paths of the files below a folder that a manifest lists."""
    for file in files_below(folder):
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
    """Check files against the manifest; files that it does not list are skipped.

    Raises:
        UserError: A file is missing or damaged.
    """
    for name in names:
        if name in manifest.files and (fault := file_fault(folder / name, manifest.files[name])):
            raise UserError(
                f"{folder / name} {fault}; `fedloom verify {shell_word(folder)}` checks all files"
            )


def check_listed(folder: Path, names: Iterable[str]) -> None:
    """Check files of a folder before they are read; a folder without a manifest, as version 0.1 wrote it, cannot be checked.

    Raises:
        UserError: A file that the manifest lists is missing or damaged, or the manifest is.
    """
    if (manifest := read_manifest(folder)) is not None:
        check_files(folder, manifest, names)


def file_fault(path: Path, digest: str) -> str | None:
    """Return what is wrong with a file whose digest should be `digest`, or None."""
    if not path.is_file():
        return "is missing"
    return None if file_digest(path) == digest else "is damaged: its content does not match the manifest"
