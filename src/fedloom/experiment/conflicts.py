"""Check an experiment for settings that contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fedloom.algorithms import PLACES
from fedloom.config.validation_errors import Conflict, did_you_mean, unknown_name
from fedloom.config.yaml_document import KeyPath, dotted
from fedloom.experiment.experiment_base import ExperimentBase
from fedloom.experiment.methods import Method, default_methods
from fedloom.experiment.plugins_key import AROUND
from fedloom.plugins.plugins import INSTALLED, Layered
from fedloom.scenarios.published_draws import why_unpublished
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.config.schema import Model


def conflicts_of(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield every conflict between settings of an experiment whose sections are valid."""
    from fedloom.data import rootless, tasks, variants

    data, scenario, cohort = experiment.data, experiment.scenario, experiment.train.cohort
    clients, sets = scenario.clients, experiment.datasets
    federated = experiment.federated_methods
    if data.root is None and not rootless(data.name, sets):
        message = f"data.root is missing; data.name {data.name} needs the folder of its examples"
        yield Conflict(("data", "root"), message, (("data", "name"),))
    known_variants = variants(data.name, sets)
    if data.variant is not None and data.variant not in known_variants:
        right = (
            f"one of {', '.join(known_variants)}"
            if known_variants
            else "left out, because it has no variants"
        )
        message = f"data.variant is {data.variant}, but for the data set {data.name} it must be {right}"
        yield Conflict(("data", "variant"), message, (("data", "name"),))
    if data.task not in (allowed_tasks := tasks(data.name)):
        several = len(allowed_tasks) > 1
        right = f"one of {', '.join(allowed_tasks)}" if several else "left out, because it has only one task"
        message = f"data.task is {data.task}, but for the data set {data.name} it must be {right}"
        yield Conflict(("data", "task"), message, (("data", "name"),))
    yield from _model_conflicts(experiment.model)
    yield from stage_conflicts(experiment)
    yield from aggregate_conflicts(experiment)
    yield from part_conflicts(experiment)
    yield from compile_conflicts(experiment)
    yield from backend_conflicts(experiment)
    yield from device_map_conflicts(experiment)
    yield from validation_conflicts(experiment)
    count = (("scenario", "clients"),)
    if cohort is not None and cohort > clients:
        message = f"train.cohort is {cohort}, but scenario.clients is {clients}; a round cannot have more clients than there are"
        yield Conflict(("train", "cohort"), message, count)
    if scenario.image_clients is not None and scenario.image_clients > clients:
        message = f"scenario.image_clients is {scenario.image_clients}, but scenario.clients is {clients}"
        yield Conflict(("scenario", "image_clients"), message, count)
    if scenario.mode == "published" and (reason := why_unpublished(scenario)):
        if experiment.mode == "published":
            reason += ". To use corrected draws under mode: published, set scenario.mode: corrected"
        yield Conflict(("scenario", "partition"), reason, (("scenario", "mode"), ("scenario", "pattern")))
    if experiment.main is not None and experiment.main not in federated:
        hint = did_you_mean(experiment.main, federated)
        message = f'main is "{experiment.main}", but must be null or a federated method of this experiment'
        message = f"{message}{hint or '.'} Allowed: {', '.join(federated) or 'null'}"
        yield Conflict(("main",), message, (("methods",),))
    yield from _repeats(experiment)
    mistakes = [
        conflict for name in experiment.algorithms for conflict in _argument_conflicts(experiment, name)
    ]
    yield from mistakes or _method_conflicts(experiment)


def _model_conflicts(model: Model) -> Iterator[Conflict]:
    for key, other in (("encoder", "llm"), ("llm", "encoder")):
        if getattr(model, key) is not None and getattr(model, other) is None:
            message = f"model.{other} is missing; an assembled model needs model.encoder and model.llm"
            yield Conflict(("model", other), message, (("model", key),))
    if model.encoder is not None and model.path != "bundled":
        message = f'model.path is "{model.path}", but model.encoder and model.llm replace it; leave it out'
        yield Conflict(("model", "path"), message, (("model", "encoder"),))
    if model.connector_weights is not None and model.connector is None and model.encoder is None:
        message = "model.connector is missing; model.connector_weights needs the type of the connector, such as mlp2"
        yield Conflict(("model", "connector"), message, (("model", "connector_weights"),))


def _repeats(experiment: ExperimentBase) -> Iterator[Conflict]:
    names = experiment.methods
    methods = [experiment.method(name) for name in names]
    for index, method in enumerate(methods):
        first = methods.index(method)
        if first < index:
            yield Conflict(("methods", index), f'methods[{index}]: "{names[index]}" repeats "{names[first]}"')


def _argument_conflicts(experiment: ExperimentBase, name: str) -> Iterator[Conflict]:
    """Yield the mistakes in the arguments of one algorithm or part.

    The arguments are checked together. A mistake is reported at the argument without which there is none, or else at each
    argument that is refused by itself.
    """
    path, arguments = ("algorithms", name), experiment.algorithms[name]
    if name not in experiment.entries:
        message = f"algorithms: {unknown_name('algorithm or part', name, list(experiment.entries))}"
        yield Conflict(path, message)
        return
    if (mistake := _refusal(experiment, name, arguments)) is None:
        return
    others = {key: {name: value for name, value in arguments.items() if name != key} for key in arguments}
    resolving = {key: mistake for key in arguments if _refusal(experiment, name, others[key]) is None}
    alone = {key: _refusal(experiment, name, {key: value}) for key, value in arguments.items()}
    for key, message in (resolving or alone).items():
        if message is not None:
            yield Conflict((*path, key), message, (("scenario", "clients"),))
    if not resolving and not any(alone.values()):
        yield Conflict(path, mistake, (("scenario", "clients"),))


def _refusal(experiment: ExperimentBase, name: str, arguments: Mapping[str, Any]) -> str | None:
    """Return why an algorithm or part refuses arguments, or None.

    If no method uses the algorithm, its arguments need not fit what the strategy trains.
    """
    from fedloom.algorithms.compose import any_layout, make

    used = any(name in experiment.method(method).composed for method in experiment.methods)
    given = experiment.given
    given = given if used else replace(given, layout=any_layout(experiment.strategy.rank))
    try:
        make(name, given, arguments, experiment.entries)
    except UserError as error:
        return str(error)
    return None


def _method_conflicts(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield methods that cannot be put together, or whose aggregates need more clients than there are."""
    for index, method in _non_default_methods(experiment):
        from fedloom.algorithms.compose import check_method

        try:
            check_method(
                method.composed, experiment.given, experiment.arguments_of(method), experiment.entries
            )
        except UserError as error:
            yield Conflict(("methods", index), f"methods[{index}]: {error}", (("scenario", "clients"),))


def _non_default_methods(experiment: ExperimentBase) -> Iterator[tuple[int, Method]]:
    """Yield index and method of all but the default ones, which work with all settings and whose entries import torch."""
    for index, name in enumerate(experiment.methods):
        if name not in default_methods():
            yield index, experiment.method(name)


def stage_conflicts(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield a conflict if the numbers of rounds do not fit the stages of the strategy."""
    from fedloom.tuning.strategies import SEQUENCES

    name, rounds = experiment.strategy.name, experiment.strategy.stage_rounds
    stages = len(SEQUENCES[name])
    where = (("strategy", "name"),)
    if rounds is not None and len(rounds) != stages:
        message = f"strategy.stage_rounds needs one number for each of the {stages} stages of {name}, not {len(rounds)}"
        yield Conflict(("strategy", "stage_rounds"), message, where)
    if rounds is None and experiment.train.rounds < stages:
        message = f"train.rounds is {experiment.train.rounds}, but the strategy {name} has {stages} stages"
        yield Conflict(("train", "rounds"), message, where)


def aggregate_conflicts(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield algorithms that are defined over the whole cohort, if only reporters count."""
    if experiment.aggregate.over == "cohort":
        return
    for name in experiment.methods:
        method = experiment.method(name)
        for part in method.composed if method.federated else ():
            if "whole vectors" in experiment.entries[part].traits:
                message = f"aggregate.over is reporters, but {part} is defined for whole vectors of the whole cohort; leave one of them out"
                yield Conflict(("aggregate", "over"), message, (("methods",),))


def part_conflicts(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield methods whose parts need other settings."""
    for index, method in _non_default_methods(experiment):
        for part in method.composed:
            for key, reason in _incompatible_settings(experiment, part):
                yield Conflict(("methods", index), f"methods[{index}]: {part} {reason}", (key,))
            if reason := _lacks(experiment, method, part):
                yield Conflict(("methods", index), f"methods[{index}]: {part} {reason}", (("methods",),))


def _lacks(experiment: ExperimentBase, method: Method, part: str) -> str | None:
    """Return which other model a part of a method uses that the method or the experiment does not have, or None."""
    entries = experiment.entries
    if "local model" in entries[part].traits and "local" not in experiment.methods:
        return "uses the models that clients train alone, which are those of local; add local to methods"
    own = [
        one for one in method.parts if "own model" in entries[one].traits and entries[one].kind != "personal"
    ]
    if entries[part].kind == "mix" and not own:
        return f"mixes the shared model with clients' own ones; add a part that makes these: {method.base}+finetune+{part}"
    return None


def _incompatible_settings(experiment: ExperimentBase, part: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the key of every setting that is incompatible with a part, and the reason."""
    from fedloom.tuning.strategies import SEQUENCES

    entry, train = experiment.entries[part], experiment.train
    stages, strategy = SEQUENCES[experiment.strategy.name], f"strategy.name is {experiment.strategy.name}"
    personal = any(own for _, own in stages)
    if "own model" in entry.traits and personal:
        yield (
            ("strategy", "name"),
            f"gives each client its own model, but {strategy}, which already keeps parts at clients",
        )
    if "own model" in entry.traits and entry.kind == "stage" and experiment.evaluate.round == "best":
        yield ("evaluate", "round"), "starts from the last round, but evaluate.round is best; set it to last"
    if entry.kind == "mix" and not experiment.data.validation:
        yield (
            ("data", "validation"),
            "chooses by clients' validation examples, but data.validation is 0; set it to a share such as 0.15",
        )
    if entry.kind == "answers" and experiment.evaluate.scoring != "likelihood":
        yield (
            ("evaluate", "scoring"),
            "changes the probabilities of options, but evaluate.scoring is "
            f"{experiment.evaluate.scoring}, which gives none; set it to likelihood",
        )
    if {"gradient", "noise"} <= entry.traits and train.clip is not None:
        yield (
            ("train", "clip"),
            f"clips each example, but train.clip is {train.clip}, which would undo its noise; set it to null",
        )
    if "no values" not in entry.traits:
        return
    if personal or len(stages) > 1:
        yield (
            ("strategy", "name"),
            f"rebuilds all trainable parameters from one start, but {strategy}; set it to lora, connector or both",
        )
    for key, right in REPLAYED.items():
        if getattr(train, key) != right:
            yield (
                ("train", key),
                f"replays plain SGD steps along random directions, but train.{key} is {getattr(train, key)}; set it to {right}",
            )


REPLAYED = {"optimizer": "sgd", "weight_decay": 0.0}
"""The settings of `train` under which a client's steps can be replayed from scalars."""


def compile_conflicts(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield settings that are incompatible with compiled layers."""
    if not experiment.engine.compile:
        return
    if (quantize := experiment.model.quantize) is not None:
        message = f"model.quantize is {quantize}, but engine.compile is true, and quantized layers cannot be compiled; leave one out"
        yield Conflict(("model", "quantize"), message, (("engine", "compile"),))
    workers, dropout, where = experiment.engine.workers, experiment.strategy.dropout, (("engine", "compile"),)
    if workers not in ("auto", 1):
        message = (
            f"engine.workers is {workers}, but engine.compile needs 1, because each copy would compile again"
        )
        yield Conflict(("engine", "workers"), message, where)
    if dropout:
        message = f"strategy.dropout is {dropout}, but engine.compile needs 0, because dropout masks drawn by name cannot be compiled"
        yield Conflict(("strategy", "dropout"), message, where)


def backend_conflicts(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield settings that the backend does not have."""
    engine, where = experiment.engine, (("engine", "backend"),)
    if engine.backend == "workers" and engine.workers == 1:
        message = "engine.workers is 1, but engine.backend workers needs at least 2"
        yield Conflict(("engine", "workers"), message, where)
    if engine.backend == "in-process" and engine.workers not in ("auto", 1):
        message = f"engine.workers is {engine.workers}, but engine.backend is in-process, which has 1"
        yield Conflict(("engine", "workers"), message, where)
    if engine.backend == "ray" and engine.compile:
        message = (
            "engine.compile is true, but engine.backend is ray, whose actors do not compile; leave it out"
        )
        yield Conflict(("engine", "compile"), message, where)
    for key in ("address", "gpus"):
        if engine.backend != "ray" and (value := getattr(engine, key)) is not None:
            message = f"engine.{key} is {value}, but engine.backend is {engine.backend}; only ray has {key}"
            yield Conflict(("engine", key), message, where)


def device_map_conflicts(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield settings that are incompatible with layers on several GPUs and in the host's memory."""
    if (given := experiment.model.device_map) is None:
        return
    engine, where = experiment.engine, (("model", "device_map"),)
    about = f"but model.device_map is {given}"
    if (quantize := experiment.model.quantize) is not None:
        message = (
            f"model.quantize is {quantize}, {about}, which does not move quantized layers; leave one out"
        )
        yield Conflict(("model", "quantize"), message, where)
    if engine.compile:
        message = (
            f"engine.compile is true, {about}, and layers that are moved cannot be compiled; leave one out"
        )
        yield Conflict(("engine", "compile"), message, where)
    if engine.backend == "ray" or engine.workers not in ("auto", 1):
        key = "backend" if engine.backend == "ray" else "workers"
        message = f"engine.{key} is {getattr(engine, key)}, {about}, which uses all GPUs in one process; leave one out"
        yield Conflict(("engine", key), message, where)


def validation_conflicts(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield a conflict if the validation set does not exist, or if no best round can be chosen."""
    from fedloom.data import DATASETS, has_validation

    data, evaluate, path = experiment.data, experiment.evaluate, ("data", "validation")
    if data.validation == "published" and not has_validation(data.name, experiment.datasets):
        names = ", ".join(name for name in DATASETS if has_validation(name) and name != "folder")
        message = (
            f"data.validation is published, but the data set {data.name} has no published validation set; give a "
            f"share of each client's training examples, such as 0.1. Data sets with one: {names}, and a folder of your own "
            "with validation.jsonl"
        )
        yield Conflict(path, message, (("data", "name"),))
    if evaluate.round == "best" and not data.validation:
        message = "evaluate.round is best, but data.validation is 0, so only test scores could choose the round; set data.validation to a share such as 0.1"
        yield Conflict(("evaluate", "round"), message, (path,))
    if evaluate.round == "best" and not evaluate.every:
        message = "evaluate.round is best, but evaluate.every is 0, so only the last round is evaluated"
        yield Conflict(("evaluate", "round"), message, (("evaluate", "every"),))


def unknown_names(experiment: ExperimentBase) -> Iterator[Conflict]:
    """Yield data sets, methods and metrics that neither fedloom nor a plug-in has."""
    name, sets = experiment.data.name, experiment.datasets
    metrics = Layered(experiment.added.metrics, INSTALLED.metrics)
    if name not in sets:
        yield Conflict(
            ("data", "name"),
            f"data.name: {unknown_name('data set', name, tuple(sets))}",
            AROUND,
            of_value=True,
        )
    else:
        yield from _conflict_if_refused(("data", "name"), lambda: sets[name])
    for index, method in enumerate(experiment.methods):
        yield from _conflict_if_refused(("methods", index), partial(_make_plugin_parts, experiment, method))
    for index, metric in enumerate(experiment.evaluate.metrics or ()):
        path = ("evaluate", "metrics", index)
        if metric not in metrics:
            message = unknown_name("metric of a plug-in", metric, tuple(metrics))
            yield Conflict(path, f"{dotted(path)}: {message}", AROUND, of_value=True)
        else:
            yield from _conflict_if_refused(path, partial(metrics.__getitem__, metric))


def _make_plugin_parts(experiment: ExperimentBase, name: str) -> None:
    """Make the parts of a method that come from plug-ins, so that an error in them is reported before a run begins."""
    for part in experiment.method(name).composed:
        if part not in PLACES:
            from fedloom.algorithms.compose import make

            make(part, experiment.given, {}, experiment.entries)


def _conflict_if_refused(path: KeyPath, find: Callable[[], Any]) -> Iterator[Conflict]:
    """Yield a conflict where a function raises UserError."""
    try:
        find()
    except UserError as error:
        yield Conflict(path, f"{dotted(path)}: {error}", AROUND, of_value=True)
