"""Print the result of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedloom.cli.options import echo, echo_json


def show_result(result: Mapping[str, Any], folder: Path, as_json: bool) -> None:
    """Print the result of a run."""
    if as_json:
        echo_json(result)
        return
    from fedloom.report.score_tables import terminal_table

    echo(terminal_table(dict(result)))
    for what in ("report", "adapter"):
        if isinstance(file := result.get(what), str) and (folder / file).exists():
            echo(f"{what.capitalize() + ':':9}{folder / file}")
