"""The commands `fedloom server` and `fedloom site`: run an experiment over sites, and take part in one."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedloom.cli_options import Changes, Debug, Json, PluginFiles, Quiet, Recipe, complain, courteous
from fedloom.types import UserError

Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use no TLS and no keys; only between processes of one machine.")
]
Policy = Literal["wait", "go-on", "stop"]
Modalities = Literal["both", "image", "text"]


def server(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where sites connect to.")
    ] = "127.0.0.1:8470",
    insecure: Insecure = False,
    deadline: Annotated[
        float, typer.Option(min=1, help="Seconds that clients have to answer in a round.")
    ] = 3600.0,
    quorum: Annotated[
        int, typer.Option(min=1, help="Clients of a round that must have answered at the deadline.")
    ] = 1,
    policy: Annotated[
        Policy, typer.Option(help="What to do where fewer have answered: wait, go-on or stop.")
    ] = "stop",
    sites: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of sites that bring their own data; without it, sites hold clients."
        ),
    ] = None,
    join: Annotated[float, typer.Option(min=1, help="Seconds that sites have to join.")] = 600.0,
    changes: Changes = None,
    plugins: PluginFiles = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an experiment whose clients are at sites; the same command goes on with it."""
    with courteous(debug, f"the same command goes on from the last round in {out}"):
        from fedloom.cli import show_result
        from fedloom.engine.flower_processes import Security
        from fedloom.engine.terms import Terms
        from fedloom.experiment import load_experiment
        from fedloom.progress import make_progress

        host, port = address(listen, "--listen")
        require_loopback(host, insecure)
        experiment = load_experiment(recipe, changes or (), plugins or ())
        progress = make_progress(quiet)
        try:
            from fedloom.federated_run import Listening, serve_experiment

            terms = Terms(join, deadline, quorum, policy)
            result = serve_experiment(experiment, out, progress, Listening(port, Security()), terms, sites)
        finally:
            progress.close()
        show_result(result, out, as_json)


def site(
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The server's address.")],
    name: Annotated[str, typer.Option(help="Name of this site.")],
    data: Annotated[Path | None, typer.Option(help="Folder of this site's own data.")] = None,
    format: Annotated[
        str, typer.Option(help="What the folder holds, as listed by `fedloom list datasets`.")
    ] = "folder",
    modalities: Annotated[
        Modalities, typer.Option(help="What of the data is shown: both, image or text.")
    ] = "both",
    clients: Annotated[
        str | None,
        typer.Option(metavar="0,1,…", help="Clients of the experiment's own data that this site holds."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of this site's files; the default is sites/NAME.")
    ] = None,
    insecure: Insecure = False,
    model: Annotated[
        str | None, typer.Option(help="This site's copy of the base model, if it lies elsewhere.")
    ] = None,
    idle: Annotated[
        float, typer.Option(min=1, help="Seconds without a message after which the model is let go.")
    ] = 3600.0,
    allow: Annotated[
        Path | None,
        typer.Option(help="What the server may ask for; the default is allow.yaml in the site's folder."),
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Wait for another run when one is over.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take part in a server's run with the data of this site."""
    with courteous(debug, "the same command takes part again"):
        from fedloom.engine.flower_processes import Security

        host, port = address(server, "--server")
        require_loopback(host, insecure)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
            raise UserError('--name: use at most 80 letters, digits, ".", "_" and "-"')
        if (data is None) == (clients is None):
            raise UserError("give either --data, this site's own data, or --clients of the experiment's")
        from fedloom.site_run import SiteOptions, run_site

        folder = out or Path("sites") / name
        own = None if data is None else (format, data)
        shown = (modalities != "text", modalities != "image")
        options = SiteOptions(
            name,
            folder,
            f"{host}:{port}",
            Security(),
            _numbers(clients),
            own,
            shown,
            model,
            idle,
            stay,
            allow,
        )
        run_site(options, _silent if quiet else complain)


def address(text: str, option: str) -> tuple[str, int]:
    """Read HOST:PORT.

    Raises:
        UserError: It is not that.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{option}: {text!r} is not HOST:PORT, such as 127.0.0.1:8470")
    return host, int(port)


def require_loopback(host: str, insecure: bool) -> None:
    """Refuse connections without TLS that leave this machine.

    Raises:
        UserError: `--insecure` was given for another host, or no key was given at all.
    """
    if not insecure:
        raise UserError(
            "give --insecure to use no TLS; that is only possible between processes of one machine"
        )
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UserError(f"--insecure: {host} is not this machine; without TLS, only 127.0.0.1 can be used")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(dict.fromkeys(int(one) for one in text.split(",")))
    except ValueError:
        raise UserError(f"--clients: {text!r} is not a list of numbers such as 0,2") from None


def _silent(_: str) -> None:
    """Show nothing."""
