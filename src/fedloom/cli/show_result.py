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
    from fedloom.report.terminal_summary import terminal_table
    from fedloom.report.training_work import read_work

    echo(terminal_table(dict(result), read_work(folder)))
    for what in ("report", "adapter"):
        if isinstance(file := result.get(what), str) and (folder / file).exists():
            echo(f"{what.capitalize() + ':':9}{folder / file}")
