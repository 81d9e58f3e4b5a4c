"""Take part in a run over sites: the side of a site."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedloom.client.site import Question, Site
from fedloom.config.allow_schema import Allow, read_allow
from fedloom.data import load_data
from fedloom.engine.flower_processes import Security, last_lines, require_flower, stop, supernode
from fedloom.engine.in_process import InProcess
from fedloom.engine.resident_site import OpenRun, ResidentSite, listen, serve
from fedloom.engine.server_check import connection_problem
from fedloom.experiment.experiment import Experiment
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.models.text_only import without_images
from fedloom.runs.left_this_site import DepartureLog, noise_at_site
from fedloom.runs.modality_slices import slices_of
from fedloom.runs.run_folder import FLOWER
from fedloom.runs.run_identity import contents_of
from fedloom.runs.run_lock import lock_folder
from fedloom.runs.run_setup import current_identity, open_own_site, open_site
from fedloom.runs.site_permissions import require_allowed, require_reportable
from fedloom.runs.site_setup import trains_at_sites
from fedloom.scenarios.declared_examples import counts_of
from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic
from fedloom.tasks.predictions import PREDICTIONS, write_predictions
from fedloom.tasks.score_answers import score
from fedloom.tuning.export_adapter import export_adapter
from fedloom.types import DataSet, Example
from fedloom.version import __version__
from fedloom.wire.site_messages import SiteMessage

ADAPTERS = "adapters"
"""The folder, below that of a site, with the adapters of its own models, one folder for each method."""

RESTART_SECONDS = 5.0
"""Seconds after which an ended SuperNode is started again; while its server is away, it ends again and again."""


@dataclass(frozen=True)
class SiteOptions:
    """How a site takes part.

    Attributes:
        name: Its name.
        folder: The folder of its clients' memories and of the list of what left it.
        server: HOST:PORT of the server; None for a SuperNode that is running, which passes messages on to `socket`.
        security: How its connection is secured.
        clients: The clients of the experiment that it holds; None if it has data of its own.
        data: The format of its own data, as in `fedloom list datasets`, and their folder.
        modalities: Whether the model sees images, and texts, of its data.
        model: Its own copy of the base model, if that has another path than in the experiment.
        idle: Seconds without a message after which the model is released.
        stay: Whether to wait for another run when one is over.
        allow: The owner's file with limits; None is `allow.yaml` in `folder`, if it exists.
        plugins: Its own copies of the experiment's plug-ins.
        socket: The Unix socket at which it listens; None for one that only the SuperNode that is started here knows.
    """

    name: str
    folder: Path
    server: str | None
    security: Security
    clients: tuple[int, ...] | None
    data: tuple[str, Path] | None = None
    modalities: tuple[bool, bool] = (True, True)
    model: str | None = None
    idle: float = 3600.0
    stay: bool = False
    allow: Path | None = None
    plugins: tuple[str, ...] = ()
    socket: Path | None = None


LONGEST_PAUSE, STABLE_SECONDS = 60.0, 30.0
"""Seconds: the longest such pause, and the life of a SuperNode beyond its pause below which the next pause doubles."""


class _Over(Exception):
    """The run is over."""


def run_site(options: SiteOptions, message: Callable[[str], None]) -> None:
    """Take part in a server's run until it is over, or until a signal ends this process.

    Args:
        options: How the site takes part.
        message: Shows a line of text.

    Raises:
        UserError: Flower is not installed, there are no data, another process uses the site's folder, or the run is over and
            the site took no part in it.
    """
    require_flower()
    _read_allow(options)  # so that a mistake in it is reported before the first request
    if options.data is not None and not options.data[1].exists():
        raise UserError(f"--data: {options.data[1]} does not exist; give the folder of this site's own data")
    options.folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(options.folder), listen(options.socket) as (listener, socket):
        site = resident_site(options, message)
        node = None if options.server is None else _started_node(options, options.server, socket, message)
        try:
            serve(site, listener, partial(_between_messages, options, site, node))
        except _Over:
            pass
        finally:
            if node is not None:
                node.stop()
            site.close()
        if site.refusal is not None:
            raise UserError(f"this site took no part in the run: {site.refusal}")


def resident_site(options: SiteOptions, message: Callable[[str], None]) -> ResidentSite:
    """Return a site that answers a server's messages and lists all that leaves; it opens no run before the first message.

    Args:
        options: How the site takes part.
        message: Shows a line of text.
    """
    departures = DepartureLog(options.folder, options.name)

    def log_departure(request: SiteMessage, answer: SiteMessage, run: OpenRun | None) -> None:
        departures.add(request, answer, run.layout if run else None, run.noise if run else {})
        departures.write_page()

    return ResidentSite(options.name, partial(_open_run, options), log_departure, message)


class _Node:
    """A SuperNode that is restarted whenever it ends."""

    def __init__(
        self,
        start: Callable[[], subprocess.Popen[bytes]],
        server: str,
        options: SiteOptions,
        message: Callable[[str], None],
    ) -> None:
        self._start, self._server, self._options, self._message = start, server, options, message
        self._process, self._begun, self._pause = start(), time.monotonic(), RESTART_SECONDS

    def restart_if_ended(self) -> None:
        """Start the SuperNode again if it has ended."""
        lived = time.monotonic() - self._begun
        if self._process.poll() is None or lived < self._pause:
            return
        self._pause = (
            min(2 * self._pause, LONGEST_PAUSE) if lived < self._pause + STABLE_SECONDS else RESTART_SECONDS
        )
        host, _, port = self._server.rpartition(":")
        problem = connection_problem(host.strip("[]"), int(port), self._options.security)
        reason = f"; {problem}" if problem else last_lines(self._options.folder / FLOWER / "supernode.log", 3)
        self._message(f"Flower's SuperNode ended{reason}; it is started again")
        stop(self._process)
        self._process, self._begun = self._start(), time.monotonic()

    def stop(self) -> None:
        """End the SuperNode."""
        stop(self._process)


def _started_node(options: SiteOptions, server: str, socket: str, message: Callable[[str], None]) -> _Node:
    home = options.folder / FLOWER
    start = partial(supernode, server, options.security, {"socket": socket}, home)
    return _Node(start, server, options, message)


def _between_messages(options: SiteOptions, site: ResidentSite, node: _Node | None, idle: float) -> None:
    """Restart the node if it has ended, and release the model or end if the run is over."""
    if node is not None:
        node.restart_if_ended()
    if site.over and not options.stay and idle > RESTART_SECONDS:  # by then the last answer has left
        raise _Over
    if idle > options.idle:
        site.close()


@contextmanager
def _open_run(options: SiteOptions, begin: SiteMessage) -> Iterator[OpenRun]:
    """Open a run from the server's first message, after a check that everything that decides results is the same here."""
    head = begin.head
    if head.get("version") != __version__:
        raise UserError(
            f"the server has fedloom {head.get('version')}, and this site {__version__}; install the same"
        )
    experiment, allow = read_experiment(options, head), _read_allow(options)
    require_allowed(allow, experiment)
    own = _load_own_data(options, experiment) if head["own"] else None
    if own is None and options.clients is None:
        raise UserError(
            "the server's run divides the data of its experiment; take part with --clients instead of --data"
        )
    data = None if own else load_data(experiment.data, experiment.seed, experiment.datasets)
    _require_same(head["identity"], current_identity(experiment, {} if data is None else contents_of(data)))
    folder = memory_folder(options.folder, experiment)
    write_atomic(folder / "experiment.json", experiment.to_json().encode())
    with (
        _open_site(options, experiment, folder, own) as (site, divided),
        gradient_checkpointing(site.tuned.vlm, experiment.engine.recompute == "always"),
    ):
        if experiment.model.threads is None:
            torch.set_num_threads(int(head["threads"]))
        rows = experiment.engine.side_by_side
        backend = InProcess(site, rows=1 if rows == "auto" or not site.tuned.stackable else rows)
        joined = _joined_values(options, experiment, backend, divided)
        layout = site.tuned.layout
        yield OpenRun(
            backend,
            layout,
            SiteMessage("joined", joined),
            lambda asked: require_reportable(allow, asked, layout),
            allow.replies or own is None,
            partial(_evaluate, site, allow, folder, options.folder / ADAPTERS) if own else None,
            noise_at_site(experiment),
        )


@contextmanager
def _open_site(
    options: SiteOptions, experiment: Experiment, folder: Path, own: DataSet | None
) -> Iterator[tuple[Site, DataSet | None]]:
    """Open the site, and yield it with its own examples, of which the validation part is held out, if it has any."""
    if own is None:
        with open_site(experiment, folder) as site:
            yield site, None
    else:
        with open_own_site(experiment, folder, own, options.name) as opened:
            yield opened


def memory_folder(folder: Path, experiment: Experiment) -> Path:
    """Return the folder of clients' memories of an experiment, below that of a site."""
    return folder / "runs" / experiment.digest[:16]


def _read_allow(options: SiteOptions) -> Allow:
    default = options.folder / "allow.yaml"
    return read_allow(options.allow or (default if default.exists() else None))


def _evaluate(site: Site, allow: Allow, folder: Path, adapters: Path, question: Question) -> dict[str, Any]:
    """Score a model on the site's own test or validation part, and return the scores that the owner allows to leave.

    Answers to the test part are written to `predictions.jsonl` of the method below `folder`, and do not leave the site. The
    client's own model stays, too; when it is tested, its adapter is written to a folder of the method in `adapters`.
    """
    examples = site.examples_of(question).examples
    if not examples:
        return {"examples": 0, "reason": f"it has no {question.test} examples"}
    (answers,) = site.answer([replace(question, slice=(part := slices_of(examples)[0]))])
    if question.test == "test":
        file = folder / question.method / PREDICTIONS
        write_predictions(file, question.method, examples, {question.client: {part: answers}})
        if question.client is not None:
            export_adapter(site.tuned, site.model(question), adapters / question.method)
    scores = score(examples, answers)
    tasks = {task: _allowed_scores(allow, of_task) for task, of_task in scores["tasks"].items()}
    counts = dict(Counter(example.task for example in examples))
    return {
        "examples": len(examples),
        "counts": counts,
        "scores": {**_allowed_scores(allow, scores), "tasks": tasks},
    }


def _allowed_scores(allow: Allow, scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in scores.items()
        if name != "tasks" and (allow.metrics is None or name in allow.metrics)
    }


def _joined_values(
    options: SiteOptions, experiment: Experiment, backend: InProcess, own: DataSet | None
) -> dict[str, Any]:
    """Return what the server learns about a site: its name, and the numbers of its examples by modality.

    Its own examples are None if it holds clients of the experiment's data.
    """
    clients = () if own else options.clients or ()
    if wrong := [one for one in clients if not 0 <= one < experiment.scenario.clients]:
        raise UserError(f"--clients: there is no client {wrong[0]}; there are {experiment.scenario.clients}")
    methods = [
        name
        for name in experiment.methods
        if trains_at_sites(experiment.method(name), own_data=own is not None)
    ]
    profiles = {name: [list(backend.describe(name)[one]) for one in clients or (0,)] for name in methods}
    counts = {"counts": counts_of(own.train), "validation": counts_of(own.validation)} if own else {}
    return {"site": options.name, "clients": list(clients), "profiles": profiles, **counts}


def _load_own_data(options: SiteOptions, experiment: Experiment) -> DataSet:
    """Load a site's own data with the modalities that the model sees.

    Raises:
        UserError: The site has none, or no example has such a modality.
    """
    if options.data is None:
        raise UserError(
            "in the server's run each site brings its own data; take part with --data instead of --clients"
        )
    name, root = options.data
    settings = experiment.data.model_copy(update={"name": name, "root": str(root), "limit": None})
    data = load_data(settings, experiment.seed, experiment.datasets)
    train, test, validation = (
        _with_modalities(some, *options.modalities) for some in (data.train, data.test, data.validation)
    )
    for part, examples in (("training", train), ("test", test)):
        if not examples:
            raise UserError(f"{root}: no {part} example has a modality that --modalities allows")
    return replace(data, train=train, test=test, validation=validation, drawn=())


def _with_modalities(examples: Sequence[Example], images: bool, texts: bool) -> tuple[Example, ...]:
    """Remove modalities from examples, and examples of which none is left."""
    kept = [
        replace(one if images or not one.pictures else without_images(one), text=one.text if texts else None)
        for one in examples
    ]
    return tuple(one for one in kept if one.pictures or one.text is not None)


def read_experiment(options: SiteOptions, head: Mapping[str, Any]) -> Experiment:
    """Read the server's experiment, with this site's own paths.

    A server can neither choose the code that is loaded here nor make this site download anything: plug-ins are those of the
    site's owner, and their digests must be those of the experiment.

    Raises:
        UserError: Its digest is not the one that the server states, or it needs other plug-ins.
    """
    value = json.loads(str(head["experiment"]))
    count = len(value.get("plugins") or ())
    if count != len(options.plugins):
        raise UserError(
            f"the server's experiment has {count} plug-ins, and this site {len(options.plugins)}; give the same "
            "files with --plugin"
        )
    value["plugins"] = list(options.plugins)
    experiment = Experiment.from_json(json.dumps(value), "the server's experiment")
    if experiment.digest != head["digest"]:
        reason = (
            "its plug-ins differ from those given here" if count else "its digest differs from the stated one"
        )
        raise UserError(f"the server's experiment is refused: {reason}")
    changes = {"network": False, **({"path": options.model} if options.model else {})}
    return experiment.model_copy(update={"model": experiment.model.model_copy(update=changes)})


def _require_same(server: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Compare the digests of all that decides results at the server and here.

    Raises:
        UserError: Something differs; the message names it.
    """
    if differs := [name for name in {**server, **here} if server.get(name) != here.get(name)]:
        differences = [
            f"{name} (server {str(server.get(name))[:12]}, here {str(here.get(name))[:12]})"
            for name in differs
        ]
        raise UserError(f"this site has another {', '.join(differences)} than the server")
