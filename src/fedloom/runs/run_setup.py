"""Set up a run: read its data, load its model, divide the examples, and begin its folder; or open the site of its clients alone."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedloom.algorithms import COMPARED
from fedloom.client.site import Site
from fedloom.data import check_usable, load_data
from fedloom.data.images import read_keys
from fedloom.engine.checkpoints import recorded_below
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import parse_method
from fedloom.models.assemble_model import base_digest, load_base, parts_digest, with_connector
from fedloom.models.device_map import spread_decoder
from fedloom.models.example_checks import CheckedData, check_examples
from fedloom.models.hub import Source
from fedloom.models.judge_model import load_judge
from fedloom.models.load_model import Vlm, move_model, rest_encoder, with_feature_store
from fedloom.models.precision import deterministic_kernels, device_of, precision_of
from fedloom.models.sentence_embeddings import sentence_source
from fedloom.models.text_only import check_pattern
from fedloom.run_log import Follower, RunLog, require_length
from fedloom.runs.gpu_setup import gpus_of
from fedloom.runs.own_answers import require_options
from fedloom.runs.ray_setup import actors_of
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import (
    MACHINE,
    METHODS,
    RECORD,
    begin_run,
    require_whole,
)
from fedloom.runs.run_identity import contents_of, family_code, identity, require_same
from fedloom.runs.site_setup import clause_of, make_site
from fedloom.scenarios.declared_examples import plan_with_all_examples
from fedloom.scenarios.validation_part import (
    Validation,
    common_validation,
    hold_out_at_site,
    plan_and_validation,
    plan_json,
    plan_over_sites,
)
from fedloom.system.allocator import keep_freed
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import cache_folder, combine_digests, json_digest
from fedloom.system.manifest import Manifest, read_manifest, read_sealed, write_sealed
from fedloom.system.progress import Progress
from fedloom.system.timing import Clock
from fedloom.tasks import TASKS
from fedloom.tasks.linear_baseline import require_choice
from fedloom.tuning.adapters import Tuned, check_targets, prepare, release
from fedloom.tuning.strategies import LoRA, Strategy, merged_stage, strategy
from fedloom.types import Conversation, DataSet, Example, Presence
from fedloom.version import __version__

T = TypeVar("T")

Models = dict[str, Any]
"""Settings → the base model or judge that was loaded with them; models keep the images and texts that they have encoded."""

BESIDE_BASE = {"connector", "connector_weights", "queries", "max_tokens", "threads"}
"""Keys of the section `model` that the base model does not depend on."""

BASES_HELD = 2**31
"""Bytes of base models that a process keeps when it loads another one: enough for several small ones, and no real one."""

SHOWN = 5
"""Number of skipped records that a run names in its output; the record has all of them."""


def set_up_run(
    experiment: Experiment,
    folder: Path,
    progress: Progress,
    models: Models,
    live: ExitStack,
    site_data: DataSet | None = None,
    follow: Follower | None = None,
) -> RunContext:
    """Read the data, load the model, divide the examples; begin the run's folder, or check that it belongs to this run.

    Args:
        experiment: Every choice.
        folder: The run folder.
        progress: Shows messages about data and versions.
        models: Loaded models and judges; see `run_experiment`.
        live: Removes the adapters from the model, and ends Ray's actors and the processes of GPUs, when it closes.
        site_data: What the server knows about the data of sites on other machines; None for the experiment's data.
        follow: Called with each line of the run's log.
    """
    set_threads(experiment)
    progress.stage("loading data and model", 2)
    data, manifest = site_data or load_run_data(experiment), read_manifest(folder)
    progress.advance()
    now = current_identity(experiment, contents_of(data), folder)
    if manifest is not None:
        require_same(folder, manifest.identity, now)
        require_whole(folder, manifest)
    if "linear" in experiment.methods:
        require_choice(data.examples)
    require_options(experiment, data, progress.message)
    here = with_precision(experiment, folder)
    tuned = live.enter_context(_adapted(here, models))
    vlm, path, clock = tuned.vlm, experiment.evaluate.judge, Clock()
    progress.advance()
    check_pattern(vlm.family, experiment.scenario.pattern)
    check = checked_data(experiment, vlm, data, progress, complete=site_data is None)
    clock.lap("vision")
    data = check.data
    divide = plan_and_validation if site_data is None else plan_over_sites
    plan, validation = divide(data, experiment.data, experiment.scenario, experiment.seed)
    how = (path, vlm.device, here.model.precision)
    judge = path and _load_once(models, f"judge {how}", partial(load_judge, *how))
    versions = _versions()
    if manifest is None:
        began = Manifest(__version__, now, versions)
        shown = plan_json(plan, data.train, validation, blank=site_data is not None)
        begin_run(folder, experiment, shown, began)
        write_sealed(folder / MACHINE, {"precision": here.model.precision}, folder)
    elif manifest.versions != versions:
        before = ", ".join(f"{name} {value}" for name, value in manifest.versions.items())
        progress.message(
            f"this run began with {before}; with other versions its numbers may round differently"
        )
    record = RunLog(folder / RECORD, follow)
    require_length(record.path, recorded_below(folder / METHODS))
    _record_start(record, experiment, tuned, check, clock.seconds["vision"], validation)
    for line in (*map(str, data.rejected[:SHOWN]), *check.messages[:SHOWN]):
        progress.message(f"data: {line}")
    if vlm.memo.store is not None and vlm.memo.store.full:
        progress.message(f"engine.cache: {vlm.memo.store.full}")
    stages = stages_of(experiment)
    site = make_site(
        experiment, data, plan, tuned, stages, folder / METHODS, validation, own_data=site_data is not None
    )
    return RunContext(
        experiment, folder, data, plan, site, stages, record, progress, json_digest(now), judge or None, validation,
        actors_of(here, folder / METHODS, open_site_elsewhere, progress.message, live),
        gpus_of(here, folder / METHODS, vlm.device, live) if site_data is None else None,
    )  # fmt: skip


@contextmanager
def open_site(experiment: Experiment, folder: Path, progress: Progress | None = None) -> Iterator[Site]:
    """Open the site of all clients of an experiment, without a server.

    Args:
        experiment: Every choice.
        folder: The folder of the clients' memories.
        progress: Shows the loading; None shows nothing.
    """
    set_threads(experiment)
    progress = progress or Progress(None)
    progress.stage("loading data and model", 2)
    loaded = load_run_data(experiment)
    progress.advance()
    with _adapted(with_precision(experiment), {}) as tuned:
        progress.advance()
        data = checked_data(experiment, tuned.vlm, loaded, progress).data
        plan, validation = plan_and_validation(data, experiment.data, experiment.scenario, experiment.seed)
        yield make_site(experiment, data, plan, tuned, stages_of(experiment), folder, validation)


@contextmanager
def open_own_site(
    experiment: Experiment, folder: Path, data: DataSet, name: str
) -> Iterator[tuple[Site, DataSet]]:
    """Open a site with data of its own, and yield it and its examples, of which the validation part is held out.

    Whichever client the server asks for is the one that holds all of them.

    Args:
        experiment: Every choice.
        folder: The folder of the client's memory.
        data: The site's data.
        name: The site's name.
    """
    set_threads(experiment)
    with _adapted(with_precision(experiment), {}) as tuned:
        checked = checked_data(experiment, tuned.vlm, data).data
        divided = hold_out_at_site(checked, experiment.data.validation, experiment.seed, name)
        plan = plan_with_all_examples(divided.train, experiment.scenario.clients)
        validation = common_validation(divided.validation, experiment.data.validation)
        stages = stages_of(experiment)
        yield (
            make_site(experiment, divided, plan, tuned, stages, folder, validation, own_data=True),
            divided,
        )


def open_site_elsewhere(experiment: str, folder: str) -> AbstractContextManager[Site]:
    """Open the site of another process of a run, which gets the experiment as JSON."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not there; the run's folder must be at the same path on all nodes")
    return open_site(Experiment.from_json(experiment), Path(folder))


def load_run_data(experiment: Experiment) -> DataSet:
    """Read the data of an experiment; the keys of images are read from the cache of this machine where it has them."""
    data = load_data(experiment.data, experiment.seed, experiment.datasets)
    images = [image for example in data.examples for image in (*example.pictures, *example.spare)]
    read_keys(images, cache_folder() / "hashes" / "images.json")
    return data


def current_identity(
    experiment: Experiment, contents: Mapping[str, str], folder: Path | None = None
) -> dict[str, str]:
    """Return the identity that a run would have if it began now.

    Args:
        experiment: Every choice.
        contents: The digests of its data.
        folder: The run's folder, whose precision counts if it is not that of CPUs; None if there is none.
    """
    value = identity(experiment, contents, models_digest(experiment))
    if folder is None or experiment.model.precision != "auto":
        return value
    precision = with_precision(experiment, folder).model.precision
    return value if precision == "float32" else {**value, "precision": precision}


def with_precision(experiment: Experiment, folder: Path | None = None) -> Experiment:
    """Return an experiment with the precision that "auto" means: that with which the run in a folder began, or this machine's."""
    if experiment.model.precision != "auto":
        return experiment
    machine = read_sealed(folder / MACHINE) if folder is not None and (folder / MACHINE).exists() else {}
    precision = machine.get("precision") or precision_of("auto", device_of(experiment.model.device))
    model = experiment.model.model_copy(update={"precision": precision})
    return experiment.model_copy(update={"model": model})


@contextmanager
def _adapted(experiment: Experiment, models: Models) -> Iterator[Tuned]:
    """Insert an experiment's adapters into its model."""
    with deterministic_kernels(experiment.engine.deterministic, experiment.model.device):
        stage, vlm = merged_stage(stages_of(experiment)), loaded_model(experiment, models)
        check_targets(vlm, stage)
        tuned = prepare(vlm, stage, experiment.training_seed)
        try:
            yield tuned
        finally:
            release(tuned)


def set_threads(experiment: Experiment) -> None:
    """Set this process's number of threads as an experiment asks, and let it keep freed memory."""
    import torch

    keep_freed()
    if experiment.model.threads is not None:
        torch.set_num_threads(experiment.model.threads)


def checked_data(
    experiment: Experiment,
    vlm: Vlm,
    data: DataSet,
    progress: Progress | None = None,
    *,
    complete: bool = True,
) -> CheckedData:
    """Check the examples against the model, with all modalities and with each of the experiment's prompts.

    Data that are not `complete`, because they are at sites, may lack a training or test part.
    """
    clauses = {clause_of(experiment, parse_method(name)) for name in (COMPARED, f"{COMPARED}+prompt")}
    everything, answer = Presence(image=True, text=True), experiment.evaluate.answer

    def shapes(example: Example) -> list[Conversation]:
        render = TASKS[example.task].render
        return [render(example, everything, clause=clause, answer_form=answer) for clause in clauses]

    def encoded(done: int, total: int) -> None:
        if progress is not None and total:
            progress.reach("features of images", done, total)

    check = check_examples(vlm, data, shapes, experiment.data.too_long, experiment.model.max_tokens, encoded)
    rest_encoder(vlm)
    return replace(check, data=check_usable(check.data, experiment.data)) if complete else check


def stages_of(experiment: Experiment) -> Strategy:
    """Return the stages of an experiment's strategy."""
    chosen = experiment.strategy
    return strategy(chosen.name, LoRA(chosen.rank, chosen.alpha, chosen.targets, chosen.dropout))


def loaded_model(experiment: Experiment, models: Models) -> Vlm:
    """Return an experiment's model: its connector in a base model, which is loaded unless `models` holds it."""
    settings, engine = experiment.model, experiment.engine

    def load() -> Vlm:
        base = load_base(settings, experiment.families)
        if settings.device_map is None or device_of(settings.device) != "cuda":
            return move_model(base, settings.device, settings.precision, settings.quantize)
        spread_decoder(move_model(base, "cpu", precision_of(settings.precision, "cuda")))
        return base

    # The key includes the content of files, which may have changed since another experiment loaded them.
    code = "".join(family_code(experiment).values())
    key = f"{settings.model_dump_json(exclude=BESIDE_BASE)} {parts_digest(settings)} {code}"
    if key not in models:
        _forget_bases(models)
    vlm = with_connector(_load_once(models, key, load), settings, experiment.seed)
    if not engine.cache or not vlm.family.images:
        return vlm
    return with_feature_store(vlm, cache_folder() / "features", int(engine.cache_gigabytes * 1e9), code)


def _forget_bases(models: Models) -> None:
    """Remove loaded base models, the oldest first, until those that are left take at most `BASES_HELD` bytes."""
    bases = {key: value for key, value in models.items() if isinstance(value, Vlm)}
    sizes = {key: sum(one.nbytes for one in vlm.model.parameters()) for key, vlm in bases.items()}
    for key in bases:
        if sum(sizes.values()) <= BASES_HELD:
            return
        del models[key], sizes[key]


def models_digest(experiment: Experiment) -> str:
    """Return a digest of the models that an experiment names: the base model, and the judge if there is one."""
    digests, judge = {"model": base_digest(experiment.model, experiment.seed)}, experiment.evaluate.judge
    if judge is not None:
        digests["judge"] = Source("evaluate.judge", judge, network=False).digest
    if experiment.evaluate.linear_text == "minilm" and "linear" in experiment.methods:
        digests["linear text"] = sentence_source("evaluate.linear_text").digest
    return combine_digests(digests)


def _load_once(models: Models, key: str, load: Callable[[], T]) -> T:
    """Return what `models` holds under a key; if there is nothing, load it and add it."""
    if key not in models:
        models[key] = load()
    return models[key]


def _versions() -> dict[str, str]:
    """Return the versions that last bits may depend on."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _record_start(
    record: RunLog,
    experiment: Experiment,
    tuned: Tuned,
    check: CheckedData,
    seconds: float,
    validation: Validation | None,
) -> None:
    """Record the versions, model and data with which a run starts, and the `seconds` that encoding its images took."""
    import torch

    vlm, data = tuned.vlm, check.data
    record.append(
        "start",
        {
            "digest": experiment.digest,
            "version": __version__,
            "seed": experiment.seed,
            **_versions(),
            "threads": torch.get_num_threads(),
            "model": vlm.digest,
            "trained": tuned.layout.size,
            **({} if vlm.family.images else {"images": False}),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    counts = {"name": data.name, "train": len(data.train), "test": len(data.test)}
    counts |= {} if validation is None else {"validation": len(validation.plan.indices)}
    record.append(
        "data", {**counts, "rejected": [str(record) for record in data.rejected], **check.for_run_log}
    )
    record.append(
        "vision",
        {
            "pictures": len({image.key for example in data.examples for image in example.pictures}),
            "computed": check.computed,
            "seconds": seconds,
            "damaged": vlm.memo.store.damaged if vlm.memo.store else [],
        },
    )
