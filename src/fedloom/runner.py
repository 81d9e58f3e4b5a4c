"""Run experiments from data to report: every method of them, each resumable at every round.

A run is a course (`fedloom.courses`): it prepares, has its methods trained, scores them and writes. One run by itself
and several over one model go the same way.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from fedloom.courses import abreast, drive, settled, timed
from fedloom.data import load_data, usable
from fedloom.data.pictures import know_keys
from fedloom.engine.memory import keep_freed
from fedloom.engine.store import recorded_below
from fedloom.experiment import Data, Experiment
from fedloom.folder import (
    METHODS,
    RECORD,
    REPORT,
    RESULT,
    begin,
    folder_state,
    held,
    require_whole,
    resumable,
    working,
    written,
)
from fedloom.hashes import cache_folder, combined, json_digest
from fedloom.identity import contents_of, identity, require_same
from fedloom.manifest import Manifest, list_files, read_manifest
from fedloom.models.assemble import base_digest, load_model
from fedloom.models.fitness import Checked, checked
from fedloom.models.judge import load_judge
from fedloom.models.load import Vlm, others, placed, with_store
from fedloom.models.sentences import sentence_source
from fedloom.models.source import Source
from fedloom.models.texts import check_pattern
from fedloom.outcomes import export, outcome, validation_of
from fedloom.progress import Progress
from fedloom.record import Clock, Record, read_json, require_length, write_json
from fedloom.report.gain import comparison
from fedloom.report.page import write_report
from fedloom.scenarios.validation import divided, plan_json
from fedloom.tasks import PROMPTS, TASKS
from fedloom.tasks.linear import require_choice
from fedloom.tasks.verdict import Judge
from fedloom.together import cells_together, train_together
from fedloom.training import Setting, Steps, Training
from fedloom.tuning.adapters import Tuned, prepare, release, replica, reseeded
from fedloom.tuning.strategy import LoRA, Strategy, strategy, whole
from fedloom.types import Conversation, DataSet, Example, Presence, UserError

Models = dict[str, Vlm]
"""Loaded models by the settings they were loaded with; they remember what they made of pictures and texts."""

SHOWN = 5
"""Skipped records that a run names in its output; the record has all of them."""

Cell = tuple[Experiment, Path]
"""What is run, and its run folder."""

Result = dict[str, Any]
"""What `result.json` of a run holds."""


def run_experiment(
    experiment: Experiment, out: Path, progress: Progress, models: Models | None = None
) -> Result:
    """Run an experiment into a new folder, or go on with it.

    Args:
        experiment: Every choice.
        out: The run folder; made if missing.
        progress: Told how far the run has come.
        models: Models to use again, and where to put one that is loaded; changes no result.

    Returns:
        What `result.json` holds.

    Raises:
        UserError: The folder holds another experiment, or the experiment cannot be run.
    """
    with _bench(progress, {} if models is None else models) as bench:
        return drive(_run((experiment, out), bench), train_together)


def resume_run(folder: Path, progress: Progress, models: Models | None = None) -> Result:
    """Continue a run from its last checkpoint; a finished run returns its result.

    The arguments are those of `run_experiment`.

    Raises:
        UserError: There is no run in the folder, or its data, base model or code changed since it began.
    """
    return run_experiment(resumable(folder), folder, progress, models)


def kinship(experiment: Experiment) -> str:
    """Return what is equal for experiments whose clients may train side by side: base, layout, training, engine."""
    parts = experiment.model_dump(mode="json", include={"model", "strategy", "train", "engine"})
    return json.dumps([parts, _fresh(experiment)], sort_keys=True)


def run_cells(
    cells: Sequence[Cell],
    progress: Progress,
    models: Models,
    begun: Callable[[int], None],
    ended: Callable[[int, Result | Exception], None],
) -> None:
    """Run the first of some cells of a sweep, and beside it others, as far as that is wanted.

    Args:
        cells: What may go on at once; all of one `kinship`.
        progress: Told how far they have come.
        models: Models to use again, and where to put one that is loaded.
        begun: Called with a cell's place when it begins; those it is not called with are not run.
        ended: Called with its place and result when it is done, or with what stops it alone.
    """
    wanted = lru_cache(maxsize=1)(cells_together)

    def more(asked: Sequence[Training]) -> bool:
        return bool(asked) and len(asked) < wanted(asked[0])

    def course(place: int, bench: _Bench) -> Steps[None]:
        begun(place)
        ended(place, (yield from settled(_run(cells[place], bench))))

    with _bench(progress, models, cells=True) as bench:
        drive(abreast((course(place, bench) for place in range(len(cells))), more), train_together)


@dataclass(frozen=True, eq=False)
class _Bench:
    """What runs share that go on at once.

    Attributes:
        tuned: Returns the model with an experiment's start; its adapters are put in for the first that asks.
        twins: Returns its copies on the other devices that an experiment wants, made for the first that asks.
        judge: Returns the model in a folder that judges answers, loaded once.
        progress: Told how far they have come.
        cells: Whether runs go on in step, and not the methods of one.
    """

    tuned: Callable[[Experiment], Tuned]
    twins: Callable[[Experiment], tuple[Tuned, ...]]
    judge: Callable[[str, Any], Judge]
    progress: Progress
    cells: bool


@contextmanager
def _bench(progress: Progress, models: Models, cells: bool = False) -> Iterator[_Bench]:
    """Make what runs share; take the adapters out of the model again at the end."""
    made: list[Tuned] = []
    copies: list[Tuned] = []

    def tuned(experiment: Experiment) -> Tuned:
        if not made:
            made.append(prepare(_loaded(experiment, models), whole(_stages(experiment)), experiment.seed))
        return reseeded(made[0], experiment.seed)

    def twins(experiment: Experiment) -> tuple[Tuned, ...]:
        chosen, there = experiment.engine.workers, others(tuned(experiment).vlm)
        wanted = there if chosen == "auto" else there[: chosen - 1]
        copies.extend(replica(made[0], device) for device in wanted[len(copies) :])
        return tuple(copies[: len(wanted)])

    try:
        yield _Bench(tuned, twins, lru_cache(load_judge), progress, cells)
    finally:
        for one in made:
            release(one)


def _run(cell: Cell, bench: _Bench) -> Steps[Result]:
    """Run an experiment, from where it stands in its folder."""
    experiment, folder = cell
    if folder_state(folder, experiment) == "finished":
        return finished_result(experiment, folder)
    if (before := held(folder)) is not None:  # data and models may have moved; the rest stays as it was begun
        experiment = experiment.model_copy(update={"name": before.name, "engine": before.engine})
    with working(folder):
        folder_state(folder, experiment)  # another process may have begun, or ended, something else here
        manifest = read_manifest(folder)
        if manifest is None or RESULT not in manifest.files:
            result, seconds = yield from timed(_results(experiment, folder, bench))
            Record(folder / RECORD).append("end", {"seconds": seconds})
            write_json(folder / RESULT, result, folder)
            list_files(folder, written(folder))
        else:  # a run that ended before its report was written
            finished_result(experiment, folder)
        write_report([folder], folder / REPORT)  # which also lists it
    return read_json(folder / RESULT, {"scores": dict})


def finished_result(experiment: Experiment, folder: Path) -> Result:
    """Read the result of a finished run, after a check that it is the one that would be run now.

    Args:
        experiment: What the folder must hold.
        folder: The run folder.

    Raises:
        UserError: Its data, base model or code changed, or a file is damaged; which one is named.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} was removed while it was being written to")
    contents = contents_of(_data(experiment.data, experiment.seed))
    require_same(folder, manifest.identity, _now(experiment, contents))
    require_whole(folder, manifest)
    return read_json(folder / RESULT, {"scores": dict})


def stale(cells: Mapping[int, Cell]) -> dict[int, str]:
    """Return for each run that cannot be gone on with, or handed out, the reason: it changed, or is damaged."""

    @cache
    def contents(data: str, seed: int) -> dict[str, str]:
        return contents_of(_data(Data.model_validate_json(data), seed))

    reasons: dict[int, str] = {}
    for place, (experiment, folder) in cells.items():
        try:
            if folder_state(folder, experiment) != "new" and (manifest := read_manifest(folder)) is not None:
                found = contents(experiment.data.model_dump_json(), experiment.seed)
                require_same(folder, manifest.identity, _now(experiment, found))
                require_whole(folder, manifest)
        except UserError as error:
            reasons[place] = str(error)
    return reasons


def _data(settings: Data, seed: int) -> DataSet:
    data = load_data(settings, seed)
    pictures = [image for one in data.examples for image in (*one.pictures, *one.spare)]
    know_keys(pictures, cache_folder() / "hashes" / "images.json")
    return data


def _now(experiment: Experiment, contents: Mapping[str, str]) -> dict[str, str]:
    """Return the identity that a run would have if it began now."""
    return identity(experiment, contents, _base(experiment))


def _results(experiment: Experiment, folder: Path, bench: _Bench) -> Steps[Result]:
    setting, main = _prepare(experiment, folder, bench), experiment.exported
    together = 1 if bench.cells else experiment.engine.together

    def more(asked: Sequence[Training]) -> bool:
        return not asked or (together != "auto" and len(asked) < together)

    found = yield from abreast((outcome(setting, name) for name in experiment.methods), more)
    results = dict(zip(experiment.methods, found, strict=True))
    if main is not None:
        export(setting, main)
    return {
        "name": experiment.name,
        "digest": experiment.digest,
        "main": main,
        "scores": {name: one["scores"] for name, one in results.items()},
        "scoring": experiment.evaluate.scoring,
        "comparison": comparison({name: one["scores"] for name, one in results.items()}),
        "bytes": {name: one["bytes"] for name, one in results.items()},
        "seconds": {name: one["seconds"] for name, one in results.items()},
        **validation_of(setting, results),
        "adapter": "adapter" if main is not None else None,
        "report": "report.html",
    }


def _prepare(experiment: Experiment, folder: Path, bench: _Bench) -> Setting:
    import torch
    import transformers

    import fedloom

    keep_freed()
    if experiment.model.threads is not None:
        torch.set_num_threads(experiment.model.threads)
    data, manifest = _data(experiment.data, experiment.seed), read_manifest(folder)
    now = _now(experiment, contents_of(data))
    if manifest is not None:
        require_same(folder, manifest.identity, now)
        require_whole(folder, manifest)
    if "linear" in experiment.methods:
        require_choice(data.examples)
    tuned = bench.tuned(experiment)
    vlm, path, clock = tuned.vlm, experiment.evaluate.judge, Clock()
    check_pattern(vlm.family, experiment.scenario.pattern)
    check = _fitted(experiment, vlm, data)
    clock.lap("vision")
    data = check.data
    plan, validation = divided(data, experiment.data, experiment.scenario, experiment.seed)
    judge = None if path is None else bench.judge(path, vlm.device)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
    if manifest is None:
        began = Manifest(fedloom.__version__, now, versions)
        begin(folder, experiment, plan_json(plan, data.train, validation), began)
    elif manifest.versions != versions:
        told = ", ".join(f"{name} {value}" for name, value in manifest.versions.items())
        bench.progress.message(f"this run began with {told}; with others its bytes may come out differently")
    record = Record(folder / RECORD)
    require_length(record.path, recorded_below(folder / METHODS))
    record.append(
        "start",
        {
            "digest": experiment.digest,
            "version": fedloom.__version__,
            "seed": experiment.seed,
            **versions,
            "threads": torch.get_num_threads(),
            "model": vlm.digest,
            "trained": tuned.layout.size,
            **({} if vlm.family.images else {"images": False}),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    rejected = [str(one) for one in data.rejected]
    counts = {"name": data.name, "train": len(data.train), "test": len(data.test)}
    counts |= {} if validation is None else {"validation": len(validation.plan.indices)}
    record.append("data", {**counts, "rejected": rejected, **check.noted})
    for line in (*rejected[:SHOWN], *check.messages[:SHOWN]):
        bench.progress.message(f"data: {line}")
    record.append(
        "vision",
        {
            "pictures": len({image.key for one in data.examples for image in one.pictures}),
            "computed": check.computed,
            "seconds": clock.seconds["vision"],
            "damaged": vlm.store.damaged if vlm.store else [],
        },
    )
    return Setting(
        experiment, folder, data, plan, tuned, _stages(experiment), record, bench.progress,
        json_digest(now), judge, bench.twins(experiment), validation,
    )  # fmt: skip


def _fitted(experiment: Experiment, vlm: Vlm, data: DataSet) -> Checked:
    """Check the examples against the model, as any of the experiment's prompts shows them with all evidence."""
    wordings = {PROMPTS[experiment.evaluate.prompt], PROMPTS[experiment.prompt.variant]}
    whole, answer = Presence(image=True, text=True), experiment.evaluate.answer

    def shapes(example: Example) -> list[Conversation]:
        render = TASKS[example.task].render
        return [render(example, whole, clause=clause, answer_form=answer) for clause in wordings]

    found = checked(vlm, data, shapes, experiment.data.too_long, experiment.model.max_tokens)
    return replace(found, data=usable(found.data, experiment.data))


def _stages(experiment: Experiment) -> Strategy:
    chosen = experiment.strategy
    return strategy(chosen.name, LoRA(chosen.rank, chosen.alpha, chosen.targets, chosen.dropout))


def _fresh(experiment: Experiment) -> int | None:
    """Return the seed of a fresh connector, or None where the model has its own or a trained one."""
    model = experiment.model
    return experiment.seed if (model.connector or model.encoder) and model.connector_weights is None else None


def _base(experiment: Experiment) -> str:
    """Return a digest of the models that an experiment names: the base model's, and the judge's if there is one."""
    found, judge = {"model": base_digest(experiment.model, experiment.seed)}, experiment.evaluate.judge
    if judge is not None:
        found["judge"] = Source("evaluate.judge", judge, network=False).digest
    if experiment.evaluate.linear_text == "minilm" and "linear" in experiment.methods:
        found["linear text"] = sentence_source("evaluate.linear_text").digest
    return combined(found)


def _loaded(experiment: Experiment, models: Models) -> Vlm:
    """Load an experiment's model, or take the one that was loaded with the same settings before."""
    settings, engine = experiment.model, experiment.engine
    key = f"{settings.model_dump_json(exclude={'threads'})} {_fresh(experiment)}"
    if key not in models:
        vlm = load_model(settings, experiment.seed)
        models[key] = placed(vlm, settings.device, settings.precision)
    if not engine.cache or not models[key].family.images:
        return models[key]
    return with_store(models[key], cache_folder() / "features", int(engine.cache_gigabytes * 1e9))
