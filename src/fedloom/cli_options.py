"""Options that commands share, and how they tell a user's mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from fedloom.types import UserError

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130
"""Exit codes: a part of the work failed; the user has to change something; Ctrl-C."""


def complete_recipe(incomplete: str) -> list[str]:
    """Offer recipes to the shell."""
    from fedloom.experiment import recipes

    return [name for name in recipes() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Offer keys of an experiment to the shell."""
    from fedloom.document import dotted
    from fedloom.experiment import Experiment
    from fedloom.mistakes import key_descriptions

    keys = (dotted(path) for path, _ in key_descriptions(Experiment.model_json_schema()))
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe's name or a YAML or JSON file.", autocompletion=complete_recipe
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key, e.g. train.lr=3e-4; may be given often.",
        autocompletion=complete_key,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Discard what the folder holds of a run and run again.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where in the code a mistake was noticed.")]


@contextmanager
def courteous(debug: bool) -> Iterator[None]:
    """Tell a user's mistake in its own words, without a traceback."""
    try:
        yield
    except UserError as error:
        if debug:
            raise
        typer.echo(f"fedloom: {error}", err=True)
        raise typer.Exit(USER_ERROR) from None
