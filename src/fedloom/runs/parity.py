"""Train two rounds of an experiment on several backends, and compare the bytes of the results.

Backends give equal bytes if clients train with equally many threads and rows of a pass: here one thread, one client at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from fedloom.config.validation_errors import unknown_name
from fedloom.engine.rounds import Standing
from fedloom.experiment.experiment import Experiment
from fedloom.runs.run_folder import METHODS
from fedloom.runs.run_setup import Models, set_up_run
from fedloom.runs.train_method import train_method
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest, json_digest
from fedloom.system.manifest import MEMORY
from fedloom.system.progress import Progress

ROUNDS = 2
"""Number of rounds that are compared; a strategy with more stages has one for each stage."""

AT_ONCE = 2
"""Number of clients that train at once in a backend with several processes."""

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
    """Return an experiment's federated methods for two rounds without evaluation, one client at a time with one thread.

    Raises:
        UserError: It has no federated method.
    """
    from fedloom.tuning.strategies import SEQUENCES

    methods = tuple(name for name in experiment.methods if experiment.method(name).federated)
    if not methods:
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
    return experiment.model_copy(update={**sections, "methods": methods, "main": None})


def _here(backend: str, workers: int, experiment: Experiment, models: Models, progress: Progress) -> Digests:
    """Train an experiment in a backend of `engine.backend`."""
    engine = experiment.engine.model_copy(update={"backend": backend, "workers": workers})
    chosen = experiment.model_copy(update={"engine": engine})
    with TemporaryDirectory(prefix="fedloom-parity-") as place, ExitStack() as live:
        folder, digests = Path(place), dict[str, str]()
        context = set_up_run(chosen, folder, progress, models, live)
        clients = range(len(context.plan.clients))
        for name in chosen.methods:
            (standing,) = train_method(context, chosen.method(name), name, [(None, clients)])
            digests[name] = digest(standing, folder / METHODS / name / MEMORY)
        return digests


def digest(standing: Standing, memory: Path) -> str:
    """Return the SHA-256 of a server's state, and of clients' memories in files below a folder."""
    state = standing.state
    tensors = {"params": state.params.flat, **{f"slot {name}": value for name, value in state.slots.items()}}
    parts = {
        "round": state.round,
        "layout": state.params.layout.digest,
        "tensors": {
            name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
            for name, value in tensors.items()
        },
        "kept": sorted(standing.kept.items()),
        "norms": standing.norms,
        "bytes": [standing.up, standing.down],
        "memory": {
            file.relative_to(memory).as_posix(): file_digest(file)
            for file in sorted(memory.rglob("*.safetensors"))
        },
    }
    return json_digest(parts)


BACKENDS: dict[str, Backend] = {
    "in-process": Backend(partial(_here, "in-process", 1)),
    "workers": Backend(partial(_here, "workers", AT_ONCE)),
    "ray": Backend(partial(_here, "ray", AT_ONCE), needs="ray"),
}
"""Name → a backend that can be compared."""
