"""What a run asks of Ray: actors of one run, or processes for the cells of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from fedloom.engine.ray_actors import Actors, OpenSite
from fedloom.engine.ray_cluster import ActorRequest, in_actor
from fedloom.experiment.experiment import Experiment
from fedloom.plugins.plugins import Plugins
from fedloom.system.errors import UserError
from fedloom.system.processes import threads_per_process


def actors_of(
    experiment: Experiment,
    folder: Path,
    open_site: OpenSite,
    message: Callable[[str], None],
    live: ExitStack,
) -> Actors | None:
    """Return Ray's actors, which start with the first client, or None if the experiment has another backend.

    A cell of a sweep that is itself a task of Ray has none.

    Args:
        experiment: Every choice.
        folder: The folder of the clients' memories.
        open_site: Opens the site of an actor, from the experiment as JSON and the path of `folder`.
        message: Shows a line of text.
        live: Ends the actors when it closes.

    Raises:
        UserError: The experiment holds Python values, which no other process can get.
    """
    engine = experiment.engine
    if engine.backend != "ray" or in_actor():
        return None
    request = actor_request(experiment, None if engine.workers == "auto" else engine.workers)
    arguments = site_arguments(experiment, folder, request.threads)
    actors = Actors(request, open_site, [*arguments.values()], message)
    live.callback(actors.close)
    return actors


def site_arguments(experiment: Experiment, folder: Path, threads: int) -> dict[str, str]:
    """Return the arguments of `fedloom.runs.run_setup.open_site_elsewhere` for another process of a run.

    Args:
        experiment: Every choice.
        folder: The folder of the clients' memories.
        threads: Threads of the process.

    Raises:
        UserError: The experiment holds Python values, which no other process can get.
    """
    require_serializable(experiment)
    single = {"backend": "in-process", "workers": 1, "address": None, "gpus": None}
    engine = experiment.engine.model_copy(update=single)
    model = experiment.model.model_copy(update={"threads": threads})
    there = experiment.model_copy(update={"engine": engine, "model": model})
    return {"experiment": there.to_json(), "folder": str(folder.absolute())}


def actor_request(experiment: Experiment, count: int | None) -> ActorRequest:
    """Return what an experiment asks of Ray for some processes, or for as many as there is room for if `count` is None.

    On this machine a process has its share of this one's threads; in a cluster it has as many as this one.
    """
    engine = experiment.engine
    cuda = experiment.model.device != "cpu" and torch.cuda.is_available()
    gpus = float(cuda) if engine.gpus is None else engine.gpus
    threads = torch.get_num_threads()
    if engine.address is not None:
        return ActorRequest(count, threads, gpus, engine.address)
    if count is None:
        count = max(1, int(torch.cuda.device_count() / gpus)) if gpus else threads
    return ActorRequest(count, threads_per_process(count), gpus)


def require_serializable(experiment: Experiment) -> None:
    """Raise UserError if an experiment holds Python values, which no other process can get."""
    if python := [plugins for plugins in experiment.plugins if isinstance(plugins, Plugins)]:
        raise UserError(
            f"plugins: {', '.join(map(str, python[0].names))} came as a Python value, which no other process can get; put "
            "it into a file, and name that file under plugins"
        )
