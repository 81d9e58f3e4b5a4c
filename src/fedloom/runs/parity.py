"""Train two rounds of an experiment on several backends, and compare the bytes of the results.

Backends give equal bytes if clients train with equally many threads and rows of a pass: here one thread, one client at a time.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from fedloom.config.validation_errors import unknown_name
from fedloom.engine.flower_processes import Security, free_port, require_flower
from fedloom.engine.participation import WaitingTerms
from fedloom.engine.rounds import TrainingState
from fedloom.experiment.experiment import Experiment
from fedloom.runs.ray_setup import require_serializable
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import METHODS
from fedloom.runs.run_setup import Models, set_up_run
from fedloom.runs.server_run import ListenAddress, attach, open_federation
from fedloom.runs.site_run import memory_folder
from fedloom.runs.train_method import train_method
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest, json_digest
from fedloom.system.manifest import MEMORY
from fedloom.system.progress import Progress

ROUNDS = 2
"""Number of rounds that are compared; a strategy with more stages has one for each stage."""

AT_ONCE = 2
"""Number of clients that train at once in a backend with several processes, and of sites."""

JOIN_SECONDS, END_SECONDS = 180.0, 30.0
"""Seconds within which the processes of sites must join, and end."""

Digests = Mapping[str, str]
"""Method → SHA-256 of the result of its training."""


class Backend(NamedTuple):
    """A backend that can be compared.

    Attributes:
        digests: (experiment, loaded models, progress) → the digests of its federated methods.
        needs: The library that it needs, or None.
    """

    digests: Callable[[Experiment, Models, Progress], Digests]
    needs: str | None = None


def compare(experiment: Experiment, names: Sequence[str], progress: Progress) -> dict[str, Digests]:
    """Train an experiment's federated methods on several backends.

    Args:
        experiment: The experiment; its section `engine` does not count, and no round is evaluated.
        names: Keys of `BACKENDS`.
        progress: Shows the progress of each.

    Returns:
        Backend → the digest of each method.

    Raises:
        UserError: There is no such backend, its library is not installed, or the experiment has no federated method.
    """
    for name in names:
        if name not in BACKENDS:
            raise UserError(f"--backends: {unknown_name('backend', name, list(BACKENDS))}")
    short, models = shorten(experiment), dict[str, Any]()
    return {name: BACKENDS[name].digests(short, models, progress) for name in names}


def installed() -> list[str]:
    """Return the backends whose libraries are installed."""
    return [name for name, one in BACKENDS.items() if one.needs is None or find_spec(one.needs)]


def shorten(experiment: Experiment) -> Experiment:
    """Return an experiment for two rounds without evaluation, one client at a time with one thread.

    It keeps baselines among its methods, since methods with answers of their own need them; no baseline is trained.

    Raises:
        UserError: It has no federated method.
    """
    from fedloom.tuning.strategies import SEQUENCES

    if not experiment.federated_methods:
        raise UserError("methods: none of them is federated, so nothing is sent between server and clients")
    rounds = max(ROUNDS, len(SEQUENCES[experiment.strategy.name]))
    changes: dict[str, dict[str, Any]] = {
        "train": {"rounds": rounds},
        "strategy": {"stage_rounds": None},
        "evaluate": {"every": 0, "round": "last", "judge": None},
        "model": {"threads": 1},
        "engine": {"side_by_side": 1, "compile": False},
    }
    sections = {key: getattr(experiment, key).model_copy(update=value) for key, value in changes.items()}
    return experiment.model_copy(update=sections)


def _here(backend: str, workers: int, experiment: Experiment, models: Models, progress: Progress) -> Digests:
    """Train an experiment in a backend of `engine.backend`."""
    engine = experiment.engine.model_copy(update={"backend": backend, "workers": workers})
    chosen = experiment.model_copy(update={"engine": engine})
    with TemporaryDirectory(prefix="fedloom-parity-") as place, ExitStack() as live:
        context = set_up_run(chosen, Path(place), progress, models, live)
        return _train(context, [Path(place) / METHODS])


def _over_flower(experiment: Experiment, models: Models, progress: Progress) -> Digests:
    """Train an experiment at sites behind Flower, in processes of this machine and without TLS."""
    require_flower()
    require_serializable(experiment)
    engine = experiment.engine.model_copy(update={"backend": "in-process", "workers": 1})
    chosen = experiment.model_copy(update={"engine": engine})
    clients = range(chosen.scenario.clients)
    held = {f"site-{number}": clients[number::AT_ONCE] for number in range(min(AT_ONCE, len(clients)))}
    address = ListenAddress("127.0.0.1", free_port(), Security())
    terms = WaitingTerms(JOIN_SECONDS, quorum=len(clients), policy="stop")

    def note(kind: str, figures: Mapping[str, Any]) -> None:
        if "reason" in figures:
            progress.message(f"{kind}: {figures['reason']}")

    with TemporaryDirectory(prefix="fedloom-parity-") as place, ExitStack() as live:
        folder = Path(place)
        for name in ("server", *held):
            (folder / name).mkdir()
        context = set_up_run(chosen, folder / "server", progress, models, live)
        federation = live.enter_context(
            open_federation(chosen, folder / "flower", address, terms, note, progress.message)
        )
        for name, own in held.items():
            live.enter_context(_site_process(name, own, folder / name, address.port, chosen.plugins))
        federation.enroll()
        context = replace(context, remote=attach(federation, [], context))
        digests = _train(context, [memory_folder(folder / name, chosen) for name in held])
        federation.leave()
        return digests


@contextmanager
def _site_process(
    name: str, clients: Iterable[int], folder: Path, port: int, plugins: Iterable[Any]
) -> Iterator[None]:
    """Run `fedloom site` in a process of its own while the block runs."""
    command = [
        sys.executable,
        "-m",
        "fedloom",
        "site",
        "--server",
        f"127.0.0.1:{port}",
        "--insecure",
        "--quiet",
    ]
    command += ["--name", name, "--out", str(folder), "--clients", ",".join(map(str, clients))]
    command += [word for plugin in plugins for word in ("--plugin", str(plugin))]
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _train(context: RunContext, memories: Sequence[Path]) -> Digests:
    """Train all federated methods of a run; clients' memories are below the folders `memories`."""
    digests, clients = dict[str, str](), range(len(context.plan.clients))
    for name in context.experiment.federated_methods:
        method = context.experiment.method(name)
        (training_state,) = train_method(context, method, name, [(None, clients)])
        digests[name] = digest(training_state, *(folder / name / MEMORY for folder in memories))
    return digests


def digest(training_state: TrainingState, *memories: Path) -> str:
    """Return the SHA-256 of a server's state, and of clients' memories in files below some folders."""
    state = training_state.state
    tensors = {"params": state.params.flat, **{f"slot {name}": value for name, value in state.slots.items()}}
    parts = {
        "round": state.round,
        "layout": state.params.layout.digest,
        "tensors": {
            name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
            for name, value in tensors.items()
        },
        "kept": sorted(training_state.kept.items()),
        "norms": training_state.norms,
        "bytes": [training_state.bytes_up, training_state.bytes_down],
        "memory": {
            file.relative_to(memory).as_posix(): file_digest(file)
            for memory in memories
            for file in memory.rglob("*.safetensors")
        },
    }
    return json_digest(parts)


BACKENDS: dict[str, Backend] = {
    "in-process": Backend(partial(_here, "in-process", 1)),
    "workers": Backend(partial(_here, "workers", AT_ONCE)),
    "ray": Backend(partial(_here, "ray", AT_ONCE), needs="ray"),
    "flower": Backend(_over_flower, needs="flwr"),
}
"""Name → a backend that can be compared."""
