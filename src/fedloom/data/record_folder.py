"""Find the files of records in a folder of the user's own, and the parts of the data that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedloom.system.errors import UserError, reading

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
"""Endings of files of records, in any case. Of files with other names than `USUAL`, only those with the first ending count."""
SPLITS = ("train", "test")
VALIDATION = "validation"
VALIDATION_NAMES = (VALIDATION, "val", "valid", "dev")
"""Usual names of a validation part."""
USUAL = ("data", *SPLITS, *VALIDATION_NAMES)
"""Names that mark a file as records, so that none of several is left out; other files may be anything."""


def record_files(root: Path, *, validation: bool) -> list[tuple[str | None, Path]]:
    """Return the files of records with their splits (None if records decide), the file of the validation set last.

    Args:
        root: The folder.
        validation: Whether to add the file of the validation set.

    Raises:
        UserError: There is no file of records, the choice among several is unclear, or the folder may not be read.
    """
    there = _stored_files(root)
    named = {split: [path for path in there if path.stem == split] for split in (*SPLITS, VALIDATION)}
    splits = SPLITS if all(named[split] for split in SPLITS) else ()
    files: list[tuple[str | None, Path]] = [(split, path) for split in splits for path in named[split]]
    files = files or [(None, _single(root, there))]
    if validation and all(path not in named[VALIDATION] for _, path in files):
        splits = (*splits, VALIDATION)
        files += [(VALIDATION, path) for path in named[VALIDATION]]
    if any(len(named[split]) > 1 for split in splits):
        names = ", ".join(path.name for split in splits for path in named[split])
        raise UserError(f"data.root: {root} holds {names}; keep one file of each name")
    return files


def _stored_files(root: Path) -> list[Path]:
    """Return the files of a folder that may hold records, those with the preferred suffix first; hidden files do not count."""
    with reading(root):
        files = [
            path for path in sorted(root.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
    shown = [path for path in files if not path.name.startswith(".")]
    return sorted(shown, key=lambda path: SUFFIXES.index(path.suffix.lower()))


def _single(root: Path, there: Sequence[Path]) -> Path:
    """Return the only file of records; a validation set only if there is no other file."""
    files = [path for path in there if path.stem != VALIDATION] or there
    usual = [path for path in files if path.stem.lower() in USUAL]
    if not files:
        raise UserError(
            f"data.root: {root} holds neither a file of records (data.jsonl, or train.jsonl and test.jsonl; .json, .csv and .tsv "
            "are read, too) nor folders of images by class"
        )
    preferred = [path for path in files if path.suffix.lower() == files[0].suffix.lower()]
    files = [*preferred, *(path for path in usual if path not in preferred)]
    if len(files) == 1:
        return files[0]
    if len(usual) == 1 and usual[0].stem == "data":
        return usual[0]
    names, suffix = ", ".join(path.name for path in files), files[0].suffix
    if len({path.stem for path in files}) < len(files):
        raise UserError(f"data.root: {root} holds {names}; keep one file of each name")
    if usual:
        raise UserError(
            f"data.root: {root} holds {names}, and which of them are to be read is unclear; keep only data{suffix}, or "
            f"train{suffix} and test{suffix} (and validation{suffix} for a validation set), and move the others elsewhere"
        )
    raise UserError(
        f"data.root: {root} holds {names}; rename one to data{suffix}, or two to train{suffix} and test{suffix}"
    )
