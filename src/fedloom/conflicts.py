"""Settings of an experiment that contradict each other: stages, compiled layers, validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedloom.mistakes import Conflict

if TYPE_CHECKING:
    from fedloom.experiment import Experiment


def stage_conflicts(experiment: Experiment) -> Iterator[Conflict]:
    """Find numbers of rounds that do not fit the stages of the strategy."""
    from fedloom.tuning.strategy import SEQUENCES

    name, given = experiment.strategy.name, experiment.strategy.stage_rounds
    stages = len(SEQUENCES[name])
    where = (("strategy", "name"),)
    if given is not None and len(given) != stages:
        message = f"strategy.stage_rounds needs one number for each of the {stages} stages of {name}, not {len(given)}"
        yield Conflict(("strategy", "stage_rounds"), message, where)
    if given is None and experiment.train.rounds < stages:
        message = f"train.rounds is {experiment.train.rounds}, but the strategy {name} has {stages} stages"
        yield Conflict(("train", "rounds"), message, where)


def aggregate_conflicts(experiment: Experiment) -> Iterator[Conflict]:
    """Find algorithms whose means are stated over the whole cohort, where only reporters are to count."""
    if experiment.aggregate.over == "cohort":
        return
    for name in experiment.methods:
        method = experiment.method(name)
        for part in method.composed if method.federated else ():
            if "whole vectors" in experiment.entries[part].traits:
                message = f"aggregate.over is reporters, but {part} is stated for whole vectors of the whole cohort; leave one of them out"
                yield Conflict(("aggregate", "over"), message, (("methods",),))


def compile_conflicts(experiment: Experiment) -> Iterator[Conflict]:
    """Find what cannot be done with compiled layers."""
    if not experiment.engine.compile:
        return
    workers, dropout, where = experiment.engine.workers, experiment.strategy.dropout, (("engine", "compile"),)
    if workers not in ("auto", 1):
        message = f"engine.workers is {workers}, but engine.compile needs 1: each copy would compile anew"
        yield Conflict(("engine", "workers"), message, where)
    if dropout:
        message = f"strategy.dropout is {dropout}, but engine.compile needs 0: named masks cannot be compiled"
        yield Conflict(("strategy", "dropout"), message, where)


def validation_conflicts(experiment: Experiment) -> Iterator[Conflict]:
    """Find a validation part that does not exist, and a best round that could not be found."""
    from fedloom.data import DATASETS, validates

    sets = experiment.datasets
    data, evaluate, path = experiment.data, experiment.evaluate, ("data", "validation")
    if data.validation == "published" and not validates(data.name, sets):
        known = ", ".join(name for name in DATASETS if validates(name) and name != "folder")
        message = (
            f"data.validation is published, but the data set {data.name} has no validation part of its owners; give a "
            f"share of each client's training examples, such as 0.1. One comes with {known}, and a folder of your own "
            "may hold validation.jsonl"
        )
        yield Conflict(path, message, (("data", "name"),))
    if evaluate.round == "best" and not data.validation:
        message = "evaluate.round is best, but data.validation is 0, so that only test scores could choose the round; set data.validation to a share such as 0.1"
        yield Conflict(("evaluate", "round"), message, (path,))
    if evaluate.round == "best" and not evaluate.every:
        message = "evaluate.round is best, but evaluate.every is 0, so that only the last round is evaluated"
        yield Conflict(("evaluate", "round"), message, (("evaluate", "every"),))
