"""The commands `fedloom leaderboard` and `fedloom reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.options import (
    FAILED,
    Debug,
    Json,
    Places,
    PluginFiles,
    Quiet,
    Rerun,
    echo,
    echo_json,
    print_error,
    report_errors,
)

if TYPE_CHECKING:
    from fedloom.runs.reproduce import Reproduction

Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FOLDER...]", help="Folders with runs and sweeps; the default is runs."),
]


def leaderboard(
    folders: Folders = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all entries to a file as CSV, too.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Rank the methods of finished runs that answer the same question, with intervals over seeds."""
    with report_errors(debug, as_json=as_json):
        from fedloom.report.leaderboard import board_csv, boards
        from fedloom.runs.leaderboard_results import read_results
        from fedloom.runs.run_folder import refuse_file_of_run
        from fedloom.system.json_files import write_atomic

        results, skipped = read_results(folders or [Path("runs")])
        found = boards(results)
        if csv is not None:
            refuse_file_of_run(csv)
            write_atomic(csv, board_csv(found).encode())
        if as_json:
            left_out = [{"folder": str(folder), "reason": reason} for folder, reason in skipped]
            echo_json({"boards": [board.to_json() for board in found], "skipped": left_out})
            return
        for folder, reason in skipped:
            print_error(f"{folder} is left out: {reason}")
        for board in found:
            echo(f"{board.about}\n")
            echo(board.table().text())
        if not found:
            echo("no finished run was found")


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ENTRY", help="The folder of a finished run, or an entry of the leaderboard."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="New folder; the default is RUN-again.")] = None,
    runs: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder with the runs among which an entry is looked for.")
    ] = Path("runs"),
    seed: Annotated[
        int | None, typer.Option(help="Seed of the entry's run; the default is the lowest.")
    ] = None,
    changes: Places = None,
    plugins: PluginFiles = None,
    rerun: Rerun = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a finished run again in a new folder, and check that results and adapters are equal; exit code 1 if not."""
    with report_errors(debug, "the same command continues", as_json=as_json):
        from fedloom.runs.reproduce import reproduce as run_again
        from fedloom.runs.reproduce import run_of
        from fedloom.system.progress import make_progress

        folder = run_of(name, [runs], seed) if not Path(name).is_dir() else run_of(name, [])
        progress = make_progress(quiet)
        try:
            found = run_again(
                folder,
                out or _folder_beside(folder),
                progress,
                changes or (),
                plugins or (),
                rerun=rerun,
            )
        finally:
            progress.close()
        if as_json:
            value = {**asdict(found), "folder": str(found.folder), "again": str(found.again)}
            echo_json({"reproduced": not found.different, **value})
        else:
            _print(found)
        if found.different:
            raise typer.Exit(FAILED)


def _folder_beside(folder: Path) -> Path:
    """Return the default folder of a repetition; a path such as `.` ends in no name, that of its folder does."""
    named = folder.resolve() if folder.name in ("", "..") else folder
    return named.with_name(f"{named.name}-again")


def _print(found: Reproduction) -> None:
    for fault in found.different:
        print_error(fault)
    if not found.different:
        echo(f"equal: {', '.join(found.equal)}")
    else:
        echo(f"{len(found.different)} of {len(found.different) + len(found.equal)} comparisons differ")
        if found.circumstances:
            echo("Since the first run, this has changed:")
            for one in found.circumstances:
                echo(f"  {one}")
        else:
            echo("Code, data, model and versions are the same.")
        echo("Other machines and versions may round differently.")
    echo(f"{found.folder} and {found.again}")
