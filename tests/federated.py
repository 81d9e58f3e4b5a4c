"""A server and its sites: in processes of their own behind Flower, or all in this process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.engine.test_federation import Mail

from fedloom.engine.federation import Federation
from fedloom.engine.flower_processes import free_port
from fedloom.engine.participation import WaitingTerms
from fedloom.experiment.experiment import Experiment
from fedloom.runs.server_run import Events, begin_message, over_sites, run_over
from fedloom.runs.single_run import Result
from fedloom.runs.site_run import SiteOptions, resident_site
from fedloom.system.progress import Progress

PATIENCE = 240.0
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


def run_in_one_process(
    experiment: Experiment, sites: Sequence[SiteOptions], out: Path, scores: Literal["here", "sites"]
) -> tuple[Result, list[str]]:
    """Run an experiment over sites with data of their own, all in this process and without Flower.

    Args:
        experiment: Every choice; the number of clients is that of the sites.
        sites: The sites.
        out: The server's run folder.
        scores: See `fedloom.runs.server_run.serve_experiment`.

    Returns:
        The result, and all lines that sites showed.
    """
    told, events = list[str](), Events()
    mail = Mail({number: resident_site(one, told.append) for number, one in enumerate(sites, 1)})
    over = over_sites(experiment, len(sites), scores)
    federation = Federation(
        mail,
        begin_message(over, own_data=True),
        len(sites),
        WaitingTerms(),
        lambda kind, figures: events.append((kind, figures)),
        own_data=True,
        now=lambda: mail.time,
        pause=mail.pause,
    )
    return run_over(federation, over, out, Progress(None), events, scores), told
