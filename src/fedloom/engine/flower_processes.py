"""Start and end Flower's processes: a SuperLink at the server, a SuperNode at each site, and the run between them.

Telemetry, update checks, and the installation of packages at the beginning of a run are switched off. All files of Flower
are in one folder.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedloom.engine import own_user_only
from fedloom.system import end_with_parent
from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic

TESTED = ((1, 41), (1, 43))
"""Versions of Flower that work: from the first on, below the second."""

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}

OWN_USER_ONLY = (sys.executable, "-P", "-m", own_user_only.__name__)
"""The beginning of a command that starts a process of Flower whose port answers only processes of this user."""

PORTS = range(20000, 32768)
"""Ports that systems give to processes only if these ask for them by number."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The names of the loopback device, over which Flower's own processes and the proxy talk."""

START_SECONDS = 180.0
"""Seconds within which a process of Flower must start, also on a busy machine."""

POLL = 0.05

RECENT = 60
"""Number of last lines of a log that are searched for a reason."""

APP = {
    "pyproject.toml": """\
[project]
name = "fedloom-run"
version = "1.0.0"
description = "Carries messages between fedloom's server and its sites."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedloom"

[tool.flwr.app.components]
serverapp = "fedloom_run.apps:server"
clientapp = "fedloom_run.apps:client"

[tool.flwr.app.config]
socket = ""
""",
    "fedloom_run/__init__.py": '"""Carries messages between fedloom\'s server and its sites."""\n',
    "fedloom_run/apps.py": '"""The apps are in fedloom itself."""\n\nfrom fedloom.engine.flower_apps import client, server\n\n'
    '__all__ = ["client", "server"]\n',
}
"""File → text of the app that is submitted to Flower; its only code imports what is installed at each end."""


@dataclass(frozen=True)
class Security:
    """How connections are secured.

    Attributes:
        authority: Certificate of the authority that both ends trust; None means no TLS, which is allowed on loopback only.
        certificate: The server's certificate, at the server.
        key: Private key of the server, or of a site's node.
        public: Public keys of the sites' nodes, at the server; each file has the name of its site.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    public: tuple[Path, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether there is no TLS."""
        return self.authority is None


def require_flower() -> None:
    """Check that a version of Flower that works is installed.

    Raises:
        UserError: None is, or another version; the message says how to install it.
    """
    low, high = (".".join(map(str, one)) for one in TESTED)
    try:
        installed = version("flwr")
    except PackageNotFoundError:
        raise UserError("this needs Flower; install it with `pip install 'fedloom[flower]'`") from None
    numbers = tuple(int(one) for one in installed.split(".")[:2] if one.isdecimal())
    if not TESTED[0] <= numbers < TESTED[1]:
        raise UserError(
            f"Flower {installed} is installed, and fedloom works with {low} up to, not including, {high}; "
            "install that with `pip install 'fedloom[flower]'`"
        )


def free_port() -> int:
    """Return a port of the loopback device on which nothing listens.

    It is drawn at random, and not by the system: seconds pass until a process of Flower listens on it, in which the system
    could give the same port to another process.
    """
    for port in [PORTS[secrets.randbelow(len(PORTS))] for _ in range(100)] + [0]:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise UserError("no port of 127.0.0.1 is free")


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes, whose files are in `home`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    direct = dict.fromkeys(("NO_PROXY", "no_proxy"), hosts_without_proxy())
    return {**os.environ, **direct, **SWITCHES, "FLWR_HOME": str(home.absolute()), "PATH": path}


def hosts_without_proxy() -> str:
    """Return the hosts to which Flower connects without a proxy: those of the environment, and this machine's loopback device."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return named if "*" in named.split(",") else ",".join([*filter(None, [named]), *LOOPBACK])


def start(command: Sequence[str], home: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a long-lived process that ends when this one does.

    Args:
        command: The command.
        home: Folder of Flower's files.
        log: The file to which its output is appended.
    """
    home.mkdir(parents=True, exist_ok=True)
    guard = str(end_with_parent.__file__)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-S", guard, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment(home),
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that `start` started, and wait until it has ended."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def superlink(port: int, security: Security, home: Path) -> subprocess.Popen[bytes]:
    """Start a SuperLink on a port of the loopback device, and wait until it listens.

    Raises:
        UserError: It ended; the message has the last lines of its log.
    """
    log = home / "superlink.log"
    command = [*OWN_USER_ONLY, "flower-superlink", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-runtime-dependency-installation"]
    if security.plain:
        command += ["--insecure"]
    else:
        command += ["--ssl-ca-certfile", str(security.authority), "--ssl-certfile", str(security.certificate)]
        command += ["--ssl-keyfile", str(security.key), "--enable-supernode-auth"]
    process = start(command, home, log)
    end = time.monotonic() + START_SECONDS
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > end:
            stop(process)
            raise UserError(f"Flower's SuperLink did not start{last_lines(log)}")
        time.sleep(POLL)
    return process


def supernode(
    server: str, security: Security, config: Mapping[str, str], home: Path
) -> subprocess.Popen[bytes]:
    """Start a SuperNode of a site.

    Args:
        server: HOST:PORT of the server.
        security: How its connection is secured.
        config: The configuration of its app.
        home: Folder of Flower's files.
    """
    values = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    command = [*OWN_USER_ONLY, "flower-supernode", "--superlink", server, "--node-config", values]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    if security.plain:
        command += ["--insecure"]
    else:
        command += ["--root-certificates", str(security.authority)]
    if security.key is not None:
        command += ["--auth-supernode-private-key", str(security.key)]
    return start(command, home, home / "supernode.log")


def submit(port: int, security: Security, path: str, home: Path) -> str:
    """Begin a run of the app at a SuperLink.

    Args:
        port: The SuperLink's port on the loopback device.
        security: How the connection is secured.
        path: The Unix socket of the server's process.
        home: Folder of Flower's files.

    Returns:
        Flower's identifier of the run.

    Raises:
        UserError: Flower refused it.
    """
    for name, text in APP.items():
        write_atomic(home / "app" / name, text.encode())
    trust = (
        "insecure = true" if security.plain else f"root-certificates = {json.dumps(str(security.authority))}"
    )
    write_atomic(
        home / "config.toml",
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n{trust}\n'.encode(),
    )
    for key in security.public:
        flwr(["supernode", "register", str(key), "here", "--name", key.stem], home)
    done = flwr(["run", str(home / "app"), "here", "--run-config", f"socket={json.dumps(path)}"], home)
    try:
        answer = json.loads(done[done.index("{") :])
    except ValueError:
        answer = {}
    if not answer.get("success"):
        raise UserError(f"Flower did not begin the run: {done.strip()[-500:]}")
    return str(answer["run-id"])


def flwr(arguments: Sequence[str], home: Path) -> str:
    """Run a command of Flower, and return its output as JSON.

    Raises:
        UserError: It did not end in time.
    """
    try:
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"`flwr {arguments[0]}` did not end within {START_SECONDS:g} seconds") from None
    return (done.stdout or done.stderr).decode(errors="replace")


def last_lines(log: Path, count: int = 5) -> str:
    """Return the last lines of a log, from the last error on if there is one, as the end of a sentence."""
    with suppress(OSError):
        lines = [one for one in log.read_text(errors="replace").splitlines() if one.strip()][-RECENT:]
        errors = [place for place, one in enumerate(lines) if "ERROR" in one]
        lines = lines[errors[-1] :][:count] if errors else lines
        return f"; {log} ends with:\n  " + "\n  ".join(lines[-count:]) if lines else ""
    return ""


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex(("127.0.0.1", port)) == 0
