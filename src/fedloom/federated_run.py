"""Run an experiment whose clients are at sites on other machines: the server's side."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fedloom import __version__
from fedloom.backends import local_backend
from fedloom.data import load_data
from fedloom.engine.envelope import Envelope
from fedloom.engine.federation import Federation
from fedloom.engine.flower_link import flower_link
from fedloom.engine.flower_processes import Security, free_port, require_flower
from fedloom.engine.front import front
from fedloom.engine.rounds import Backend
from fedloom.engine.terms import Terms
from fedloom.experiment import Experiment
from fedloom.folder import FLOWER, RESULT, folder_state
from fedloom.messages import Update
from fedloom.progress import Progress
from fedloom.record import read_json
from fedloom.runner import Result, identity_now, run_experiment
from fedloom.scenarios.declared import blanks, site_of
from fedloom.setting import Elsewhere, Setting
from fedloom.sites import algorithm_of
from fedloom.types import DataSet, UserError


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and how its connections are secured."""

    host: str
    port: int
    security: Security


def serve_experiment(
    experiment: Experiment,
    out: Path,
    progress: Progress,
    listening: Listening,
    terms: Terms,
    sites: int | None = None,
    scores: Literal["here", "sites"] = "here",
) -> Result:
    """Run an experiment over sites, or go on with it; see `fedloom.runner.run_experiment`.

    Args:
        experiment: Every choice.
        out: The run folder.
        progress: Told how far the run has come, and what happens to sites.
        listening: Where the server listens.
        terms: How long it waits for sites.
        sites: Number of sites that each bring data of their own and are one client; None where sites hold clients of
            the experiment's data, which then is also here.
        scores: Whether the server has a test part, that of the experiment's data, or only sites score models.

    Raises:
        UserError: Flower is not there, or sites did not join or answer as `terms` wants it.
    """
    require_flower()
    experiment = experiment if sites is None else _over_sites(experiment, sites)
    if folder_state(out, experiment) == "finished":
        if sites is None:
            return run_experiment(experiment, out, progress)
        return read_json(out / RESULT, {"scores": dict})
    early = list[tuple[str, Mapping[str, Any]]]()

    def noted(kind: str, figures: Mapping[str, Any]) -> None:
        early.append((kind, figures))
        shown = [f"{key} {value}" for key, value in figures.items() if not isinstance(value, Mapping)]
        progress.message(f"{kind}: {', '.join(shown)}")

    (out / FLOWER).mkdir(parents=True, exist_ok=True)
    behind, security = free_port(), listening.security
    identity, trust = (None, None) if security.plain else _contexts(security)
    with (
        front(listening.host, listening.port, behind, identity, trust),
        flower_link(behind, security, out / FLOWER, progress.message) as link,
    ):
        begin = _begin(experiment, own=sites is not None)
        found = Federation(link, begin, experiment.scenario.clients, terms, noted, own=sites is not None)
        wanted = f"{sites} sites" if sites else f"sites that hold {found.clients} clients"
        progress.message(f"waiting for {wanted}")
        found.enroll()
        data = None if sites is None else _declared(experiment, found, here=scores == "here")
        elsewhere = Elsewhere(partial(_attached, found, early), data)
        return run_experiment(experiment, out, progress, elsewhere=elsewhere)


@contextmanager
def _attached(
    found: Federation, early: list[tuple[str, Mapping[str, Any]]], setting: Setting
) -> Iterator[Backend]:
    """Give sites what the rounds need, and let them know when the run is over."""
    shown = found.noted

    def noted(kind: str, figures: Mapping[str, Any]) -> None:
        setting.record.append(kind, figures)
        shown(kind, figures)

    def trained(update: Update) -> None:
        setting.progress.advance(1, loss=update.metrics["loss"])

    for kind, figures in early:
        setting.record.append(kind, figures)
    found.noted = noted
    found.attach(local_backend(setting), setting.tuned.layout, trained)
    if found.own:
        _require_global(setting)
        found.number(site_of(setting.plan, setting.data.train))
    yield found
    found.leave()


def _contexts(security: Security) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    from fedloom.engine.keys import identity_of, trust_of

    return identity_of(security), trust_of(security)


def _over_sites(experiment: Experiment, sites: int) -> Experiment:
    """Return an experiment in which each site is a client.

    Raises:
        UserError: It wants something that needs the data of clients here.
    """
    refused = [
        name for name in experiment.methods if name != "zero-shot" and not experiment.method(name).federated
    ]
    if refused:
        raise UserError(
            f"methods: {refused[0]} trains on clients' data, which stay at the sites; leave it out of a run over sites"
        )
    if experiment.data.validation:
        raise UserError("data.validation: sites keep no validation part for the server; leave it out")
    scenario = experiment.scenario.model_copy(
        update={"clients": sites, "partition": "by_group", "pattern": "aligned"}
    )
    return experiment.model_copy(update={"scenario": scenario})


def _require_global(setting: Setting) -> None:
    """Refuse methods whose clients keep models of their own: these are answered at sites, where this test part is not.

    Raises:
        UserError: There is one.
    """
    for name in setting.experiment.methods:
        method = setting.experiment.method(name)
        personal = any(parts.personal.count for parts in setting.site.local(name).parts)
        if method.federated and (
            personal or algorithm_of(setting.experiment, method, setting.tuned.layout).personal
        ):
            raise UserError(
                f"methods: with {name} clients keep models of their own, which cannot be scored on the server's test part "
                "where sites bring their own data; leave it out"
            )


def _declared(experiment: Experiment, found: Federation, *, here: bool) -> DataSet:
    """Return what the server knows of the sites' data, and its own test part, where it has one."""
    own = (
        load_data(experiment.data, experiment.seed, experiment.datasets) if here else DataSet("sites", (), ())
    )
    train = [one for name in sorted(found.members) for one in blanks(name, found.members[name].counts)]
    return replace(own, train=tuple(train), drawn=(), validation=())


def _begin(experiment: Experiment, *, own: bool) -> Envelope:
    """Return what a site is sent when it joins: the experiment, and digests of all that decides results."""
    data = None if own else load_data(experiment.data, experiment.seed, experiment.datasets)
    return Envelope(
        "begin",
        {
            "version": __version__,
            "experiment": experiment.to_json(),
            "digest": experiment.digest,
            "own": own,
            "identity": identity_now(experiment, data),
            "threads": torch.get_num_threads(),
        },
    )
