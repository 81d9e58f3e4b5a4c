"""The commands `fedloom watch` and `fedloom live`: follow a run, a sweep or a deployment from its folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.options import Debug, Json, echo, echo_json, report_errors, seconds_option

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of a run, a sweep, a server's run or a site.")
]


def watch(
    folder: Folder,
    once: Annotated[bool, typer.Option("--once", help="Print the present state and end.")] = False,
    every: Annotated[float, seconds_option(0.1, "Seconds between updates.")] = 2.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Follow a run, a sweep or a deployment in the terminal, until it is finished."""
    with report_errors(debug, "the run continues", as_json=as_json):
        from fedloom.runs.follow import progress_of, status_lines
        from fedloom.system.json_files import to_json

        before: list[str] = []
        while True:
            state = progress_of(folder)
            lines = list(status_lines(state))
            if as_json and once:
                echo_json(state)
            elif as_json and lines != before:  # one line each, so that a reader sees where a state ends
                echo(to_json(state))
            elif not as_json:
                for line in lines if once else (line for line in lines if line not in before):
                    echo(line)
            if once or state["finished"]:
                return
            before = lines
            time.sleep(every)


def live(
    folder: Folder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Follow a run, a sweep or a deployment on a page that only this machine can open; Ctrl-C ends it."""
    with report_errors(debug, "the run continues", as_json=as_json):
        from fedloom.runs.follow import progress_of
        from fedloom.system.live_server import live_server

        progress_of(folder)  # raises if there is nothing to follow
        server, address = live_server(port, lambda: progress_of(folder))
        with server:
            if as_json:
                echo_json({"address": address})
            else:
                echo(f"{address}\nThis page is for you alone: its token gives access. Ctrl-C ends it.")
            server.serve_forever(poll_interval=0.2)
