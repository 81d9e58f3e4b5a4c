"""Fine-tune vision-language models across clients whose data cannot be pooled.

    import fedloom
    result = fedloom.run(fedloom.Experiment(name="mine", train={"rounds": 2}))

Algorithms, data sets, metrics and model families of your own come along as `fedloom.Plugins`:

    mine = fedloom.Plugins.of(datasets={"mine": examples})
    fedloom.run(fedloom.Experiment(plugins=[mine], data={"name": "mine"}))

Importing the package loads neither torch nor pydantic; they come with the first name that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.old_names import install
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
    """Run an experiment, go on with one that was interrupted, or read the result of one that is finished.

    Args:
        experiment: What to run.
        out: The run folder; None takes `runs/<name>-<first 8 of the digest>`.
        quiet: Show no progress.
        rerun: Discard what the folder holds of a run and begin again.

    Returns:
        What `result.json` holds.

    Raises:
        UserError: The folder holds something else; its data, base model or code changed since it was begun; a file is
            damaged; the disk is full or memory runs out; or the experiment cannot run as it is.
    """
    from fedloom.progress import make_progress
    from fedloom.runs.run_folder import default_folder, discard
    from fedloom.runs.single_run import run_experiment
    from fedloom.system.errors import plainly

    folder = default_folder(experiment) if out is None else Path(out)
    progress = make_progress(quiet)
    try:
        with plainly():
            if rerun:
                discard(folder)
            return run_experiment(experiment, folder, progress)
    finally:
        progress.close()
