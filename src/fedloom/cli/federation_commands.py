"""The commands for runs over sites: `fedloom server`, `fedloom site`, `fedloom keys` and `fedloom doctor`."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    seconds_option,
)
from fedloom.cli.show_result import show_result
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.engine.flower_processes import Security

Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use no TLS and no keys; only between processes of one machine.")
]
Keys = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of keys that `fedloom keys` made for this side.")
]
Policy = Literal["wait", "proceed", "stop"]
Scores = Literal["here", "sites"]
Modalities = Literal["both", "image", "text"]


def server(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address at which sites connect.")
    ] = "127.0.0.1:8470",
    keys: Keys = None,
    insecure: Insecure = False,
    deadline: Annotated[
        float, seconds_option(1, "Seconds within which clients must answer in a round.")
    ] = 3600.0,
    quorum: Annotated[
        int, typer.Option(min=1, help="Clients of a round that must have answered at the deadline.")
    ] = 1,
    policy: Annotated[
        Policy, typer.Option(help="What to do if fewer have answered: wait, proceed or stop.")
    ] = "stop",
    sites: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of sites with data of their own; without it, sites hold clients of the experiment.",
        ),
    ] = None,
    scores: Annotated[
        Scores,
        typer.Option(
            help="here: on the test part of the experiment's data; sites: on each site's own, with --sites."
        ),
    ] = "here",
    join: Annotated[float, seconds_option(1, "Seconds within which sites must join.")] = 600.0,
    superlink: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A SuperLink of Flower that runs on this machine; by default one is started.",
        ),
    ] = None,
    changes: Changes = None,
    plugins: PluginFiles = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an experiment whose clients are at sites; the same command continues it."""
    with report_errors(debug, f"the same command continues from the last round in {out}", as_json=as_json):
        from fedloom.engine.participation import WaitingTerms
        from fedloom.experiment.recipes import load_experiment
        from fedloom.system.progress import make_progress

        host, port = parse_address(listen, "--listen")
        if scores == "sites" and sites is None:
            raise UserError(
                "--scores sites: only sites with data of their own have a test part; give --sites"
            )
        running = None if superlink is None else parse_address(superlink, "--superlink")
        if running is not None and not is_loopback(running[0]):
            raise UserError(
                f"--superlink: {running[0]} is not this machine; use 127.0.0.1 and run this command there"
            )
        security = security_of(running[0] if running else host, keys, insecure, at_server=True)
        if keys is not None and len(security.public) < (sites or 1):
            raise UserError(
                f"--keys: {keys} has keys of {len(security.public)} sites, and {sites or 1} must join; add keys with "
                "`fedloom keys`"
            )
        experiment = load_experiment(recipe, changes or (), plugins or ())
        progress = make_progress(quiet)
        try:
            from fedloom.runs.server_run import ListenAddress, serve_experiment

            terms = WaitingTerms(join, deadline, quorum, policy)
            address = ListenAddress(host, port, security, running[1] if running else None)
            result = serve_experiment(experiment, out, progress, address, terms, sites, scores)
        finally:
            progress.close()
        show_result(result, out, as_json)


def site(
    name: Annotated[str, typer.Option(help="Name of this site.")],
    server: Annotated[
        str | None, typer.Option("--server", metavar="HOST:PORT", help="The server's address.")
    ] = None,
    socket: Annotated[
        Path | None,
        typer.Option(
            help="Unix socket of this site for a SuperNode of Flower that runs already, in place of --server."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of this site's own data.")] = None,
    format: Annotated[
        str, typer.Option(help="Format of the folder, as listed by `fedloom list datasets`.")
    ] = "folder",
    modalities: Annotated[
        Modalities, typer.Option(help="Modalities that the model sees: both, image or text.")
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
        str | None, typer.Option(help="This site's copy of the base model, if it has another path.")
    ] = None,
    idle: Annotated[
        float, seconds_option(1, "Seconds without a message after which the model is released.")
    ] = 3600.0,
    plugins: PluginFiles = None,
    allow: Annotated[
        Path | None,
        typer.Option(
            help="Limits on what the server may ask for; the default is allow.yaml in the site's folder."
        ),
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Wait for another run when one is over.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take part in a server's run with the data of this site."""
    with report_errors(debug, "the same command takes part again", as_json=as_json):
        address, security = _connection(server, socket, keys, insecure)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
            raise UserError('--name: use at most 80 letters, digits, ".", "_" and "-"')
        if (data is None) == (clients is None):
            raise UserError("give either --data, this site's own data, or --clients of the experiment's")
        from fedloom.runs.site_run import SiteOptions, run_site

        folder = out or Path("sites") / name
        own = None if data is None else (format, data)
        visible = (modalities != "text", modalities != "image")
        options = SiteOptions(
            name,
            folder,
            address,
            security,
            _numbers(clients),
            own,
            visible,
            model,
            idle,
            stay,
            allow,
            tuple(plugins or ()),
            socket,
        )
        run_site(options, _show_nothing if quiet else print_error)
        if as_json:
            from fedloom.runs.follow import progress_of

            echo_json(progress_of(folder))


def _connection(
    server: str | None, socket: Path | None, keys: Path | None, insecure: bool
) -> tuple[str | None, Security]:
    """Return the server's address and how a site's connection is secured; None for a SuperNode that is running.

    Raises:
        UserError: The options contradict each other, or name no server.
    """
    if (server is None) == (socket is None):
        raise UserError(
            "give either --server, the server's address, or --socket, for a SuperNode that is running"
        )
    if server is not None:
        host, port = parse_address(server, "--server")
        from fedloom.engine.server_check import join_address

        return join_address(host, port), security_of(host, keys, insecure, at_server=False)
    if keys or insecure:
        raise UserError(
            "--socket: the SuperNode that is running has keys of its own; leave --keys and --insecure out"
        )
    from fedloom.engine.flower_processes import Security

    return None, Security()


def parse_address(text: str, option: str) -> tuple[str, int]:
    """Parse HOST:PORT; an IPv6 address is in brackets, which the host that is returned has not.

    Raises:
        UserError: The text has another form.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/@\[\]]+)):([0-9]{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        hint = "; an IPv6 address is in brackets, such as [::1]:8470" if text.count(":") > 1 else ""
        hint = "; leave the scheme and the path out" if "/" in text else hint
        raise UserError(f"{option}: {text!r} is not HOST:PORT, such as 127.0.0.1:8470{hint}")
    return match[1] or match[2], int(match[3])


def security_of(host: str, keys: Path | None, insecure: bool, *, at_server: bool) -> Security:
    """Return how connections are secured: with keys, or not at all between processes of this machine.

    Raises:
        UserError: Neither or both options are given, --insecure is given for another machine, or keys are missing.
    """
    from fedloom.engine.flower_processes import Security, require_flower

    if (keys is None) != insecure:
        raise UserError(
            "give either --keys, a folder that `fedloom keys` made, or --insecure, which works on one machine only"
        )
    if keys is not None:
        require_flower()
        from fedloom.engine.federation_keys import require_usable, server_security, site_security

        security = server_security(keys) if at_server else site_security(keys)
        require_usable(security)
        return security
    if not is_loopback(host):
        raise UserError(f"--insecure: {host} is not this machine; without TLS, only 127.0.0.1 can be used")
    return Security()


def is_loopback(host: str) -> bool:
    """Return whether a name or address is that of this machine's loopback device."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the keys.")],
    sites: Annotated[str, typer.Option(metavar="NAME,…", help="Names of the sites.")],
    hosts: Annotated[
        str,
        typer.Option(
            "--server", metavar="HOST,…", help="Names or addresses at which sites reach the server."
        ),
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an authority, the server's certificate and a key for each site; sites can be added later."""
    with report_errors(debug, as_json=as_json):
        from fedloom.engine.flower_processes import require_flower

        require_flower()
        from fedloom.engine.federation_keys import make_keys

        host_names, site_names = (
            [name.strip() for name in text.split(",") if name.strip()] for text in (hosts, sites)
        )
        written = list(map(str, make_keys(folder, host_names, site_names)))
        if as_json:
            echo_json({"folder": str(folder), "written": written})
            return
        for changed in written:
            echo(changed)
        echo(
            f"Give each site its own folder, and nothing else; keep {folder / 'authority'} away from the server.\n"
            "`fedloom server` and `fedloom site` take their folder with --keys."
        )


def doctor(
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="HOST:PORT",
            help="Check from a site that it reaches this server, and nothing of it but what sites need.",
        ),
    ] = None,
    keys: Keys = None,
    insecure: Insecure = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check the installation: versions, devices, extras, cache and disk; or, with --server, the connection to a server."""
    with report_errors(debug, as_json=as_json):
        if server is None:
            from fedloom.system.installation import installation_checks

            checks = installation_checks(Path())
        else:
            host, port = parse_address(server, "--server")
            security = security_of(host, keys, insecure, at_server=False)
            from fedloom.engine.server_check import check_server

            checks = check_server(host, port, security)
        checks = list(checks)
        if as_json:
            echo_json([{"passed": passed, "text": text} for passed, text in checks])
        else:
            for passed, text in checks:
                echo(f"{'--  ' if passed is None else 'ok  ' if passed else 'FAIL'} {text}")
        if any(passed is False for passed, _ in checks):
            raise typer.Exit(FAILED)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(dict.fromkeys(int(one) for one in text.split(",")))
    except ValueError:
        raise UserError(f"--clients: {text!r} is not a list of numbers such as 0,2") from None


def _show_nothing(_: str) -> None:
    """Show nothing."""
