"""The command `fedloom parity`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedloom.cli_options import (
    FAILED,
    Changes,
    Debug,
    Json,
    PluginFiles,
    Quiet,
    Recipe,
    complain,
    courteous,
    say,
    say_json,
)
from fedloom.types import UserError


def parity(
    recipe: Recipe,
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME…",
            help="Backends to compare: in-process, workers, ray; the default is all that are installed.",
        ),
    ] = None,
    changes: Changes = None,
    plugins: PluginFiles = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train two rounds of an experiment on each backend, and check that all give the same bytes."""
    with courteous(debug):
        from fedloom.experiment import load_experiment
        from fedloom.hashes import json_digest
        from fedloom.parity import compare, installed
        from fedloom.progress import make_progress

        experiment = load_experiment(recipe, changes or (), plugins or ())
        names = installed() if backends is None else [one.strip() for one in backends.split(",")]
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise UserError(f"--backends: {', '.join(names)}: name at least two different ones")
        progress = make_progress(quiet)
        try:
            found = compare(experiment, names, progress)
        finally:
            progress.close()
        digests = {name: json_digest(one) for name, one in found.items()}
        first, *others = found
        unlike = {
            method: [name for name in others if found[name][method] != digest]
            for method, digest in found[first].items()
        }
        equal = not any(unlike.values())
        if as_json:
            say_json({"equal": equal, "digests": digests})
        else:
            width = max(map(len, digests))
            say("\n".join(f"{name:{width}}  {digest}" for name, digest in digests.items()))
        for method, names in unlike.items():
            if names:
                complain(f"{method}: {', '.join(names)} gives other bytes than {first}")
        if not equal:
            raise typer.Exit(FAILED)
        if not as_json:
            say("all bytes are equal")
