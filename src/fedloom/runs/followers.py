"""Pass the lines of a run's log on: to functions of the user, and to TensorBoard, Weights & Biases or MLflow.

A follower is a function that takes one line; see `fedloom.run_log.Follower`. Callbacks of Python users are followers whose
errors end the run. Trackers are followers that write the figures of rounds and evaluations to files of another library, on this
machine only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedloom.config.validation_errors import unknown_name
from fedloom.run_log import Follower
from fedloom.system.errors import UserError, error_sentence

if TYPE_CHECKING:
    from fedloom.experiment.experiment import Experiment


def follow_with(
    followers: Sequence[Follower], message: Callable[[str], None], callbacks: Follower | None = None
) -> Follower:
    """Return one follower that calls several; one that raises is reported, and is called no more.

    Args:
        followers: Functions that take a line of a run's log.
        message: Shows a sentence about one that raised.
        callbacks: Called first; what it raises is raised.
    """
    left = list(followers)

    def follow(line: Mapping[str, Any]) -> None:
        if callbacks is not None:
            callbacks(line)
        for follower in tuple(left):
            try:
                follower(line)
            except Exception as error:
                left.remove(follower)
                message(f"a follower of the run's log is called no more: {error_sentence(error)}")

    return follow


class Callbacks:
    """A follower that calls the callbacks of `fedloom.run`; the first error of one of them ends the run, and is kept.

    Args:
        callbacks: Functions that take an event.
        folder: The run folder, for the note that is added to an error.

    Attributes:
        raised: The error that a callback raised, or None.

    Raises:
        UserError: These are not functions.
    """

    def __init__(self, callbacks: Sequence[Callable[[Mapping[str, Any]], object]], folder: Path) -> None:
        if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
            raise UserError("callbacks: expected a list of functions that take an event, such as [print]")
        self._callbacks, self._folder = tuple(callbacks), folder
        self.raised: Exception | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Call all callbacks with an event, in their order."""
        for callback in self._callbacks:
            try:
                callback(deepcopy(event))  # which it may change
            except Exception as error:
                name = getattr(callback, "__qualname__", type(callback).__qualname__)
                error.add_note(
                    f"This was raised by the callback {name} at an event of kind {event['kind']!r}. The rounds of the run in "
                    f"{self._folder} up to its last checkpoint are kept; the same call of fedloom.run continues from there."
                )
                self.raised = error
                raise

    def stage(self, name: str, total: int) -> None:
        """Call all callbacks with the event that a stage of `total` steps begins."""
        self({"kind": "stage", "name": name, "steps": total})


def figures_of(line: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """Return the figures of a line of a run's log by name, and the number of rounds after which they hold.

    Example:
        >>> figures_of({"kind": "round", "method": "fedavg", "client": None, "round": 0, "loss": 0.5, "bytes_up": 8, "bytes_down": 9})
        (1, {'fedavg/loss': 0.5, 'fedavg/bytes_up': 8.0, 'fedavg/bytes_down': 9.0})
    """
    kind, figures = line.get("kind"), dict[str, float]()
    if kind == "round":
        named = {name: line.get(name) for name in ("loss", "lr", "bytes_up", "bytes_down", "seconds")}
        named |= {name: len(line[name]) for name in ("refused", "missing") if name in line}
        return int(line["round"]) + 1, _numbers(_prefix(line), named)
    if kind == "evaluation":
        scores = {
            f"{line['slice']}/{name}": value
            for name, value in line["scores"].items()
            if not isinstance(value, Mapping)
        }
        return int(line["round"]), _numbers(f"{_prefix(line)}/test", scores)
    if kind == "validation" and "score" in line:
        return int(line["round"]), _numbers(_prefix(line), {"validation": line["score"]})
    return 0, figures


def _prefix(line: Mapping[str, Any]) -> str:
    client = line.get("client")
    return str(line["method"]) if client is None else f"{line['method']}/client-{client}"


def _numbers(prefix: str, named: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{prefix}/{name}": float(value)
        for name, value in named.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


Log = Callable[[dict[str, float], int], None]
"""(figures by name, number of rounds after which they hold): keeps them."""

Close = Callable[[bool], object]
"""(whether the run came to its end): closes a tracker."""


class Tracker(NamedTuple):
    """A library that keeps figures.

    Attributes:
        title: Its name for people.
        module: The module that is imported, to tell whether it is installed.
        open: (folder of its files, name of the run, settings of the run) → (what keeps figures, what closes it).
    """

    title: str
    module: str
    open: Callable[[Path, str, Mapping[str, Any]], tuple[Log, Close]]


def _tensorboard(folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[Log, Close]:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / name))
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def log(figures: dict[str, float], step: int) -> None:
        for key, value in figures.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return log, lambda _: writer.close()


def _wandb(folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[Log, Close]:
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would send errors to its makers
    wandb = importlib.import_module("wandb")
    # Its files may be uploaded later; they hold nothing about this machine, its output and its repositories.
    private = {
        "x_disable_machine_info": True,
        "x_disable_stats": True,
        "disable_git": True,
        "console": "off",
        "host": "localhost",
    }
    known = {key: value for key, value in private.items() if key in wandb.Settings.model_fields}
    run = wandb.init(
        mode="offline",
        project="fedloom",
        name=name,
        dir=str(folder),
        config=dict(settings),
        settings=wandb.Settings(silent=True, **known),
    )
    run.define_metric("*", step_metric="round")  # its own steps only count calls

    def log(figures: dict[str, float], step: int) -> None:
        run.log({**figures, "round": step})

    return log, lambda ended: run.finish(exit_code=0 if ended else 1)


def _mlflow(folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[Log, Close]:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = importlib.import_module("mlflow.tracking").MlflowClient(folder.absolute().as_uri())
    experiment = client.get_experiment_by_name("fedloom")
    number = client.create_experiment("fedloom") if experiment is None else experiment.experiment_id
    run = client.create_run(number, run_name=name).info.run_id
    for key, value in settings.items():
        client.log_param(run, key, value)

    def log(figures: dict[str, float], step: int) -> None:
        for key, value in figures.items():
            client.log_metric(run, key, value, step=step)

    return log, lambda ended: client.set_terminated(run, "FINISHED" if ended else "FAILED")


TRACKERS = {
    "tensorboard": Tracker("TensorBoard", "tensorboard", _tensorboard),
    "wandb": Tracker("Weights & Biases, offline", "wandb", _wandb),
    "mlflow": Tracker("MLflow, in local files", "mlflow", _mlflow),
}
"""By the name that --track takes, which is also that of the extra with the library."""

KEPT = ("scenario", "strategy", "train", "aggregate", "algorithms", "communication")
"""Sections of an experiment whose keys are kept with the figures; those with paths of this machine are not."""


def tracked_settings(experiment: Experiment) -> dict[str, str]:
    """Return the settings of an experiment that trackers keep, with dotted keys and values as JSON."""
    value = experiment.model_dump(mode="json", include={*KEPT})
    names = {"name": experiment.data.name}
    return {
        "digest": experiment.digest,
        "seed": str(experiment.seed),
        "methods": ", ".join(experiment.methods),
        **dict(_flat("data.", names)),
        **dict(_flat("", value)),
    }


def _flat(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(f"{prefix}{key}.", inner)
        elif inner is not None:
            yield f"{prefix}{key}", inner if isinstance(inner, str) else json.dumps(inner)


def require_trackers(names: Sequence[str]) -> None:
    """Check that trackers can be opened.

    Raises:
        UserError: A name is unknown, or its library is not installed.
    """
    if not isinstance(names, list | tuple):
        example = names if isinstance(names, str) else next(iter(TRACKERS))
        raise UserError(f"track: expected a list of names, such as [{example!r}]")
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"track: {unknown_name('tracker', str(name), tuple(TRACKERS))}")
        if importlib.util.find_spec(TRACKERS[name].module) is None:
            raise UserError(f"track: {TRACKERS[name].title} is not installed; install fedloom[{name}]")


@contextmanager
def open_trackers(
    names: Sequence[str], run_folder: Path, settings: Mapping[str, Any]
) -> Iterator[list[Follower]]:
    """Open trackers and yield their followers; their files are in `tracking/NAME` beside the run folder.

    Args:
        names: Keys of `TRACKERS`.
        run_folder: The run folder, whose name is the run's.
        settings: Settings that are kept with the figures.

    Raises:
        UserError: A name is unknown, or its library is not installed.
    """
    require_trackers(names)
    followers, closes = list[Follower](), list[Close]()
    ended = False
    try:
        for name in dict.fromkeys(names):
            folder = run_folder.absolute().parent / "tracking" / name
            folder.mkdir(parents=True, exist_ok=True)
            log, close = TRACKERS[name].open(folder, run_folder.name, settings)
            closes.append(close)

            def follow(line: Mapping[str, Any], log: Log = log) -> None:
                step, figures = figures_of(line)
                if figures:
                    log(figures, step)

            followers.append(follow)
        yield followers
        ended = True
    finally:
        with ExitStack() as stack:  # one that raises does not keep others open
            for close in closes:
                stack.callback(close, ended)
