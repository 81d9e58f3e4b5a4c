"""The command `fedloom`; each of its commands imports its modules only when it runs, so that help is fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedloom.cli import model_commands
from fedloom.cli.cache_command import cache
from fedloom.cli.data_command import data
from fedloom.cli.explain_command import explain
from fedloom.cli.federation_commands import doctor, keys, server, site
from fedloom.cli.follow_commands import live, watch
from fedloom.cli.init_command import init
from fedloom.cli.leaderboard_commands import leaderboard, reproduce
from fedloom.cli.list_command import list_
from fedloom.cli.models_command import models
from fedloom.cli.options import (
    Backend,
    Changes,
    Commands,
    Debug,
    Json,
    Places,
    PluginFiles,
    Quiet,
    Recipe,
    Rerun,
    backend_change,
    echo,
    echo_json,
    end,
    print_error,
    report_errors,
)
from fedloom.cli.parity_command import parity
from fedloom.cli.plan_command import plan
from fedloom.cli.runs_command import runs
from fedloom.cli.show_result import show_result
from fedloom.cli.split_command import split
from fedloom.cli.sweep_commands import report_sweep, sweep, validate_grid
from fedloom.cli.verify_command import verify
from fedloom.system.errors import UserError
from fedloom.system.garbage_collection import without_garbage_collection
from fedloom.system.signals import exit_code
from fedloom.system.terminal import shell_word
from fedloom.version import __version__

Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="Log metrics to tensorboard, wandb (offline) or mlflow (local files); may be repeated.",
    ),
]

if TYPE_CHECKING:
    from fedloom.experiment.experiment import Experiment
    from fedloom.system.progress import Progress

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
app.add_typer(cache)


def _print_version(requested: bool) -> None:
    if requested:
        echo(f"fedloom {__version__}")
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
    backend: Backend = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; the default is runs/NAME-DIGEST.")] = None,
    rerun: Rerun = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an experiment, or continue it if it was interrupted, and print the results; a grid is run as by `fedloom sweep`."""
    with report_errors(debug, "nothing was started", as_json=as_json):
        from fedloom.experiment.recipes import is_grid, load_experiment
        from fedloom.runs.run_folder import default_folder, discard, folder_state

        if is_grid(recipe, changes or ()):
            if track:
                raise UserError(f"--track: {recipe} is a grid, and metrics are logged of single runs")
            sweep(
                recipe,
                changes,
                plugins,
                backend,
                out=out,
                rerun=rerun,
                quiet=quiet,
                as_json=as_json,
                debug=debug,
            )
            return
        experiment = load_experiment(recipe, [*(changes or ()), *backend_change(backend)], plugins or ())
        folder = default_folder(experiment) if out is None else out
        if rerun:
            discard(folder)
        state = folder_state(folder, experiment)
        if state == "unfinished" and not quiet:
            print_error(f"{folder} holds a part of this run, which is continued; --rerun begins anew")
        _run_and_show(folder, quiet, as_json, experiment, finished=state == "finished", track=track or ())


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an interrupted run.")],
    changes: Places = None,
    plugins: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE.py", help="Current path of each plug-in of the run."),
    ] = None,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue an interrupted run."""
    with report_errors(debug, as_json=as_json):
        from fedloom.runs.run_folder import experiment_to_resume, is_finished

        _check_run(folder)
        _run_and_show(
            folder,
            quiet,
            as_json,
            experiment_to_resume(folder, changes or (), plugins or ()),
            finished=is_finished(folder),
            track=track or (),
        )


def _run_and_show(
    folder: Path,
    quiet: bool,
    as_json: bool,
    experiment: Experiment,
    *,
    finished: bool,
    track: Sequence[str] = (),
) -> None:
    """Run an experiment, or continue it, and show its result."""
    result = _run(folder, quiet, experiment, () if finished else track, as_json=as_json)
    if finished:
        print_error(f"{folder} is finished; use --rerun to run it again, or --out to use another folder")
    show_result(result, folder, as_json)


def _run(
    folder: Path, quiet: bool, experiment: Experiment, track: Sequence[str], *, as_json: bool
) -> dict[str, Any]:
    """Run an experiment, or continue it if its folder holds a part of it."""
    from fedloom.system.progress import make_progress

    progress: Progress = make_progress(quiet)
    try:
        with without_garbage_collection():
            from fedloom.runs.single_run import run_experiment

        if not track:
            return run_experiment(experiment, folder, progress)
        from fedloom.runs.followers import open_trackers, tracked_settings

        with open_trackers(track, folder, tracked_settings(experiment)) as followers:
            return run_experiment(experiment, folder, progress, followers=followers)
    except KeyboardInterrupt as stop:
        progress.close()
        started = (folder / "experiment.json").is_file()
        advice = f"`fedloom resume {shell_word(folder)}` continues from there"
        end(f"interrupted; {advice if started else 'nothing was started'}", exit_code(stop), as_json=as_json)
    finally:
        progress.close()


def _check_run(folder: Path) -> None:
    if (folder / "sweep.json").is_file():
        raise UserError(
            f"{folder} is a sweep; repeat its `fedloom sweep` command to continue it, or use `fedloom report` for its report"
        )
    if not (folder / "experiment.json").is_file():
        raise UserError(f"{folder} is not a run folder: it holds no experiment.json")


app.command()(verify)
app.command()(sweep)
app.command()(plan)
app.command()(runs)
app.command()(leaderboard)
app.command()(reproduce)
app.command()(watch)
app.command()(live)
app.command()(init)


@app.command()
def validate(
    recipe: Recipe,
    changes: Changes = None,
    plugins: PluginFiles = None,
    syntax: Annotated[
        bool,
        typer.Option("--syntax", help="Check the keys alone, not whether data, model and disk are there."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check an experiment, its data, model, device and disk without running it; --json prints it with all defaults."""
    with report_errors(debug, as_json=as_json):
        from fedloom.experiment.recipes import is_grid, load_experiment, sweep_keys
        from fedloom.runs.run_folder import default_folder

        if is_grid(recipe, changes or ()):
            quick = "quick" in sweep_keys(recipe)
            validate_grid(recipe, changes or (), plugins or (), as_json, quick=quick, syntax=syntax)
            return
        experiment = load_experiment(recipe, changes or (), plugins or ())
        if not syntax:
            from fedloom.runs.check_resources import require_resources

            require_resources([(experiment, default_folder(experiment))])
        if as_json:
            echo(experiment.to_json(), nl=False)
        else:
            echo(f"{recipe} is valid; it would run in {default_folder(experiment)}")


@app.command()
def show(recipe: Recipe, as_json: Json = False, debug: Debug = False) -> None:
    """Print a recipe, ready to copy into your own file."""
    with report_errors(debug, as_json=as_json):
        from fedloom.experiment.recipes import experiment_text

        text = experiment_text(recipe)[0]
        if as_json:
            echo_json({"recipe": recipe, "text": text})
        else:
            echo(text, nl=False)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of finished runs, or of one sweep.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Report file; the default is DIR/report.html, or comparison.html for several."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the report of a run, or compare several runs on one page."""
    with report_errors(debug, as_json=as_json):
        from fedloom.report.run_page import write_report
        from fedloom.runs.run_folder import refuse_file_of_run

        if (folders[0] / "sweep.json").is_file():
            page = report_sweep(folders, out)
        else:
            for folder in folders:
                _check_run(folder)
            page = out or (folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html"))
            if len(folders) == 1:
                from fedloom.runs.write_pages import write_pages

                write_pages(folders[0], page)
            else:
                refuse_file_of_run(page)
                write_report(folders, page)
        if as_json:
            echo_json({"report": str(page)})
        else:
            echo(f"Report: {page}")


app.command()(explain)
app.command()(parity)
app.command()(model_commands.ask)
app.command()(model_commands.demo)
app.command("eval")(model_commands.evaluate)
app.command()(model_commands.export)
app.command()(split)
app.command()(server)
app.command()(site)
app.command()(keys)
app.command()(doctor)
app.command("list")(list_)


def main() -> None:
    """Run the command line."""
    app()
