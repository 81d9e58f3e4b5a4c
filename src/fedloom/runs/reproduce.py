"""Run the experiment of a finished run again, and compare what both wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.report.federation_gain import main_score
from fedloom.report.run_results import number
from fedloom.report.tables import percent
from fedloom.runs.leaderboard_results import read_results
from fedloom.runs.run_folder import (
    ADAPTER,
    EXPERIMENT,
    FLOWER,
    RESULT,
    discard,
    experiment_to_resume,
    is_finished,
    require_whole,
)
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest
from fedloom.system.json_files import read_json
from fedloom.system.manifest import read_manifest
from fedloom.system.progress import Progress
from fedloom.system.terminal import shell_word
from fedloom.tasks.predictions import PREDICTIONS

COMPARED = ("comparison", "independent_questions", "agreement", "bytes", "validation", "privacy")
"""Values of `result.json`, besides scores, that do not depend on the machine's speed or the folder."""


@dataclass(frozen=True)
class Reproduction:
    """A run and its repetition.

    Attributes:
        folder: The folder of the first run.
        again: The folder of the second.
        equal: What is equal.
        different: A sentence for each thing that differs.
        circumstances: What differs of code, data, model, versions and machine, which may explain it.
    """

    folder: Path
    again: Path
    equal: tuple[str, ...]
    different: tuple[str, ...]
    circumstances: tuple[str, ...]


def run_of(name: str, folders: Sequence[Path], seed: int | None = None) -> Path:
    """Return the folder of a run: a folder, or the run of an entry of the leaderboard of `folders`.

    Args:
        name: A run folder, or the id of an entry.
        folders: Where entries are looked for.
        seed: The seed of the entry's run; None is the lowest.

    Raises:
        UserError: There is no such run, or it is not finished.
    """
    folder = Path(name)
    if (folder / EXPERIMENT).is_file():
        if not is_finished(folder):
            raise UserError(
                f"{folder} is not finished; continue it with `fedloom resume {shell_word(folder)}`"
            )
        return folder
    if folder.is_dir() and not folders:
        raise UserError(f"{folder} is not the folder of a run: it has no {EXPERIMENT}")
    found = {
        (one.seed, one.folder): one for one in read_results(folders)[0] if one.entry == name.strip().lower()
    }
    if not found:
        places = ", ".join(map(str, folders))
        raise UserError(
            f"{name} is neither the folder of a run nor an entry in {places}; `fedloom leaderboard` lists entries"
        )
    chosen = [one for key, one in sorted(found.items()) if seed in (None, one.seed)]
    if not chosen:
        raise UserError(
            f"{name} has no run with seed {seed}; it has {', '.join(map(str, sorted({key[0] for key in found})))}"
        )
    return Path(chosen[0].folder)


def reproduce(
    folder: Path,
    out: Path,
    progress: Progress,
    changes: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    rerun: bool = False,
) -> Reproduction:
    """Run the experiment of a finished run in a new folder, or continue that, and compare both.

    Args:
        folder: The folder of a finished run.
        out: The new folder.
        progress: Shows the progress of the run.
        changes: Current places of data and models, such as `data.root=NEW`.
        plugins: Current paths of the run's plug-ins.
        rerun: Discard what a run wrote into the new folder before.

    Raises:
        UserError: The run is damaged or was over sites, both folders are the same, or the experiment cannot be run.
    """
    if (folder / FLOWER).exists():
        raise UserError(
            f"{folder} is a run over sites, whose data are not here; repeat it with `fedloom server`"
        )
    if out.resolve() == folder.resolve():
        raise UserError(f"{out} is the run itself; choose another folder with --out")
    experiment = experiment_to_resume(folder, changes, plugins)
    if (manifest := read_manifest(folder)) is not None:
        require_whole(folder, manifest)  # what is damaged there would be taken for a difference
    if rerun:
        discard(out)
    run_experiment(experiment, out, progress)
    pairs = list(comparisons(folder, out))
    return Reproduction(
        folder,
        out,
        tuple(name for name, fault in pairs if fault is None),
        tuple(fault for _, fault in pairs if fault is not None),
        tuple(_circumstances(folder, out)),
    )


def comparisons(before: Path, after: Path) -> Iterator[tuple[str, str | None]]:
    """Yield what is compared, with a sentence if it differs."""
    first, second = (read_json(folder / RESULT, {"scores": dict}) for folder in (before, after))
    metric = main_score(first)
    for method, scores in first["scores"].items():
        other, fault = second["scores"].get(method), None
        if scores != other:
            values = percent(number(scores, metric)), percent(number(other, metric))
            fault = f"scores of {method} differ: {metric} was {values[0]} % and is {values[1]} %"
        yield f"scores of {method}", fault
    for name in COMPARED:
        if name in first or name in second:
            yield name, None if first.get(name) == second.get(name) else f"{name} in {RESULT} differs"
    for name in sorted({*_digested(before), *_digested(after)}):
        files = before / name, after / name
        if not all(file.is_file() for file in files):
            yield name, f"{name} is in one of the folders only"
        else:
            same = file_digest(files[0]) == file_digest(files[1])
            yield name, None if same else f"{name} differs"


def _digested(folder: Path) -> Iterator[str]:
    """Yield the files that equal runs write to the same bytes: predictions, and the weights of adapters."""
    files = [*folder.glob(PREDICTIONS), *(folder / ADAPTER).rglob("*.safetensors")]
    yield from (file.relative_to(folder).as_posix() for file in files)


def _circumstances(before: Path, after: Path) -> Iterator[str]:
    first, second = (read_manifest(folder) for folder in (before, after))
    if first is None or second is None:
        return
    for old, new, shown in (
        (first.identity, second.identity, False),
        (first.versions, second.versions, True),
    ):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                values = f": was {old.get(name, 'none')}, is {new.get(name, 'none')}" if shown else ""
                yield f"{name}{values}"
