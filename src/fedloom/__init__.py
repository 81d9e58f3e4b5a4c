"""Fine-tune vision-language models across clients whose data cannot be pooled.

    import fedloom
    result = fedloom.run(fedloom.Experiment(name="mine", train={"rounds": 2}))

Your own algorithms, data sets, metrics and model families are given as `fedloom.Plugins`:

    mine = fedloom.Plugins.of(datasets={"mine": examples})
    fedloom.run(fedloom.Experiment(plugins=[mine], data={"name": "mine"}))

Importing the package loads neither torch nor pydantic; they are loaded with the first name that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.old_module_names import install
from fedloom.version import __version__

if TYPE_CHECKING:
    from fedloom.experiment.experiment import Experiment
    from fedloom.experiment.recipes import load_experiment
    from fedloom.plugins.plugins import Plugins

__all__ = ["Experiment", "Plugins", "__version__", "load_experiment", "run"]


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
    experiment: Experiment, out: Path | str | None = None, *, quiet: bool = False, rerun: bool = False
) -> dict[str, Any]:
    """Run an experiment, continue an interrupted run, or read the result of a finished one.

    Args:
        experiment: What to run.
        out: The run folder; None is `runs/<name>-<first 8 digits of the digest>`.
        quiet: Whether to show no progress.
        rerun: Whether to discard a run in the folder and start again.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: The folder holds something else; the data, base model or code changed since the run began; a file is
            damaged; the disk is full or memory runs out; or the experiment cannot run as it is.
    """
    from fedloom.runs.run_folder import default_folder, discard
    from fedloom.runs.single_run import run_experiment
    from fedloom.system.errors import user_errors
    from fedloom.system.progress import make_progress

    folder = default_folder(experiment) if out is None else Path(out)
    progress = make_progress(quiet)
    try:
        with user_errors():
            if rerun:
                discard(folder)
            return run_experiment(experiment, folder, progress)
    finally:
        progress.close()
