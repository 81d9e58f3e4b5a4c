"""Run an experiment whose clients are at sites on other machines: the side of the server."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fedloom.data import load_data
from fedloom.engine.federation import Federation
from fedloom.engine.filtering_proxy import filtering_proxy
from fedloom.engine.flower_link import flower_link
from fedloom.engine.flower_processes import Security, free_port, require_flower
from fedloom.engine.participation import WaitingTerms
from fedloom.engine.rounds import Backend
from fedloom.experiment.experiment import Experiment
from fedloom.runs.run_context import RemoteSites, RunContext
from fedloom.runs.run_folder import FLOWER, RESULT, folder_state
from fedloom.runs.run_identity import contents_of
from fedloom.runs.run_lock import lock_folder
from fedloom.runs.run_setup import current_identity
from fedloom.runs.single_run import Result, run_experiment
from fedloom.runs.site_setup import algorithm_of, trains_at_sites
from fedloom.runs.train_in_backend import local_backend, show_updates
from fedloom.scenarios.declared_examples import blank_examples, clients_by_site
from fedloom.system.errors import UserError
from fedloom.system.json_files import read_json, write_atomic
from fedloom.system.manifest import check_listed
from fedloom.system.progress import Progress
from fedloom.types import DataSet, Example
from fedloom.version import __version__
from fedloom.wire.site_messages import SiteMessage


@dataclass(frozen=True)
class ListenAddress:
    """The address at which sites reach a server, and how its connections are secured.

    Attributes:
        host: The address.
        port: The port.
        security: How connections are secured.
        superlink: The port on the loopback device of a running SuperLink, which is used instead of starting one. Its
            operator decides how sites reach it, so `host` and `port` are not used.
    """

    host: str
    port: int
    security: Security
    superlink: int | None = None


OWN_MODELS = (
    "methods: with {} clients keep models of their own, which never leave their sites and so cannot be scored on the "
    "server's test part; add --scores sites, so that each site scores models on its own"
)

SITES_KNOW = "sites-know"
"""File in the folder of Flower's files that is there once the sites of a finished run were told that it is over."""

LAST_JOIN_SECONDS = 60.0
"""Seconds for which the server of a finished run waits for sites that may not know that it is over."""

Events = list[tuple[str, Mapping[str, Any]]]
"""Events at sites before the run's log is open: their kinds and figures."""


def serve_experiment(
    experiment: Experiment,
    out: Path,
    progress: Progress,
    address: ListenAddress,
    terms: WaitingTerms,
    sites: int | None = None,
    scores: Literal["here", "sites"] = "here",
) -> Result:
    """Run an experiment over sites, or go on with it; see `fedloom.runs.single_run.run_experiment`.

    Args:
        experiment: Every choice.
        out: The run folder.
        progress: Shows the progress of the run, and events at sites.
        address: The address at which sites reach the server.
        terms: How long the server waits for sites.
        sites: Number of sites that each bring data of their own and are one client; None if sites hold clients of
            the experiment's data, which then is here, too.
        scores: "here" if the server scores models on the test part of the experiment's data, "sites" if only sites do.

    Raises:
        UserError: Flower is not installed, or sites did not join or answer as `terms` require.
    """
    require_flower()
    experiment = experiment if sites is None else over_sites(experiment, sites, scores)
    finished = folder_state(out, experiment) == "finished"
    if finished and not _sites_wait(out):
        return _finished_result(experiment, out, progress, own_data=sites is not None)
    terms = replace(terms, join=min(terms.join, LAST_JOIN_SECONDS)) if finished else terms
    events = Events()

    def note(kind: str, figures: Mapping[str, Any]) -> None:
        events.append((kind, figures))
        text = ", ".join(f"{key} {value}" for key, value in figures.items() if not isinstance(value, Mapping))
        progress.message(f"{kind}: {text}")

    with open_federation(
        experiment, out / FLOWER, address, terms, note, progress.message, own_data=sites is not None
    ) as federation:
        if not finished:
            return run_over(federation, experiment, out, progress, events, scores)
        progress.message(
            f"the run is finished; waiting at most {terms.join:g} s for sites that were not told"
        )
        with suppress(UserError):  # those that were told do not come
            federation.enroll()
        _end_federation(federation, out, progress)
    return _finished_result(experiment, out, progress, own_data=sites is not None)


def _finished_result(experiment: Experiment, out: Path, progress: Progress, *, own_data: bool) -> Result:
    """Return the result of a finished run, whose inputs are checked if its data are here."""
    if not own_data:
        return run_experiment(experiment, out, progress)
    check_listed(out, (RESULT,))
    return read_json(out / RESULT, {"scores": dict})


def run_over(
    federation: Federation,
    experiment: Experiment,
    out: Path,
    progress: Progress,
    events: Events,
    scores: Literal["here", "sites"] = "here",
) -> Result:
    """Wait until the sites of a federation have joined, and run an experiment over them.

    Args:
        federation: The federation, which no site need have joined yet.
        experiment: Every choice, as `over_sites` returns it if sites bring data of their own.
        out: The run folder.
        progress: Shows the progress of the run.
        events: Events at sites before the run's log is open, which go into it.
        scores: See `serve_experiment`.

    Raises:
        UserError: Sites did not join or answer as the terms of the federation require.
    """
    count = federation.clients
    awaited = f"{count} sites" if federation.own_data else f"sites that hold {count} clients"
    progress.message(f"waiting for {awaited}")
    federation.enroll()
    data = _declared_data(experiment, federation, here=scores == "here") if federation.own_data else None
    remote = RemoteSites(partial(attach, federation, events), data)
    result = run_experiment(experiment, out, progress, remote=remote)
    _end_federation(federation, out, progress)
    return result


def _end_federation(federation: Federation, out: Path, progress: Progress) -> None:
    """Notify the sites that training is complete, so that they stop.

    This comes after all results are written: a server that is restarted after a crash continues with the same sites.
    """
    if untold := federation.leave():
        progress.message(
            f"the run is finished, and {', '.join(untold)} did not confirm that; the same command tells sites that still wait"
        )
    elif (out / FLOWER).is_dir():
        write_atomic(out / FLOWER / SITES_KNOW, b"")


def _sites_wait(out: Path) -> bool:
    """Whether sites of a finished run may not know that it is over, because its server ended before it could say so."""
    return (out / FLOWER).is_dir() and not (out / FLOWER / SITES_KNOW).exists()


@contextmanager
def open_federation(
    experiment: Experiment,
    folder: Path,
    address: ListenAddress,
    terms: WaitingTerms,
    note: Callable[[str, Mapping[str, Any]], None],
    message: Callable[[str], None],
    *,
    own_data: bool = False,
) -> Iterator[Federation]:
    """Start Flower and the proxy in front of it, or use a running SuperLink, and yield the federation, which no site has joined yet.

    Args:
        experiment: Every choice.
        folder: Folder of Flower's files.
        address: The address at which sites reach the server.
        terms: How long the server waits for sites.
        note: Called with the kind and the figures of each event at sites.
        message: Shows a line of text.
        own_data: Whether each site brings data of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    security, running = address.security, address.superlink is not None
    port = address.superlink or free_port()
    identity, trust = (None, None) if security.plain else _tls_contexts(security)
    front = filtering_proxy(address.host, address.port, port, identity, trust)
    with (
        lock_folder(folder),
        nullcontext() if running else front,
        flower_link(port, security, folder, message, running=running) as link,
    ):
        begin = begin_message(experiment, own_data=own_data)
        methods = [
            name for name in experiment.methods if trains_at_sites(experiment.method(name), own_data=own_data)
        ]
        clients = experiment.scenario.clients
        yield Federation(link, begin, clients, terms, note, own_data=own_data, methods=methods)


def attach(federation: Federation, events: Events, context: RunContext) -> Backend:
    """Attach a federation to a run, into whose log its events go, and return it.

    Args:
        federation: The federation, which all sites have joined.
        events: Events before the run's log was open.
        context: What all methods share.
    """
    show = federation.note

    def note(kind: str, figures: Mapping[str, Any]) -> None:
        context.record.append(kind, figures)
        show(kind, figures)

    for kind, figures in events:
        context.record.append(kind, figures)
    federation.note = note
    federation.attach(local_backend(context), context.tuned.layout, show_updates(context.progress))
    if federation.own_data:
        if context.data.test:
            _require_global_models(context)
        federation.number_clients(clients_by_site(context.plan, context.data.train))
    return federation


def _tls_contexts(security: Security) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    from fedloom.engine.federation_keys import server_context, trusting_context

    return server_context(security), trusting_context(security)


def over_sites(experiment: Experiment, sites: int, scores: str) -> Experiment:
    """Return an experiment in which each site is a client.

    Raises:
        UserError: The experiment needs clients' data, or a model that stays at a site, at the server.
    """
    for name in experiment.methods:
        method = experiment.method(name)
        if method.base in ("centralized", "linear"):
            raise UserError(
                f"methods: {name} trains on the clients' pooled data, which stay at the sites; leave it out of a run over "
                "sites"
            )
        if method.base == "local" and scores == "here":
            raise UserError(OWN_MODELS.format(name))
        kinds = {experiment.entries[part].kind for part in experiment.method(name).parts}
        if kinds & {"answers", "mix"}:
            raise UserError(
                f"methods: with {name} clients choose their own answers or mix models by data that only their sites have, which "
                "sites with data of their own do not do; leave it out"
            )
    scenario = experiment.scenario.model_copy(
        update={"clients": sites, "partition": "by_group", "pattern": "aligned"}
    )
    return experiment.model_copy(update={"scenario": scenario})


def _require_global_models(context: RunContext) -> None:
    """Refuse methods whose clients keep models of their own: only sites have these, and they lack the server's test part.

    Raises:
        UserError: There is such a method.
    """
    for name in context.experiment.methods:
        method = context.experiment.method(name)
        personal = any(stage.parts.personal.count for stage in context.site.method(name).stages)
        if method.federated and (
            personal or algorithm_of(context.experiment, method, context.tuned.layout).personal
        ):
            raise UserError(OWN_MODELS.format(name))


def _declared_data(experiment: Experiment, federation: Federation, *, here: bool) -> DataSet:
    """Return what the server knows about the sites' data, with its own test part if it has one."""
    own = (
        load_data(experiment.data, experiment.seed, experiment.datasets) if here else DataSet("sites", (), ())
    )
    sites = federation.sites
    train, validation = list[Example](), list[Example]()
    for name in sorted(sites):
        trained = blank_examples(name, sites[name].counts)
        held_out = blank_examples(name, sites[name].validation, len(trained))
        train += [*trained, *held_out]
        validation += held_out
    return replace(own, train=tuple(train), drawn=(), validation=tuple(validation))


def begin_message(experiment: Experiment, *, own_data: bool) -> SiteMessage:
    """Return the message that a site gets when it joins: the experiment, and digests of all that decides results."""
    data = None if own_data else load_data(experiment.data, experiment.seed, experiment.datasets)
    return SiteMessage(
        "begin",
        {
            "version": __version__,
            "experiment": experiment.to_json(),
            "digest": experiment.digest,
            "own": own_data,
            "identity": current_identity(experiment, {} if data is None else contents_of(data)),
            "threads": torch.get_num_threads(),
        },
    )
