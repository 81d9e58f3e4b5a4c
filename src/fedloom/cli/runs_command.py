"""The command `fedloom runs`: list runs and sweeps."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.options import Debug, Json, echo, echo_json, report_errors
from fedloom.system.terminal import display_width, pad


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder with runs.")] = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the runs and sweeps in a folder, the newest last, with their state and headline score."""
    with report_errors(debug, as_json=as_json):
        from fedloom.runs.list_runs import list_runs

        rows = list_runs(folder)
        if as_json:
            echo_json(
                [
                    {
                        "folder": str(row.folder),
                        "kind": row.kind,
                        "state": row.state,
                        "figure": row.figure,
                        "changed": datetime.fromtimestamp(row.changed, UTC).isoformat(timespec="seconds"),
                    }
                    for row in rows
                ]
            )
            return
        if not rows:
            echo(f"{folder} holds no runs")
        width = max((display_width(str(row.folder)) for row in rows), default=0)
        for row in rows:
            echo(f"{pad(str(row.folder), width)}  {row.state:11}  {row.figure}")
