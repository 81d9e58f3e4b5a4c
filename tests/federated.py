"""A server and its sites in processes of their own, over loopback without TLS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from fedloom.engine.flower_processes import free_port

PATIENCE = 600.0
"""Seconds after which a run hangs."""


class FederatedRun:
    """Starts `fedloom server` and a `fedloom site` for each site; ends what is left of them at the end of a block.

    Args:
        folder: Where their folders and logs lie: "there" for the server, and each site's name.
        experiment: The experiment's file.
        sites: Site → its `--clients`, or its further arguments.
        server: Further arguments of the server.
        keys: Folder of keys; None is no TLS.
        late: Sites that are not started with the others.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Path,
        sites: Mapping[str, str | Sequence[str]],
        server: Sequence[str] = (),
        keys: Path | None = None,
        late: Sequence[str] = (),
    ) -> None:
        self.folder, self.port = folder, free_port()
        self._keys, self._late = keys, late
        self._experiment, self._sites, self._server = experiment, sites, server
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> FederatedRun:
        self.start_server()
        for name in self._sites:
            if name not in self._late:
                self.start_site(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self.processes.values():
            one.terminate()
        for one in self.processes.values():
            one.wait(30)

    def start_server(self) -> None:
        place = [
            "--out",
            str(self.folder / "there"),
            "--listen",
            f"127.0.0.1:{self.port}",
            *self._secured("server"),
        ]
        self._start("server", ["server", str(self._experiment), *place, *self._server])

    def start_site(self, name: str) -> None:
        place = [
            "--out",
            str(self.folder / name),
            "--server",
            f"127.0.0.1:{self.port}",
            *self._secured(f"site-{name}"),
        ]
        own = self._sites[name]
        held = ["--clients", own] if isinstance(own, str) else own
        self._start(name, ["site", "--name", name, *held, *place])

    def _secured(self, folder: str) -> list[str]:
        return ["--insecure"] if self._keys is None else ["--keys", str(self._keys / folder)]

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "fedloom", *arguments], stdout=log, stderr=log
            )

    def wait(self) -> list[int]:
        """Wait until all have ended, and return their exit codes, the server's first."""
        order = sorted(self.processes, key=lambda name: name != "server")
        return [self.processes[name].wait(PATIENCE) for name in order]

    def told(self, name: str = "") -> str:
        """Return what one of them wrote, or all."""
        names = [name] if name else list(self.processes)
        return "\n".join((self.folder / f"{one}.log").read_text() for one in names)
