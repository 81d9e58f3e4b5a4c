"""The command `fedloom parity`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedloom.cli.options import (
    FAILED,
    Changes,
    Debug,
    Json,
    PluginFiles,
    Quiet,
    Recipe,
    echo,
    echo_json,
    print_error,
    report_errors,
)
from fedloom.system.errors import UserError


def parity(
    recipe: Recipe,
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME…",
            help="Backends to compare: in-process, workers, ray, flower; the default is all that are installed.",
        ),
    ] = None,
    changes: Changes = None,
    plugins: PluginFiles = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train two rounds of an experiment on each backend, and check that all give the same bytes."""
    with report_errors(debug, as_json=as_json):
        from fedloom.experiment.recipes import load_experiment
        from fedloom.runs.parity import compare, installed
        from fedloom.system.file_hashes import json_digest
        from fedloom.system.progress import make_progress

        experiment = load_experiment(recipe, changes or (), plugins or ())
        names = installed() if backends is None else [one.strip() for one in backends.split(",")]
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise UserError(f"--backends: {', '.join(names)}: name at least two different ones")
        progress = make_progress(quiet)
        try:
            digests_of = compare(experiment, names, progress)
        finally:
            progress.close()
        digests = {name: json_digest(one) for name, one in digests_of.items()}
        first, *others = digests_of
        different = {
            method: [name for name in others if digests_of[name][method] != digest]
            for method, digest in digests_of[first].items()
        }
        equal = not any(different.values())
        if as_json:
            echo_json({"equal": equal, "digests": digests})
        else:
            width = max(map(len, digests))
            echo("\n".join(f"{name:{width}}  {digest}" for name, digest in digests.items()))
        for method, names in different.items():
            if names:
                print_error(f"{method}: {', '.join(names)} gives other bytes than {first}")
        if not equal:
            raise typer.Exit(FAILED)
        if not as_json:
            echo("all bytes are equal")
