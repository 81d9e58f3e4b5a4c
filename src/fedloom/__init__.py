"""Fine-tune vision-language models across clients whose data cannot be pooled.

    import fedloom
    run = fedloom.run(fedloom.Experiment(name="mine", train={"rounds": 2}))
    run.scores, run.rounds, run.clients, run.predictions     # tables
    run.ask(image="x.png", question="What is it?", options=["a cat", "a dog"])
    run = fedloom.load_run(run.folder)                       # the same later
    fedloom.leaderboard("runs").rows                         # methods of many runs, ranked

Your own algorithms, data sets, metrics and model families are given as `fedloom.Plugins`:

    mine = fedloom.Plugins.of(datasets={"mine": examples})
    fedloom.run(fedloom.Experiment(plugins=[mine], data={"name": "mine"}))

Importing the package loads neither torch nor pydantic; they are loaded with the first name that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.old_module_names import install
from fedloom.version import __version__

if TYPE_CHECKING:
    from fedloom.experiment.experiment import Experiment
    from fedloom.experiment.recipes import load_experiment
    from fedloom.plugins.plugins import Plugins
    from fedloom.runs.evaluate_run import Evaluation
    from fedloom.runs.finished_run import FinishedRun
    from fedloom.runs.finished_sweep import FinishedSweep
    from fedloom.runs.leaderboard_rows import Leaderboard
    from fedloom.runs.own_loop import Clients

__all__ = [
    "Experiment",
    "Plugins",
    "__version__",
    "evaluate",
    "leaderboard",
    "load_experiment",
    "load_run",
    "load_sweep",
    "open_clients",
    "run",
    "sweep",
]


install()


def __getattr__(name: str) -> Any:
    if name in ("Experiment", "load_experiment"):
        from fedloom import experiment

        return getattr(experiment, name)
    if name == "Plugins":
        from fedloom.plugins.plugins import Plugins

        return Plugins
    raise AttributeError(f"module 'fedloom' has no attribute {name!r}")


def run(
    experiment: Experiment | str | Path | Mapping[str, Any],
    out: Path | str | None = None,
    *,
    quiet: bool = False,
    rerun: bool = False,
    callbacks: Sequence[Callable[[Mapping[str, Any]], object]] = (),
    track: Sequence[str] = (),
) -> FinishedRun:
    """Run an experiment, continue an interrupted run, or read the result of a finished one.

    Args:
        experiment: What to run: an experiment, the name of a recipe, a YAML or JSON file, or a dict with the keys of an experiment.
        out: The run folder; None is `runs/<name>-<first 8 digits of the digest>`.
        quiet: Whether to show no progress.
        rerun: Whether to discard a run in the folder and start again.
        callbacks: Functions that are called with each event of the run, a mapping with its "kind": "stage", "round",
            "evaluation" and others. An error that one raises ends the run, of which the checkpoints are kept.
        track: Libraries to which metrics are logged too, in `tracking` beside the run folder: "tensorboard", "wandb" (offline)
            or "mlflow" (local files). One that raises is reported, and the run goes on.

    Returns:
        The run. As a mapping, it is the content of `result.json`.

    Raises:
        UserError: The folder holds something else; the data, base model or code changed since the run began; a file is
            damaged; the disk is full or memory runs out; or the experiment cannot run as it is.
        Exception: The error that a callback raised, unchanged, with a note about the run.
    """
    from fedloom.experiment.recipes import experiment_of
    from fedloom.runs.finished_run import FinishedRun
    from fedloom.runs.followers import Callbacks, open_trackers, tracked_settings
    from fedloom.runs.run_folder import default_folder, discard, is_finished
    from fedloom.runs.single_run import run_experiment
    from fedloom.system.errors import user_errors
    from fedloom.system.given_path import given_path
    from fedloom.system.progress import make_progress

    with user_errors():
        experiment = experiment_of(experiment)
        folder = default_folder(experiment) if out is None else given_path(out, "out")
    events = Callbacks(callbacks, folder)
    progress = make_progress(quiet, events.stage)
    try:
        with user_errors():
            if rerun:
                discard(folder)
            names = () if is_finished(folder) else track
            with open_trackers(names, folder, tracked_settings(experiment)) as followers:
                result = run_experiment(experiment, folder, progress, followers=followers, callbacks=events)
            return FinishedRun(folder, result, tuple(experiment.plugins))
    except Exception:
        if events.raised is not None:
            raise events.raised  # noqa: B904
        raise
    finally:
        progress.close()


def load_run(folder: Path | str, plugins: Sequence[Plugins | str] = ()) -> FinishedRun:
    """Load a finished run.

    Args:
        folder: The run folder.
        plugins: Plug-ins that were given as Python values, or new paths of plug-ins; needed only for models and data.

    Raises:
        UserError: The folder holds no finished run, or a file of it is damaged.
    """
    from fedloom.runs.finished_run import load_run
    from fedloom.system.errors import user_errors

    with user_errors():
        return load_run(folder, plugins)


@contextmanager
def open_clients(
    experiment: Experiment | str | Path | Mapping[str, Any], method: str | None = None
) -> Iterator[Clients]:
    """Open the clients of an experiment for a training loop of your own, in a `with` block.

    Args:
        experiment: The experiment, as `fedloom.run` takes it: data, scenario, model, strategy and training of clients.
        method: The federated method whose local rule, prompts and server are used; None is the first one.

    Yields:
        The clients; see `fedloom.runs.own_loop.Clients`.

    Raises:
        UserError: The method is not federated, it has several stages, or the data or the model cannot be used.
    """
    from fedloom.experiment.recipes import experiment_of
    from fedloom.runs.own_loop import open_clients
    from fedloom.system.errors import user_errors

    with ExitStack() as stack:
        with user_errors():
            clients = stack.enter_context(open_clients(experiment_of(experiment), method))
        yield clients


def sweep(
    recipe: str | Path | Mapping[str, Any],
    out: Path | str | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    quick: bool = False,
    jobs: int = 1,
    quiet: bool = False,
    rerun: bool = False,
    plugins: Sequence[str | Path] = (),
) -> FinishedSweep:
    """Run every experiment of a grid; a finished one is not run again.

    Args:
        recipe: The name of a recipe, a YAML or JSON file, or the content of one: the keys of an experiment, and `grid`.
        out: The sweep folder; None is `runs/<name>-<first 8 digits of the digest>`.
        changes: Key → value, such as {"train.lr": 3e-4}.
        quick: Whether to run the quick form of the recipe.
        jobs: Number of processes that run experiments at once, ≥ 1.
        quiet: Whether to show no progress.
        rerun: Whether to run experiments again whose data, model or code changed.
        plugins: Python files of plug-ins that are added to those that the grid names.

    Returns:
        The sweep with its runs. As a mapping, it is the content of `result.json`.

    Raises:
        UserError: The grid has mistakes, or the folder holds something else.
    """
    from fedloom.runs.finished_sweep import sweep
    from fedloom.system.errors import user_errors

    with user_errors():
        return sweep(
            recipe, out, changes or {}, quick=quick, jobs=jobs, quiet=quiet, rerun=rerun, plugins=plugins
        )


def load_sweep(folder: Path | str) -> FinishedSweep:
    """Load a sweep, with its runs and scores.

    Args:
        folder: The sweep folder.

    Raises:
        UserError: The folder holds no sweep with a result, or a file of it is damaged.
    """
    from fedloom.runs.finished_sweep import load_sweep
    from fedloom.system.errors import user_errors

    with user_errors():
        return load_sweep(folder)


def evaluate(
    run: FinishedRun | Path | str,
    data: Any = None,
    *,
    methods: Sequence[str] | None = None,
    client: int | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score the models of a finished run on other data, or compute other metrics from its predictions.

    Args:
        run: The run, or its folder.
        data: A folder or file of records, a list of dicts, a pandas DataFrame, a `datasets.Dataset` or a list of examples,
            all of which are answered; None for the run's test set, of which the predictions are read.
        methods: The methods; None is all that have a model.
        client: The client whose own models answer; None for the models of all clients.
        metrics: Name → a function (example, answer) → 0..1, for scores of your own.

    Returns:
        Its scores and predictions as tables.

    Raises:
        UserError: The data cannot be used, or there is no such model.
    """
    from fedloom.runs.evaluate_run import evaluate
    from fedloom.runs.finished_run import FinishedRun, load_run
    from fedloom.system.errors import user_errors

    with user_errors():
        finished = run if isinstance(run, FinishedRun) else load_run(run)
        return evaluate(finished, data, methods, client, metrics or {})


def leaderboard(folders: Sequence[Path | str] | Path | str = "runs") -> Leaderboard:
    """Rank the methods of finished runs that answer the same question, as `fedloom leaderboard` does.

    Args:
        folders: A folder, or several, with runs and sweeps, however deep they are.

    Returns:
        Its `rows`, one for each method with its settings, and the runs that were `skipped`, as tables.

    Raises:
        UserError: A folder does not exist.
    """
    from fedloom.runs.leaderboard_rows import leaderboard
    from fedloom.system.errors import user_errors

    with user_errors():
        return leaderboard(folders)
