"""The command `fedloom explain`, and the meaning of every exit code; docs/exit-codes.md has the same table."""

from __future__ import annotations

import textwrap
from typing import Annotated, NamedTuple

import typer

from fedloom.cli.options import Debug, Json, echo, echo_json, report_errors
from fedloom.system.errors import UserError

WIDTH = 80


class ExitCode(NamedTuple):
    """What one exit code, or several alike, say.

    Attributes:
        codes: The codes.
        meaning: What has happened.
        remedy: What to do; "" for nothing.
    """

    codes: tuple[int, ...]
    meaning: str
    remedy: str


EXIT_CODES = (
    ExitCode((0,), "The work is done.", ""),
    ExitCode(
        (1,),
        "Part of the work failed: a cell of a sweep failed, a data set cannot be used, `fedloom verify` found a missing, damaged or "
        "rewritten file, `fedloom doctor` found a fault, `fedloom parity` found different bytes, or `fedloom reproduce` different "
        'results. Or fedloom itself made an error ("internal error", with type, message and location).',
        "For a cell, `sweep.json` gives the reason; the same command tries again. Please report an internal error, with the output "
        "of `--debug`.",
    ),
    ExitCode(
        (2,),
        "Something has to change: an option, a recipe, a file, or a shortage on the machine (disk space, memory, permission). "
        "For `fedloom site` also: the run is over, and this site was refused.",
        "The message states the problem, its place, and a remedy.",
    ),
    ExitCode(
        (129, 130, 143),
        "SIGHUP, SIGINT (Ctrl-C) or SIGTERM ended the command.",
        "The message names the command that continues, or states that nothing has begun.",
    ),
    ExitCode((141,), "The reader of the output closed it, as in `fedloom list recipes | head -1`.", ""),
)


def explain(
    code: Annotated[
        int | None, typer.Argument(metavar="[CODE]", help="An exit code; the default is all of them.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain an exit code: what has happened, and what to do."""
    with report_errors(debug, as_json=as_json):
        rows = [row for row in EXIT_CODES if code is None or code in row.codes]
        if not rows:
            known = ", ".join(map(str, sorted(one for row in EXIT_CODES for one in row.codes)))
            raise UserError(
                f"{code} is no exit code of fedloom, which has {known}; another program or a signal set it"
            )
        if as_json:
            echo_json([row._asdict() for row in rows])
            return
        for row in rows:
            head = f"{', '.join(map(str, row.codes))}: "
            echo("\n".join(_wrapped(head + row.meaning)))
            if row.remedy:
                echo("\n".join(_wrapped(row.remedy, "  ")))


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False)
