"""Predict what a run needs, for each class of clients: memory, time of a step, bytes each way, disk, wall time.

Everything follows from the experiment, the examples, the shapes of the model and one short measurement of the machine's
speed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch

from fedloom.client.learning_rate import steps_of
from fedloom.client.site import Site
from fedloom.engine.client_sampling import Schedule, draw_cohort
from fedloom.engine.machine_choices import Choice, Machine, choose_from
from fedloom.experiment.experiment import Experiment
from fedloom.models.empty_model import weight_bytes
from fedloom.models.step_sizes import SLOWER, step_sizes
from fedloom.params import Part
from fedloom.runs.client_classes import (
    ClientClass,
    adapter_values,
    client_class,
    group_clients,
    message_bytes,
    precision_here,
)
from fedloom.runs.modality_slices import slices_of
from fedloom.runs.privacy_ledger import planned_privacy
from fedloom.runs.shared_trainings import begins_as, trainings_of
from fedloom.runs.site_setup import algorithm_of, parts_of_kind
from fedloom.scenarios.plan import Plan
from fedloom.types import DataSet

BASELINES_TRAINED = ("local", "centralized")
"""Baselines that train; the first has the clients of a federated method."""

CHECKPOINTS = 2
"""Checkpoints of a training that are kept."""


@dataclass(frozen=True)
class ResourcePlan:
    """What a run needs.

    Attributes:
        classes: The classes of clients.
        trained: Number of trainable parameters.
        weights: Part of the model → bytes of its weights as loaded.
        program: Bytes of this process without the model: Python and its libraries.
        rows: Clients side by side in a pass.
        workers: Processes that train at once.
        peak_bytes: Memory of the run at its peak.
        bytes: Method → bytes of all messages: "up" and "down".
        disk_bytes: Bytes of the run folder.
        seconds: Wall time by kind: "features", "training" and "evaluation".
        privacy: Method → what its noise will spend; see `fedloom.runs.privacy_ledger.planned_privacy`.
        probed: Whether three steps were run.
    """

    classes: tuple[ClientClass, ...]
    trained: int
    weights: dict[str, int]
    program: int
    rows: int
    workers: int
    peak_bytes: int
    bytes: dict[str, dict[str, int]]
    disk_bytes: int
    seconds: dict[str, float]
    privacy: dict[str, list[dict[str, Any]]]
    probed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON value."""
        return asdict(self)


def machine_speed(device: torch.device) -> float:
    """Measure the multiplications per second of a float32 matrix product, in about a tenth of a second."""
    left, right = torch.ones(256, 1024, device=device), torch.ones(1024, 1024, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float((left @ right)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 256 * 1024 * 1024 / best


def predict(
    experiment: Experiment,
    site: Site,
    data: DataSet,
    plan: Plan,
    machine: Machine,
    speed: float,
    program: int,
) -> ResourcePlan:
    """Predict what a run needs.

    Args:
        experiment: Every choice.
        site: The run's site; the values of its model are not used, so it may be an empty one.
        data: The examples.
        plan: Which client holds which.
        machine: The kind of machine.
        speed: See `machine_speed`.
        program: Bytes of this process without the model.
    """
    federated = experiment.federated_methods
    described = described_method(experiment)
    weights = weight_bytes(site.tuned.vlm, precision_here(experiment), experiment.model.quantize)
    groups = {} if described is None else group_clients(site, described)

    def class_of_members(
        key: tuple[str, Part | None], members: Sequence[int], *, recompute: bool = False
    ) -> ClientClass:
        assert described is not None
        return client_class(
            experiment, site, described, federated, members, key, weights, speed, recompute=recompute
        )

    classes = [class_of_members(key, members) for key, members in groups.items()]
    choice = _choice(experiment, site, classes, machine)
    if experiment.engine.recompute == "auto" and choice.recompute:
        classes = [class_of_members(key, members, recompute=True) for key, members in groups.items()]
    own = max((_own_bytes(one) for one in classes), default=0)
    class_of = {k: one for one, members in zip(classes, groups.values(), strict=True) for k in members}
    sent = {name: _sent(experiment, site, name, class_of) for name in federated}
    trained = _training_seconds(experiment, site, class_of)
    return ResourcePlan(
        tuple(replace(one, seconds=trained.get(one.largest, 0.0)) for one in classes),
        site.tuned.layout.size,
        weights,
        program,
        choice.rows,
        choice.workers,
        program + sum(weights.values()) + choice.rows * choice.workers * own,
        sent,
        disk_bytes(experiment, site),
        _seconds(experiment, site, data, plan, class_of, sum(trained.values()), speed),
        planned_privacy(
            experiment, site, lambda name: (clients for _, clients in _cohorts(experiment, site, name))
        ),
    )


def described_method(experiment: Experiment) -> str | None:
    """Return the method whose training is described: the first federated one, or else a baseline; None if none trains."""
    methods = {name: experiment.method(name) for name in experiment.methods}
    kinds = [
        experiment.federated_methods,
        *([name for name, one in methods.items() if one.base == base] for base in BASELINES_TRAINED),
    ]
    return next((name for names in kinds for name in names), None)


def _own_bytes(one: ClientClass) -> int:
    return sum(size for kind, size in one.memory.items() if kind != "weights")


def _sent(experiment: Experiment, site: Site, name: str, class_of: dict[int, ClientClass]) -> dict[str, int]:
    """Return the bytes of all rounds of a method; later rounds count as the first one of their stage."""
    total, known = {"down": 0, "up": 0}, dict[tuple[int, int], dict[str, int]]()
    for number, clients in _cohorts(experiment, site, name):
        for client in clients:
            one = class_of[client]
            if (key := (number, one.largest)) not in known:
                known[key] = (
                    one.bytes[name] if number == 0 else message_bytes(experiment, site, name, client, number)
                )
            for way, size in known[key].items():
                total[way] += size
    return total


def _cohorts(experiment: Experiment, site: Site, name: str) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield the number of the stage and the clients of each round of a method; of a baseline, all clients."""
    local, seed, sampler = site.method(name), experiment.training_seed, experiment.train.sampler
    for number, stage in enumerate(local.stages):
        cohort = stage.settings.cohort if experiment.method(name).federated else None
        schedule = Schedule(stage.settings.rounds, range(len(local.profiles)), cohort, seed, sampler)
        for round in range(schedule.rounds):
            yield number, draw_cohort(schedule, round)


def _choice(experiment: Experiment, site: Site, classes: Iterable[ClientClass], machine: Machine) -> Choice:
    """Return how clients would train, by the rules of `fedloom.engine.machine_choices`."""
    engine = experiment.engine
    most = max(classes, key=lambda one: one.steps, default=None)
    if most is None:
        return Choice()
    sizes = step_sizes(site.tuned.vlm, adapter_values(site))
    train = experiment.train
    rows = min(train.batch_size, train.micro_batch or train.batch_size, most.examples[1])
    saved = most.memory["activations"]
    cohort = experiment.train.cohort or experiment.scenario.clients
    choice = choose_from(
        site.tuned, most.steps, sizes.weights * rows * most.tokens, saved, 2 * saved, cohort, machine
    )
    if engine.side_by_side != "auto":
        choice = replace(choice, rows=engine.side_by_side)
    if engine.workers != "auto" and machine.device == "cpu":  # a GPU has memory of its own
        choice = replace(choice, workers=engine.workers)
    if engine.backend == "in-process":
        choice = replace(choice, workers=1)
    return choice


def disk_bytes(experiment: Experiment, site: Site) -> int:
    """Return the bytes of checkpoints, of clients' memories and of the adapter."""
    values, total = 4 * site.tuned.layout.size, 0
    clients = experiment.scenario.clients
    for name in trainings_of(experiment):
        method = experiment.method(name)
        if not method.federated and method.base not in BASELINES_TRAINED:
            continue
        state = algorithm_of(experiment, method, site.tuned.layout).init(site.tuned.start)
        slots = 1 + sum(value.numel() for value in state.slots.values()) / max(1, site.tuned.layout.size)
        total += int(CHECKPOINTS * slots * values * (clients if method.base == "local" else 1))
        personal = site.method(name).stages[-1].parts.personal.count
        total += 2 * 4 * personal * clients if method.federated else 0
    return total + values * (experiment.exported is not None)


def _seconds(
    experiment: Experiment,
    site: Site,
    data: DataSet,
    plan: Plan,
    class_of: dict[int, ClientClass],
    training: float,
    speed: float,
) -> dict[str, float]:
    """Return the wall time by kind, given that of training."""
    vlm = site.tuned.vlm
    sizes = step_sizes(vlm, adapter_values(site))
    forwards, trained = 0, trainings_of(experiment)
    for name in experiment.methods:
        method = experiment.method(name)
        if name not in trained and not any(parts_of_kind(experiment, method, "mix")):
            continue  # models that answered before
        passes = parts = len(slices_of(data.test)) if data.test else 0
        if method.federated or method.base in BASELINES_TRAINED:
            every, models = experiment.evaluate.every, _models(experiment, site, name)
            passes = models * (parts + ((experiment.train.rounds - 1) // every if every else 0))
            passes += parts if method.federated and models > 1 else 0  # the shared model besides
        forwards += passes
    tokens = max((one.tokens for one in class_of.values()), default=1)
    encoder = sum(
        value.numel()
        for part, names in vlm.family.parts.split(n for n, _ in vlm.model.named_parameters()).items()
        if part == "encoder"
        for value in map(vlm.model.get_parameter, names)
    )
    images = len({image.key for example in data.examples for image in example.pictures})
    places = max(map(prod, vlm.memo.known_grids.values()), default=1)
    return {
        "features": images * encoder * places / (speed * SLOWER),
        "training": training,
        "evaluation": forwards * len(data.test) * sizes.weights * tokens / (speed * SLOWER),
    }


def _training_seconds(
    experiment: Experiment, site: Site, class_of: dict[int, ClientClass]
) -> dict[int | None, float]:
    """Return the time that the clients of each class train, by its largest client; None is for data in one place.

    Processes share the machine's threads, so they make a round no faster here.
    """
    seconds = dict[int | None, float]()
    for name in trainings_of(experiment):
        method = experiment.method(name)
        if not method.federated and method.base not in BASELINES_TRAINED:
            continue
        local = site.method(name)
        pooled = sum(profile.examples for profile in local.profiles) if method.base == "centralized" else None
        slowest = max(one.step_seconds for one in class_of.values())
        begun = begins_as(experiment, name)
        shared = 0 if begun is None else len(site.method(begun).stages)
        for number, clients in _cohorts(experiment, site, name):
            if number < shared:
                continue
            settings = local.stages[number].settings
            for client in clients if pooled is None else ():
                one = class_of[client]
                steps = steps_of(settings, local.profiles[client].examples)
                seconds[one.largest] = seconds.get(one.largest, 0.0) + steps * one.step_seconds
            if pooled is not None:
                seconds[None] = seconds.get(None, 0.0) + steps_of(settings, pooled) * slowest
    return seconds


def _models(experiment: Experiment, site: Site, name: str) -> int:
    """Return the number of models that a method ends with."""
    method, local = experiment.method(name), site.method(name)
    own = any("own model" in experiment.entries[part].traits for part in method.parts)
    own = method.federated and (own or local.stages[-1].parts.personal.count > 0)
    return len(local.profiles) if own or method.base == "local" else 1
