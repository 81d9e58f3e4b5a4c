"""Find files by their names below a folder, without leaving out silently what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from fedloom.system.errors import UserError, reading, user_errors


def find_files(
    folder: Path, names: Collection[str], *, links: bool = False
) -> tuple[list[Path], dict[Path, str]]:
    """Return the files with some names in a folder and below it, sorted.

    Args:
        folder: The folder.
        names: The names.
        links: Whether links to folders are followed.

    Returns:
        The files, and for each folder that cannot be read the reason.
    """
    errors = list[OSError]()
    found = sorted(file for file in _walk(folder, errors, links=links) if file.name in names)
    return found, {place: _reason(place, error) for error in errors for place in [Path(error.filename)]}


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and below it, sorted; links to folders, such as one to a larger disk, are followed."""
    return sorted(_walk(folder, [], links=True))


def _walk(folder: Path, errors: list[OSError], *, links: bool) -> Iterator[Path]:
    seen = set[str]()
    for place, folders, files in os.walk(folder, onerror=errors.append, followlinks=links):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()  # a link leads back to a folder above it, or to one that another link leads to
            continue
        seen.add(real)
        yield from (Path(place, name) for name in files)


def _reason(folder: Path, error: OSError) -> str:
    try:
        with user_errors(), reading(folder):
            raise error
    except UserError as reason:
        return str(reason)
