"""The command `fedloom`. Each command imports what it needs only when it runs, so that help is fast."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedloom import __version__
from fedloom.cli_data import data
from fedloom.cli_federation import doctor, keys, server, site
from fedloom.cli_list import list_
from fedloom.cli_models import models
from fedloom.cli_options import (
    FAILED,
    Changes,
    Commands,
    Debug,
    Json,
    Places,
    PluginFiles,
    Quiet,
    Recipe,
    Rerun,
    complain,
    courteous,
    say,
    say_json,
)
from fedloom.cli_split import split
from fedloom.cli_sweep import report_sweep, sweep, validate_grid
from fedloom.interrupts import exit_code
from fedloom.startup import uncollected
from fedloom.types import UserError

if TYPE_CHECKING:
    from fedloom.experiment import Experiment
    from fedloom.progress import Progress

app = typer.Typer(
    name="fedloom",
    cls=Commands,
    help="Fine-tune vision-language models across clients whose data cannot be pooled.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data)
app.add_typer(models)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"fedloom {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Accept the options that come before a command."""


@app.command()
def run(
    recipe: Recipe,
    changes: Changes = None,
    plugins: PluginFiles = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; the default is runs/NAME-DIGEST.")] = None,
    rerun: Rerun = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an experiment and print its results."""
    with courteous(debug, "nothing was begun"):
        from fedloom.experiment import load_experiment
        from fedloom.folder import default_folder, discard, folder_state, moves

        experiment = load_experiment(recipe, changes or (), plugins or ())
        folder = default_folder(experiment) if out is None else out
        if rerun:
            discard(folder)
        state = folder_state(folder, experiment)
        if state == "unfinished":
            words = [str(folder), *(word for one in moves(folder, experiment) for word in ("--set", one))]
            words += [word for one in experiment.plugins for word in ("--plugin", str(one))]
            raise UserError(
                f"{folder} holds this experiment, interrupted or still running; continue it with `fedloom resume {shlex.join(words)}`"
            )
        _show_work(folder, quiet, as_json, experiment, finished=state == "finished")


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an interrupted run.")],
    changes: Places = None,
    plugins: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE.py", help="Current path of each plug-in of the run."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue an interrupted run."""
    with courteous(debug):
        from fedloom.folder import finished, resumable

        _check_run(folder)
        _show_work(
            folder, quiet, as_json, resumable(folder, changes or (), plugins or ()), finished=finished(folder)
        )


@app.command()
def verify(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, sweeps or adapters.")
    ],
    debug: Debug = False,
) -> None:
    """Check that every file of a run, a sweep or an adapter is as it was written."""
    with courteous(debug):
        from fedloom.verify import verify as check

        faults = 0
        for folder in folders:
            count, found = check(folder)
            faults += len(found)
            for fault in found:
                complain(fault)
            say(f"{folder}: {count} checks, {len(found) or 'no'} fault{'s' * (len(found) != 1)}")
        if faults:
            raise typer.Exit(FAILED)


def _show_work(folder: Path, quiet: bool, as_json: bool, experiment: Experiment, *, finished: bool) -> None:
    """Run an experiment, from where it stands, and show its result."""
    result = _work(folder, quiet, experiment)
    if finished:
        complain(f"{folder} is finished; use --rerun to run it again, or --out to use another folder")
    show_result(result, folder, as_json)


def _work(folder: Path, quiet: bool, experiment: Experiment) -> dict[str, Any]:
    """Run an experiment, from where it stands in its folder."""
    from fedloom.progress import make_progress

    progress: Progress = make_progress(quiet)
    try:
        with uncollected():
            from fedloom.runner import run_experiment

        return run_experiment(experiment, folder, progress)
    except KeyboardInterrupt as stop:
        progress.close()
        begun = (folder / "experiment.json").is_file()
        again = f"`fedloom resume {shlex.quote(str(folder))}` continues from there"
        complain(f"interrupted; {again if begun else 'nothing was begun'}")
        raise typer.Exit(exit_code(stop)) from None
    finally:
        progress.close()


def _check_run(folder: Path) -> None:
    if (folder / "sweep.json").is_file():
        raise UserError(
            f"{folder} is a sweep; repeat its `fedloom sweep` command to continue it, or use `fedloom report` for its report"
        )
    if not (folder / "experiment.json").is_file():
        raise UserError(f"{folder} is not a run folder: it holds no experiment.json")


def show_result(result: Mapping[str, Any], folder: Path, as_json: bool) -> None:
    """Print the result of a run."""
    if as_json:
        say_json(result)
        return
    from fedloom.report.scores import terminal_table

    say(terminal_table(dict(result)))
    for what in ("report", "adapter"):
        if isinstance(named := result.get(what), str) and (folder / named).exists():
            say(f"{what.capitalize() + ':':9}{folder / named}")


app.command()(sweep)


@app.command()
def validate(
    recipe: Recipe,
    changes: Changes = None,
    plugins: PluginFiles = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check an experiment without running it; --json prints it with all defaults."""
    with courteous(debug):
        from fedloom.experiment import load_experiment, sweep_keys
        from fedloom.folder import default_folder

        if keys := sweep_keys(recipe):
            validate_grid(recipe, changes or (), plugins or (), as_json, quick="quick" in keys)
            return
        experiment = load_experiment(recipe, changes or (), plugins or ())
        if as_json:
            say(experiment.to_json(), nl=False)
        else:
            say(f"{recipe} is valid; it would run in {default_folder(experiment)}")


@app.command()
def show(recipe: Recipe, debug: Debug = False) -> None:
    """Print a recipe, ready to copy into your own file."""
    with courteous(debug):
        from fedloom.experiment import experiment_text

        say(experiment_text(recipe)[0], nl=False)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of finished runs, or of one sweep.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Report file; the default is DIR/report.html, or comparison.html for several."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the report of a run, or compare several runs on one page."""
    with courteous(debug):
        from fedloom.report.page import write_report

        if (folders[0] / "sweep.json").is_file():
            report_sweep(folders, out)
            return
        for folder in folders:
            _check_run(folder)
        page = out or (folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html"))
        write_report(folders, page)
        say(f"Report: {page}")


app.command()(split)
app.command()(server)
app.command()(site)
app.command()(keys)
app.command()(doctor)
app.command("list")(list_)


def main() -> None:
    """Run the command line."""
    app()
