"""The command `fedloom sweep`, and how other commands handle a grid or a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedloom.cli_options import (
    FAILED,
    Backend,
    Changes,
    Debug,
    Json,
    PluginFiles,
    Quiet,
    Recipe,
    complain,
    courteous,
    on,
    say,
    say_json,
    whoever_listens,
)
from fedloom.interrupts import exit_code
from fedloom.terminal import one_line
from fedloom.types import UserError


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
    with courteous(debug, "nothing was begun"):
        from fedloom.grid import load_grid
        from fedloom.progress import make_passing_progress
        from fedloom.report.tables import counted
        from fedloom.sweep import default_sweep_folder, run_sweep

        changes = [*(changes or ()), *on(backend)]
        grid = load_grid(recipe, changes, plugins or (), quick=quick)
        folder = default_sweep_folder(grid) if out is None else out

        def tell(line: str) -> None:
            if not quiet:
                with whoever_listens():
                    say(one_line(line), err=True)

        tell(f"{counted(len(grid.cells), 'cell')} in {folder}")
        try:
            result = run_sweep(grid, folder, tell, lambda: make_passing_progress(quiet), jobs, rerun=rerun)
        except KeyboardInterrupt as stop:
            again = ["fedloom", "sweep", recipe, *(["--quick"] if quick else [])]
            again += [word for change in changes for word in ("--set", change)]
            again += [word for plugin in plugins or () for word in ("--plugin", plugin)]
            again += ["--out", str(folder), *(["--jobs", str(jobs)] if jobs > 1 else [])]
            complain(f"interrupted; `{shlex.join(again)}` continues from there")
            raise typer.Exit(exit_code(stop)) from None
        _show(result, folder, as_json)


def _show(result: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the tables and the path of the report; exit with 1 if a cell failed."""
    failed = [cell for cell in result["cells"] if cell["state"] == "failed"]
    if as_json:
        say_json(result)
    else:
        from fedloom.report.choices import choices, chosen
        from fedloom.report.paired_tables import by_factor, terminal_lines
        from fedloom.report.sweep_tables import terminal_tables
        from fedloom.report.sweeps import read_sweep

        found = read_sweep(folder)
        say(terminal_tables(found))
        if lines := terminal_lines(by_factor(chosen(found, choices(found)))):
            say(f"{lines}\n")
        say(f"Report:  {folder / 'report.html'}")
    for cell in failed:
        complain(f"{cell['name']} failed: {cell['error']}")
    if failed:
        count = "one cell" if len(failed) == 1 else f"{len(failed)} cells"
        complain(
            f"{count} failed; {folder / 'sweep.json'} has the reasons; the same command runs failed cells again"
        )
        raise typer.Exit(FAILED)


def validate_grid(
    recipe: str, changes: Sequence[str], plugins: Sequence[str], as_json: bool, *, quick: bool
) -> None:
    """Check a grid, and its quick form if it has one; as JSON, print every cell's experiment."""
    from fedloom.grid import load_grid
    from fedloom.report.tables import counted
    from fedloom.sweep import default_sweep_folder

    grid = load_grid(recipe, changes, plugins)
    if quick:
        load_grid(recipe, changes, plugins, quick=True)
    if as_json:
        cells = {cell.name: cell.experiment.model_dump(mode="json") for cell in grid.cells}
        say_json(cells)
    else:
        axes = " × ".join(f"{len(labels)} {name}" for name, labels in grid.axes.items())
        told = f"{recipe} is valid: {counted(len(grid.cells), 'cell')} ({axes})"
        say(f"{told}; `fedloom sweep` would run them in {default_sweep_folder(grid)}")


def report_sweep(folders: Sequence[Path], out: Path | None) -> None:
    """Write the report of a sweep again."""
    if len(folders) > 1 or out is not None:
        raise UserError(f"{folders[0]} is a sweep: give it alone and without --out")
    from fedloom.report.sweep_page import write_sweep_report

    write_sweep_report(folders[0])
    say(f"Report: {folders[0] / 'report.html'}")
