"""Write the predictions of each method as it is scored, and put them together when the run ends.

The models of a method may be many, and are scored a few at a time. The predictions of each few are one part, a file in
`methods/NAME/predictions/`. The digests of the parts are in the method's result, so that a run that goes on notices a part
that is missing or damaged, and scores that method again. The end of the run joins the parts to `predictions.jsonl`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from fedloom.runs.run_folder import METHODS, PARTS
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest
from fedloom.system.json_files import write_atomic
from fedloom.system.manifest import file_fault
from fedloom.tasks.predictions import PREDICTIONS, write_predictions
from fedloom.tasks.score_answers import Answers
from fedloom.types import Example

PIECE = 2**20
"""Bytes that are copied at once."""


def write_part(
    folder: Path,
    method: str,
    examples: Sequence[Example],
    answers: Mapping[int | None, Mapping[str, Answers]],
) -> None:
    """Write the predictions of a few models of a method.

    Args:
        folder: The run folder.
        method: The method's name.
        examples: The test examples.
        answers: Client, or None for the model of all → slice → answers.
    """
    part = "shared" if None in answers else f"{min(client for client in answers if client is not None):08}"
    write_predictions(_parts(folder, method) / f"{part}.jsonl", method, examples, answers, folder)


def part_digests(folder: Path, method: str) -> dict[str, str]:
    """Return the name and SHA-256 of each part of a method's predictions."""
    return {file.name: file_digest(file) for file in sorted(_parts(folder, method).glob("*.jsonl"))}


def check_parts(folder: Path, method: str, digests: Mapping[str, str]) -> None:
    """Check the parts of a method's predictions.

    Raises:
        UserError: One is missing or damaged.
    """
    for name, digest in digests.items():
        if fault := file_fault(_parts(folder, method) / name, digest):
            raise UserError(f"{_parts(folder, method) / name} {fault}")


def remove_parts(folder: Path, methods: Iterable[str]) -> None:
    """Remove the parts of methods' predictions."""
    for method in methods:
        shutil.rmtree(_parts(folder, method), ignore_errors=True)


def join_parts(folder: Path, methods: Iterable[str]) -> None:
    """Write `predictions.jsonl` of a run: the predictions of its methods, in order."""
    files = chain.from_iterable(sorted(_parts(folder, method).glob("*.jsonl")) for method in methods)
    write_atomic(folder / PREDICTIONS, chain.from_iterable(map(_pieces, files)), folder)


def _pieces(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as content:
        while piece := content.read(PIECE):
            yield piece


def _parts(folder: Path, method: str) -> Path:
    return folder / METHODS / method / PARTS
