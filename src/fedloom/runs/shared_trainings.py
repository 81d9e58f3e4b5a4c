"""Which methods of an experiment have one training, or the beginning of one, in common, so that it runs once."""

from __future__ import annotations

from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import training_of


def trained_as(experiment: Experiment, name: str) -> str:
    """Return the method under whose name a method's training is kept, so that equal trainings run once.

    That is the method of the experiment with the same training and nothing after it, else the first one with the same training.
    Where rounds are chosen by validation scores, which depend on what comes after the training, every method trains itself.
    """
    if experiment.evaluate.round == "best":
        return name
    training = training_of(experiment.method(name), experiment.entries)
    methods = {other: experiment.method(other) for other in experiment.methods}
    alike = (other for other, one in methods.items() if training_of(one, experiment.entries) == training)
    return next((other for other, one in methods.items() if one == training), next(alike, name))


def begins_as(experiment: Experiment, name: str) -> str | None:
    """Return the method whose training is the beginning of another method's, so that it runs once; None if there is none.

    A method with a stage after the last round, such as `fedavg+finetune`, begins as the same method without it. Where models
    are evaluated or chosen during training, every method trains itself, since that differs by method.
    """
    training = training_of(experiment.method(name), experiment.entries)
    parts = tuple(part for part in training.parts if experiment.entries[part].kind != "stage")
    if parts == training.parts or experiment.evaluate.round == "best" or experiment.evaluate.every:
        return None
    without = training._replace(parts=parts)
    methods = {
        other: training_of(experiment.method(other), experiment.entries) for other in experiment.methods
    }
    return next((trained_as(experiment, other) for other, one in methods.items() if one == without), None)


def trainings_of(experiment: Experiment) -> list[str]:
    """Return the methods under whose names trainings are kept, so that each training is there once; see `trained_as`."""
    return [name for name in experiment.methods if trained_as(experiment, name) == name]


def asked_again(experiment: Experiment, name: str) -> bool:
    """Return whether other methods of an experiment are evaluated with the models of a method, too."""
    owner, entries = trained_as(experiment, name), experiment.entries
    others = [other for other in experiment.methods if other != name]
    parts = [part for other in others for part in experiment.method(other).parts]
    local = owner == "local" and any("local model" in entries[part].traits for part in parts)
    return local or any(trained_as(experiment, other) == owner for other in others)
