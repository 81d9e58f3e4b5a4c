"""The command `fedloom verify`: check files against their digests, and a log against a head that was kept elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.options import FAILED, Debug, Json, echo, echo_json, print_error, report_errors
from fedloom.system.errors import UserError


def verify(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, sweeps, sites or adapters.")
    ],
    log_head: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST", help="Head of the log that you kept; check that the log still continues it."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that every file of a run, a sweep, a site or an adapter is as it was written."""
    with report_errors(debug, as_json=as_json):
        from fedloom.runs.verify_files import head_fault, log_heads
        from fedloom.runs.verify_files import verify as check

        if log_head is not None and len(folders) > 1:
            raise UserError("--log-head belongs to one log; give one folder")
        rows = list[dict[str, object]]()
        total = 0
        for folder in folders:
            count, problems = check(folder)
            if log_head is not None:
                count += 1
                problems += filter(None, [head_fault(folder, log_head.strip().lower())])
            total += len(problems)
            heads = log_heads(folder)
            rows.append(
                {"folder": str(folder), "checks": count, "faults": problems, "log_heads": heads},
            )
            if not as_json:
                _print(folder, count, problems, heads)
        if as_json:
            echo_json(rows)
        if total:
            raise typer.Exit(FAILED)


def _print(folder: Path, count: int, problems: list[str], heads: dict[str, str]) -> None:
    for fault in problems:
        print_error(fault)
    echo(f"{folder}: {count} checks, {len(problems) or 'no'} fault{'s' * (len(problems) != 1)}")
    for name, head in heads.items():
        echo(f"log head{'' if len(heads) == 1 else f' of {name}'}: {head}")
