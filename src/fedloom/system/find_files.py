"""Find files by their names below a folder, without leaving out silently what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from fedloom.system.errors import UserError, reading, user_errors


def find_files(folder: Path, names: Collection[str]) -> tuple[list[Path], dict[Path, str]]:
    """Return the files with some names in a folder and below it, sorted; links to folders are not followed.

    Args:
        folder: The folder.
        names: The names.

    Returns:
        The files, and for each folder that cannot be read the reason.
    """
    errors = list[OSError]()
    walked = os.walk(folder, onerror=errors.append)
    found = sorted(Path(place, name) for place, _, files in walked for name in files if name in names)
    return found, {place: _reason(place, error) for error in errors for place in [Path(error.filename)]}


def _reason(folder: Path, error: OSError) -> str:
    try:
        with user_errors(), reading(folder):
            raise error
    except UserError as reason:
        return str(reason)
