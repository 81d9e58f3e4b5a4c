"""The commands `fedloom server` and `fedloom site`: run an experiment over sites, and take part in one."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
)
from fedloom.types import UserError

if TYPE_CHECKING:
    from fedloom.engine.flower_processes import Security

Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use no TLS and no keys; only between processes of one machine.")
]
Keys = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of keys that `fedloom keys` made for this side.")
]
Policy = Literal["wait", "go-on", "stop"]
Scores = Literal["here", "sites"]
Modalities = Literal["both", "image", "text"]


def server(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where sites connect to.")
    ] = "127.0.0.1:8470",
    keys: Keys = None,
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
    scores: Annotated[
        Scores,
        typer.Option(
            help="here: the test part of the experiment's data; sites: each site's own, with --sites."
        ),
    ] = "here",
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
        from fedloom.engine.terms import Terms
        from fedloom.experiment import load_experiment
        from fedloom.progress import make_progress

        host, port = address(listen, "--listen")
        if scores == "sites" and sites is None:
            raise UserError(
                "--scores sites: only sites with data of their own have a test part; give --sites"
            )
        security = security_of(host, keys, insecure, at_server=True)
        experiment = load_experiment(recipe, changes or (), plugins or ())
        progress = make_progress(quiet)
        try:
            from fedloom.federated_run import Listening, serve_experiment

            terms = Terms(join, deadline, quorum, policy)
            result = serve_experiment(
                experiment, out, progress, Listening(host, port, security), terms, sites, scores
            )
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
    keys: Keys = None,
    insecure: Insecure = False,
    model: Annotated[
        str | None, typer.Option(help="This site's copy of the base model, if it lies elsewhere.")
    ] = None,
    idle: Annotated[
        float, typer.Option(min=1, help="Seconds without a message after which the model is let go.")
    ] = 3600.0,
    plugins: PluginFiles = None,
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
        host, port = address(server, "--server")
        security = security_of(host, keys, insecure, at_server=False)
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
            security,
            _numbers(clients),
            own,
            shown,
            model,
            idle,
            stay,
            allow,
            tuple(plugins or ()),
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


def security_of(host: str, keys: Path | None, insecure: bool, *, at_server: bool) -> Security:
    """Return how connections are secured: with keys, or not at all between processes of this machine.

    Raises:
        UserError: Neither or both were asked for, another machine is to be reached without TLS, or keys are missing.
    """
    from fedloom.engine.flower_processes import Security, require_flower

    if (keys is None) != insecure:
        raise UserError(
            "give either --keys, a folder that `fedloom keys` made, or --insecure, which works on one machine only"
        )
    if keys is not None:
        require_flower()
        from fedloom.engine.keys import server_security, site_security

        return server_security(keys) if at_server else site_security(keys)
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UserError(f"--insecure: {host} is not this machine; without TLS, only 127.0.0.1 can be used")
    return Security()


def keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where keys are made.")],
    sites: Annotated[str, typer.Option(metavar="NAME,…", help="Names of the sites.")],
    hosts: Annotated[
        str,
        typer.Option(
            "--server", metavar="HOST,…", help="Names or addresses by which sites reach the server."
        ),
    ] = "",
    debug: Debug = False,
) -> None:
    """Make an authority, the server's certificate and a key for each site; sites can be added later."""
    with courteous(debug):
        from fedloom.engine.flower_processes import require_flower

        require_flower()
        from fedloom.engine.keys import make_keys

        split = [[one for one in text.split(",") if one] for text in (hosts, sites)]
        for place in make_keys(folder, split[0], split[1]):
            say(str(place))
        say(
            f"Hand each site its own folder, and nothing else; keep {folder / 'authority'} away from the server.\n"
            "`fedloom server` and `fedloom site` take their folder with --keys."
        )


def doctor(
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The server's address.")],
    keys: Keys = None,
    insecure: Insecure = False,
    debug: Debug = False,
) -> None:
    """Check from a site's side that the server is reached, and that only what sites need of it is."""
    with courteous(debug):
        host, port = address(server, "--server")
        security = security_of(host, keys, insecure, at_server=False)
        from fedloom.engine.checkup import checkup

        found = checkup(host, port, security)
        for good, what in found:
            say(f"{'ok  ' if good else 'BAD '} {what}")
        if not all(good for good, _ in found):
            raise typer.Exit(FAILED)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(dict.fromkeys(int(one) for one in text.split(",")))
    except ValueError:
        raise UserError(f"--clients: {text!r} is not a list of numbers such as 0,2") from None


def _silent(_: str) -> None:
    """Show nothing."""
