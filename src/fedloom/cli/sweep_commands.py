"""The command `fedloom sweep`, and the forms of other commands for a grid or a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedloom.cli.options import (
    FAILED,
    Backend,
    Changes,
    Debug,
    Json,
    PluginFiles,
    Quiet,
    Recipe,
    backend_change,
    echo,
    echo_json,
    end,
    ignore_closed_output,
    print_error,
    report_errors,
)
from fedloom.system.errors import UserError
from fedloom.system.signals import exit_code
from fedloom.system.terminal import as_argument, one_line


def sweep(
    recipe: Recipe,
    changes: Changes = None,
    plugins: PluginFiles = None,
    backend: Backend = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run the quick form of the recipe.")] = False,
    out: Annotated[Path | None, typer.Option(help="Sweep folder; the default is runs/NAME-DIGEST.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes that run cells in parallel.")] = 1,
    rerun: Annotated[
        bool,
        typer.Option(
            "--rerun", help="Run cells again that are damaged or whose data, model or code changed."
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run every experiment of a grid; the same command continues after an interruption."""
    with report_errors(debug, "nothing was started", as_json=as_json):
        from fedloom.experiment.grid import load_grid
        from fedloom.report.tables import counted
        from fedloom.runs.sweep import default_sweep_folder, run_sweep
        from fedloom.system.progress import make_passing_progress

        changes = [*(changes or ()), *backend_change(backend)]
        grid = load_grid(recipe, changes, plugins or (), quick=quick)
        folder = default_sweep_folder(grid) if out is None else out

        def show(line: str) -> None:
            if not quiet:
                with ignore_closed_output():
                    echo(one_line(line), err=True)

        show(f"{counted(len(grid.cells), 'cell')} in {folder}")
        try:
            result = run_sweep(grid, folder, show, lambda: make_passing_progress(quiet), jobs, rerun=rerun)
        except KeyboardInterrupt as stop:
            command = ["fedloom", "sweep", as_argument(recipe), *(["--quick"] if quick else [])]
            command += [word for change in changes for word in ("--set", change)]
            command += [word for plugin in plugins or () for word in ("--plugin", as_argument(plugin))]
            command += ["--out", as_argument(folder), *(["--jobs", str(jobs)] if jobs > 1 else [])]
            end(
                f"interrupted; `{shlex.join(command)}` continues from there", exit_code(stop), as_json=as_json
            )
        _show(result, folder, as_json)


def _show(result: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the tables and the path of the report; exit with 1 if a cell failed."""
    failed = [cell for cell in result["cells"] if cell["state"] == "failed"]
    if as_json:
        echo_json(result)
    else:
        from fedloom.report.sweeps.chosen_settings import choices, with_chosen_values
        from fedloom.report.sweeps.comparison_tables import group_by_factor, terminal_lines
        from fedloom.report.sweeps.sweep_results import read_sweep
        from fedloom.report.sweeps.terminal_tables import terminal_tables

        results = read_sweep(folder)
        echo(terminal_tables(results))
        if lines := terminal_lines(group_by_factor(with_chosen_values(results, choices(results)))):
            echo(f"{lines}\n")
        echo(f"Report:  {folder / 'report.html'}")
    for cell in failed:
        print_error(f"{cell['name']} failed: {cell['error']}")
    if failed:
        count = "one cell" if len(failed) == 1 else f"{len(failed)} cells"
        print_error(
            f"{count} failed; {folder / 'sweep.json'} has the reasons; the same command runs failed cells again"
        )
        raise typer.Exit(FAILED)


def validate_grid(
    recipe: str, changes: Sequence[str], plugins: Sequence[str], as_json: bool, *, quick: bool, syntax: bool
) -> None:
    """Check a grid, and its quick form if it has one; as JSON, print every cell's experiment."""
    from fedloom.experiment.grid import load_grid
    from fedloom.report.tables import counted
    from fedloom.runs.sweep import default_sweep_folder

    grid = load_grid(recipe, changes, plugins)
    if quick:
        load_grid(recipe, changes, plugins, quick=True)
    folder = default_sweep_folder(grid)
    if not syntax:
        from fedloom.runs.check_resources import require_resources

        require_resources((cell.experiment, folder / cell.folder) for cell in grid.cells)
    if as_json:
        cells = {cell.name: cell.experiment.model_dump(mode="json") for cell in grid.cells}
        echo_json(cells)
    else:
        axes = " × ".join(f"{len(labels)} {name}" for name, labels in grid.axes.items())
        text = f"{recipe} is valid: {counted(len(grid.cells), 'cell')} ({axes})"
        echo(f"{text}; `fedloom sweep` would run them in {folder}")


def report_sweep(folders: Sequence[Path], out: Path | None) -> Path:
    """Write the report of a sweep again, and return its path."""
    if len(folders) > 1 or out is not None:
        raise UserError(f"{folders[0]} is a sweep: give it alone and without --out")
    from fedloom.report.sweeps.sweep_page import write_sweep_report

    write_sweep_report(folders[0])
    return folders[0] / "report.html"
