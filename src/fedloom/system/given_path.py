"""Paths as Python gives them, in which ~ is the user's home folder, as in a shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedloom.system.errors import UserError


def given_path(value: Any, what: str) -> Path:
    """Return a path that a caller gives.

    Args:
        value: The path, as text or as a `Path`.
        what: The name of the argument, for the message.

    Raises:
        UserError: It is neither, or empty.

    Example:
        >>> given_path("runs/a", "out").name
        'a'
    """
    if not isinstance(value, str | Path) or value == "":
        raise UserError(f"{what}: expected a path, such as 'runs/mine', not {value!r:.60}")
    return Path(os.path.expanduser(value))
