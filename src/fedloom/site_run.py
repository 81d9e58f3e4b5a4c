"""Take part in a run over sites: the site's side."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedloom import __version__
from fedloom.allow import Allow, read_allow, require_allowed, require_reported
from fedloom.client.site import Question, Site
from fedloom.data import load_data
from fedloom.departures import Departures
from fedloom.engine.envelope import Envelope
from fedloom.engine.flower_processes import Security, last_lines, require_flower, stop, supernode
from fedloom.engine.in_process import InProcess
from fedloom.engine.resident_site import Opened, ResidentSite, listening, serve
from fedloom.experiment import Experiment
from fedloom.folder import FLOWER
from fedloom.measure import slices_of
from fedloom.models.recompute import recomputing
from fedloom.models.texts import without_images
from fedloom.record import write_atomic
from fedloom.runner import identity_now, open_site
from fedloom.scenarios.declared import counts_of, everyone
from fedloom.tasks.scoring import score
from fedloom.types import DataSet, Example, UserError

AGAIN = 5.0
"""Seconds after which a SuperNode that has ended is started again; one whose server is away ends again and again."""


@dataclass(frozen=True)
class SiteOptions:
    """How a site takes part.

    Attributes:
        name: Its name.
        folder: Where it keeps what its clients keep, and what it writes down.
        server: HOST:PORT of the server.
        security: How it connects.
        clients: The clients of the experiment that it holds; None where it has data of its own.
        data: The folder of its own data, with their format as `fedloom list datasets` has it.
        modalities: What of its data it shows to the model: images, texts.
        model: Its own copy of the base model, where that lies elsewhere than the experiment says.
        idle: Seconds without a message after which the model is let go.
        stay: Wait for another run when one is over.
        allow: The owner's file of what a server may ask for; None is `allow.yaml` in `folder`, if it is there.
        plugins: Its own copies of the experiment's plug-ins.
    """

    name: str
    folder: Path
    server: str
    security: Security
    clients: tuple[int, ...] | None
    data: tuple[str, Path] | None = None
    modalities: tuple[bool, bool] = (True, True)
    model: str | None = None
    idle: float = 3600.0
    stay: bool = False
    allow: Path | None = None
    plugins: tuple[str, ...] = ()


MOST, LIVED = 60.0, 30.0
"""Seconds: the longest such pause, to which it grows where a SuperNode lives less than `LIVED` beyond it."""


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
    _allow_of(options)  # a mistake in it is found before anything is asked
    with listening() as (listener, socket):
        over = list[bool]()

        departures = Departures(options.folder, options.name)

        def left(request: Envelope, answer: Envelope, run: Opened | None) -> None:
            departures.add(request, answer, run.layout if run else None, run.privacy if run else {})
            departures.write_page()

        def said(text: str) -> None:
            over.extend([True] * (text == "the run is over"))
            told(text)

        site = ResidentSite(
            options.name,
            partial(_opened, options),
            left,
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


class _Node:
    """A SuperNode that is kept running."""

    def __init__(
        self, start: Callable[[], subprocess.Popen[bytes]], home: Path, told: Callable[[str], None]
    ) -> None:
        self._start, self._home, self._told = start, home, told
        self._process, self._begun, self._pause = start(), time.monotonic(), AGAIN

    def look(self) -> None:
        """Start it again if it has ended."""
        lived = time.monotonic() - self._begun
        if self._process.poll() is None or lived < self._pause:
            return
        self._pause = min(2 * self._pause, MOST) if lived < self._pause + LIVED else AGAIN
        self._told(
            f"Flower's SuperNode ended{last_lines(self._home / 'supernode.log', 3)}; it is started again"
        )
        stop(self._process)
        self._process, self._begun = self._start(), time.monotonic()

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
    experiment, allow = read_experiment(options, head), _allow_of(options)
    require_allowed(allow, experiment)
    own = _own(options, experiment) if head["own"] else None
    if own is None and options.clients is None:
        raise UserError(
            "the server's run divides the data of its experiment; take part with --clients instead of --data"
        )
    data = None if own else load_data(experiment.data, experiment.seed, experiment.datasets)
    _require_same(head["identity"], identity_now(experiment, data))
    folder = options.folder / "runs" / experiment.digest[:16]
    write_atomic(folder / "experiment.json", experiment.to_json().encode())
    plan = partial(everyone, clients=experiment.scenario.clients)
    with (
        open_site(experiment, folder, own and (own, lambda data: plan(data.train))) as site,
        recomputing(site.tuned.vlm, experiment.engine.recompute == "always"),
    ):
        if experiment.model.threads is None:
            torch.set_num_threads(int(head["threads"]))
        rows = experiment.engine.side_by_side
        backend = InProcess(site, rows=1 if rows == "auto" or not site.tuned.stackable else rows)
        joined = _joined(options, experiment, backend, own)
        layout = site.tuned.layout
        yield Opened(
            backend,
            layout,
            Envelope("joined", joined),
            lambda asked: require_reported(allow, asked, layout),
            allow.replies or own is None,
            partial(_evaluated, site, allow) if own else None,
            _privacy(experiment),
        )


def _allow_of(options: SiteOptions) -> Allow:
    default = options.folder / "allow.yaml"
    return read_allow(options.allow or (default if default.exists() else None))


def _evaluated(site: Site, allow: Allow, question: Question) -> dict[str, Any]:
    """Score a model on the site's own held-out part; only scores that the owner allows are returned."""
    examples = site.asked(question).examples
    (judged,) = site.answer([replace(question, slice=slices_of(examples)[0])])
    found = score(examples, judged)
    tasks = {task: _metrics(allow, scores) for task, scores in found["tasks"].items()}
    return {"examples": len(examples), "scores": {**_metrics(allow, found), "tasks": tasks}}


def _metrics(allow: Allow, scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in scores.items()
        if name != "tasks" and (allow.metrics is None or name in allow.metrics)
    }


def _privacy(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the arguments of each method's parts, in which noise and bounds stand."""
    return {
        name: {part: dict(experiment.arguments(part)) for part in experiment.method(name).parts}
        for name in experiment.methods
    }


def _joined(
    options: SiteOptions, experiment: Experiment, backend: InProcess, own: DataSet | None
) -> dict[str, Any]:
    """Return what the server is told of a site: its name, how many examples it holds, and of which modalities."""
    clients = () if own else options.clients or ()
    if wrong := [one for one in clients if not 0 <= one < experiment.scenario.clients]:
        raise UserError(f"--clients: there is no client {wrong[0]}; there are {experiment.scenario.clients}")
    methods = [name for name in experiment.methods if experiment.method(name).federated]
    profiles = {name: [list(backend.describe(name)[one]) for one in clients or (0,)] for name in methods}
    counts = {"counts": counts_of(own.train)} if own else {}
    return {"site": options.name, "clients": list(clients), "profiles": profiles, **counts}


def _own(options: SiteOptions, experiment: Experiment) -> DataSet:
    """Load a site's own data, with the modalities that it shows.

    Raises:
        UserError: The site has none, or none of them has a modality that is shown.
    """
    if options.data is None:
        raise UserError(
            "in the server's run each site brings its own data; take part with --data instead of --clients"
        )
    name, root = options.data
    settings = experiment.data.model_copy(update={"name": name, "root": str(root), "limit": None})
    data = load_data(settings, experiment.seed, experiment.datasets)
    shown = replace(data, train=_shown(data.train, *options.modalities), drawn=())
    if not shown.train:
        raise UserError(f"{root}: no training example has a modality that --modalities allows")
    return shown


def _shown(examples: Sequence[Example], images: bool, texts: bool) -> tuple[Example, ...]:
    """Leave out modalities of examples, and examples of which nothing is left."""
    kept = [
        replace(one if images or not one.pictures else without_images(one), text=one.text if texts else None)
        for one in examples
    ]
    return tuple(one for one in kept if one.pictures or one.text is not None)


def read_experiment(options: SiteOptions, head: Mapping[str, Any]) -> Experiment:
    """Read the server's experiment, with this site's own places.

    A server can neither choose which code is loaded here nor let this site fetch anything: plug-ins are those that the
    owner gave, and they must have the digests that the experiment names; nothing is downloaded.

    Raises:
        UserError: It is not the experiment that the server says, or it needs other plug-ins.
    """
    value = json.loads(str(head["experiment"]))
    wanted = len(value.get("plugins") or ())
    if wanted != len(options.plugins):
        raise UserError(
            f"the server's experiment has {wanted} plug-ins, and this site was given {len(options.plugins)}; give the same "
            "files with --plugin"
        )
    value["plugins"] = list(options.plugins)
    experiment = Experiment.from_json(json.dumps(value), "the server's experiment")
    if experiment.digest != head["digest"]:
        what = (
            "its plug-ins are others than those given here"
            if wanted
            else "it has another digest than it says"
        )
        raise UserError(f"the server's experiment is refused: {what}")
    changes = {"network": False, **({"path": options.model} if options.model else {})}
    return experiment.model_copy(update={"model": experiment.model.model_copy(update=changes)})


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
