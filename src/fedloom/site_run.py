"""Take part in a run over sites: the site's side."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedloom import __version__
from fedloom.engine.envelope import Envelope
from fedloom.engine.flower_processes import Security, last_lines, require_flower, stop, supernode
from fedloom.engine.in_process import InProcess
from fedloom.engine.resident_site import Opened, ResidentSite, listening, serve
from fedloom.experiment import Experiment
from fedloom.folder import FLOWER
from fedloom.models.recompute import recomputing
from fedloom.record import write_atomic
from fedloom.runner import identity_now, open_site
from fedloom.types import UserError

AGAIN = 2.0
"""Seconds after which a SuperNode that has ended is started again; one whose server is away ends again and again."""


@dataclass(frozen=True)
class SiteOptions:
    """How a site takes part.

    Attributes:
        name: Its name.
        folder: Where it keeps what its clients keep, and what it writes down.
        server: HOST:PORT of the server.
        security: How it connects.
        clients: The clients of the experiment that it holds.
        model: Its own copy of the base model, where that lies elsewhere than the experiment says.
        idle: Seconds without a message after which the model is let go.
        stay: Wait for another run when one is over.
    """

    name: str
    folder: Path
    server: str
    security: Security
    clients: tuple[int, ...]
    model: str | None = None
    idle: float = 3600.0
    stay: bool = False


class _Over(Exception):
    """The run is over."""


def run_site(options: SiteOptions, told: Callable[[str], None]) -> None:
    """Take part in a server's run until it is over, or until a signal ends this process.

    Args:
        options: How.
        told: Called with a sentence about what happens.

    Raises:
        UserError: Flower is not there, or its SuperNode does not run.
    """
    require_flower()
    with listening() as (listener, socket):
        over = list[bool]()

        def said(text: str) -> None:
            over.extend([True] * (text == "the run is over"))
            told(text)

        site = ResidentSite(
            options.name,
            partial(_opened, options),
            _allowed,
            _left,
            said,
        )
        start = partial(
            supernode, options.server, options.security, {"socket": socket}, options.folder / FLOWER
        )
        node = _Node(start, options.folder / FLOWER, told)
        try:
            serve(site, listener, partial(_between, options, site, node, over))
        except _Over:
            pass
        finally:
            node.stop()
            site.close()


def _allowed(request: Envelope, run: Opened | None) -> None:
    del request, run


def _left(request: Envelope, answer: Envelope) -> None:
    del request, answer


class _Node:
    """A SuperNode that is kept running."""

    def __init__(
        self, start: Callable[[], subprocess.Popen[bytes]], home: Path, told: Callable[[str], None]
    ) -> None:
        self._start, self._home, self._told = start, home, told
        self._process, self._idle = start(), 0.0

    def look(self) -> None:
        """Start it again if it has ended."""
        if self._process.poll() is None:
            return
        self._told(
            f"Flower's SuperNode ended{last_lines(self._home / 'supernode.log', 2)}; it is started again"
        )
        stop(self._process)
        self._process = self._start()

    def stop(self) -> None:
        """End it."""
        stop(self._process)


def _between(options: SiteOptions, site: ResidentSite, node: _Node, over: list[bool], idle: float) -> None:
    """Look after what else there is between two messages."""
    node.look()
    if over and not options.stay and idle > AGAIN:  # by then the last answer has left
        raise _Over
    if idle > options.idle:
        site.close()


@contextmanager
def _opened(options: SiteOptions, begin: Envelope) -> Iterator[Opened]:
    """Open a run as the server describes it, after a check that everything that decides results is the same here."""
    head = begin.head
    if head.get("version") != __version__:
        raise UserError(
            f"the server has fedloom {head.get('version')}, and this site {__version__}; install the same"
        )
    experiment = _experiment(options, head)
    _require_same(head["identity"], identity_now(experiment))
    folder = options.folder / "runs" / str(head["run"])[:16]
    write_atomic(folder / "experiment.json", experiment.to_json().encode())
    with (
        open_site(experiment, folder) as site,
        recomputing(site.tuned.vlm, experiment.engine.recompute == "always"),
    ):
        if site.tuned.layout.digest != head["layout"]:
            raise UserError("what would be trained here has other names or shapes than at the server")
        if experiment.model.threads is None:
            torch.set_num_threads(int(head["threads"]))
        rows = experiment.engine.side_by_side
        backend = InProcess(site, rows=1 if rows == "auto" or not site.tuned.stackable else rows)
        methods = [name for name in experiment.methods if experiment.method(name).federated]
        known = {name: backend.describe(name) for name in methods}
        if wrong := [one for one in options.clients if not 0 <= one < experiment.scenario.clients]:
            raise UserError(
                f"--clients: there is no client {wrong[0]}; there are {experiment.scenario.clients}"
            )
        profiles = {name: [list(found[one]) for one in options.clients] for name, found in known.items()}
        joined = {"site": options.name, "clients": list(options.clients), "profiles": profiles}
        yield Opened(backend, site.tuned.layout, Envelope("joined", joined))


def _experiment(options: SiteOptions, head: Mapping[str, Any]) -> Experiment:
    """Read the server's experiment, with this site's own places."""
    experiment = Experiment.from_json(str(head["experiment"]), "the server's experiment")
    if experiment.digest != head["digest"]:
        raise UserError("the experiment that the server sent has another digest than it says")
    if options.model is None:
        return experiment
    return experiment.model_copy(
        update={"model": experiment.model.model_copy(update={"path": options.model})}
    )


def _require_same(there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Compare what decides results at the server and here.

    Raises:
        UserError: Something differs; what.
    """
    if differs := [name for name in {**there, **here} if there.get(name) != here.get(name)]:
        told = [
            f"{name} (server {str(there.get(name))[:12]}, here {str(here.get(name))[:12]})"
            for name in differs
        ]
        raise UserError(f"this site has another {', '.join(told)} than the server")
