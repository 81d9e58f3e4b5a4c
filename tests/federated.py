"""A server and its sites: in processes of their own behind Flower, or all in this process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tests.engine.test_federation import Mail

from fedloom.engine.federation import Federation
from fedloom.engine.flower_processes import free_port
from fedloom.engine.participation import WaitingTerms
from fedloom.engine.resident_site import ResidentSite
from fedloom.experiment.experiment import Experiment
from fedloom.runs.server_run import Events, begin_message, over_sites, run_over
from fedloom.runs.single_run import Result, run_experiment
from fedloom.runs.site_run import SiteOptions, resident_site
from fedloom.system.progress import Progress

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
        host: The server's address.
        ports: Site → port at which it reaches the server, if that is another one than the server's.
        around: Site or "server" → command in which it runs, such as `env NAME=VALUE`.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Path,
        sites: Mapping[str, str | Sequence[str]],
        server: Sequence[str] = (),
        keys: Path | None = None,
        late: Sequence[str] = (),
        host: str = "127.0.0.1",
        ports: Mapping[str, int] | None = None,
        around: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.ports: dict[str, int] = dict(ports or {})
        self._host, self._around = host, around or {}
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
            one.send_signal(signal.SIGCONT)
            one.terminate()
        for one in self.processes.values():
            try:
                one.wait(60)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()

    def start_server(self) -> None:
        place = [
            "--out",
            str(self.folder / "there"),
            "--listen",
            f"{self._host}:{self.port}",
            *self._secured("server"),
        ]
        self._start("server", ["server", str(self._experiment), *place, *self._server])

    def start_site(self, name: str) -> None:
        place = [
            "--out",
            str(self.folder / name),
            "--server",
            f"{self._host}:{self.ports.get(name, self.port)}",
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
                [*self._around.get(name, ()), sys.executable, "-m", "fedloom", *arguments],
                stdout=log,
                stderr=log,
            )

    def wait(self) -> list[int]:
        """Wait until all have ended, and return their exit codes, the server's first; its alone if it failed."""
        code = self.processes["server"].wait(PATIENCE)
        sites = [] if code else [name for name in self.processes if name != "server"]
        return [code, *(self.processes[name].wait(PATIENCE) for name in sites)]

    def told(self, name: str = "") -> str:
        """Return what one of them wrote, or all."""
        names = [name] if name else list(self.processes)
        return "\n".join((self.folder / f"{one}.log").read_text() for one in names)

    def events(self, kind: str) -> list[dict[str, object]]:
        """Return the events of a kind in the server's record."""
        record = self.folder / "there" / "record.jsonl"
        whole = record.read_text().rpartition("\n")[0] if record.exists() else ""
        return [line for line in map(json.loads, whole.splitlines()) if line["kind"] == kind]

    def until(self, found: Callable[[], object]) -> None:
        """Wait until something is the case, while the server runs."""
        end = time.monotonic() + PATIENCE
        while not found():
            assert time.monotonic() < end, self.told()
            assert self.processes["server"].poll() is None, self.told()
            time.sleep(0.1)

    def after_round(self, count: int) -> None:
        """Wait until so many rounds are in the record."""
        self.until(lambda: len(self.events("round")) >= count)

    def kill(self, name: str, how: int) -> int:
        """Send a signal to the server or a site, and return the exit code."""
        self.processes[name].send_signal(how)
        return self.processes[name].wait(PATIENCE)


def undisturbed(folder: Path, model: Path, rounds: int) -> Path:
    """Write an experiment with two clients, run it in this process, and return its file; the run lies beside it in "here"."""
    changes = {
        "methods": ["scaffold"],
        "model": {"path": str(model), "threads": 1},
        "train": {"rounds": rounds},
        "data": {"name": "shapes", "limit": 16},
        "scenario": {"clients": 2},
        "engine": {"side_by_side": 1, "workers": 1},
    }
    file = folder / "experiment.json"
    file.write_text(json.dumps(changes))
    run_experiment(Experiment.from_json(file.read_text()), folder / "here", Progress(None))
    return file


def require_equal(run: FederatedRun, experiment: Path) -> None:
    """Compare the adapter of a run over sites with that of the run in one process."""
    for file in ("adapter/adapter_model.safetensors", "adapter/manifest.json"):
        here, there = experiment.parent / "here" / file, run.folder / "there" / file
        assert here.read_bytes() == there.read_bytes()


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not, as far as they run."""
    parents = dict[int, int]()
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(place.parent.name)] = int(words[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def flower_process(run: FederatedRun, side: str, name: str) -> int:
    """Return a process of Flower, such as flower-superlink, that the server or a site started, without what watches over it."""
    found = list[int]()
    for pid in descendants(run.processes[side].pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(name.encode()) for word in words):
            found.append(pid)
    assert found, f"no {name} runs"
    return found[-1]


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
    there = {number: resident_site(one, told.append) for number, one in enumerate(sites, 1)}
    over = over_sites(experiment, len(sites), scores)
    federation = federation_of(over, there, lambda kind, figures: events.append((kind, figures)))
    return run_over(federation, over, out, Progress(None), events, scores), told


def federation_of(
    over: Experiment, there: dict[int, ResidentSite], note: Callable[[str, Mapping[str, Any]], None]
) -> Federation:
    """Return a federation of sites with data of their own that are in this process.

    Args:
        over: The experiment as `over_sites` returns it.
        there: Number of a node → the site behind it.
        note: Called with the kind and the figures of each event at sites.
    """
    mail = Mail(there)
    return Federation(
        mail,
        begin_message(over, own_data=True),
        over.scenario.clients,
        WaitingTerms(),
        note,
        own_data=True,
        now=lambda: mail.time,
        pause=mail.pause,
    )
