"""How clients choose their own answers: the parts of a method that change options' probabilities, applied to a client's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedloom.algorithms.own_answers import Known, OwnAnswers
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import training_of
from fedloom.runs.site_setup import parts_of_kind
from fedloom.scenarios.plan import Plan
from fedloom.system.errors import UserError
from fedloom.tasks.multiple_choice import label_of
from fedloom.tasks.score_answers import Answers
from fedloom.types import DataSet, Example

Counts = Mapping[tuple[str, str], int]
"""(task, text of an option) → number of a client's training examples whose right answer it is."""


def own_answers_of(experiment: Experiment, name: str) -> list[OwnAnswers]:
    """Return the parts of a method that change its clients' own answers, in the order of its name."""
    return list(parts_of_kind(experiment, experiment.method(name), "answers"))


def label_counts(plan: Plan, train: Sequence[Example], client: int) -> Counts:
    """Count the right options of a client's training examples.

    Args:
        plan: The training examples of each client.
        train: The list that the plan's indices point into.
        client: The client's number.
    """
    examples = (train[index] for index in plan.clients[client].indices.tolist())
    return Counter(
        (example.task, example.options[label_of(example)]) for example in examples if example.options
    )


def choose_answers(
    parts: Sequence[OwnAnswers],
    counts: Counts,
    examples: Sequence[Example],
    answers: Answers,
    alone: Answers | None = None,
) -> Answers:
    """Return the answers that a client chooses itself.

    Args:
        parts: The changes of the probabilities, the first one first. Those that need the model that the client trains alone
            are left out where there are no answers of it.
        counts: The client's label counts.
        examples: The questions.
        answers: The answers of the client's model; those without probabilities stay as they are.
        alone: The answers of the model that the client trains alone.
    """
    used = [part for part in parts if alone is not None or not part.alone]
    labels, probabilities = list(answers.answers), list(answers.probabilities)
    for place, example in enumerate(examples):
        if (chances := probabilities[place]) is None:
            continue
        held = np.array([counts.get((example.task, option), 0) for option in example.options], np.int64)
        known = Known(held, None if alone is None else alone.probabilities[place])
        for part in used:
            chances = part.choose(chances, known)
        labels[place], probabilities[place] = int(chances.argmax()), chances
    return Answers(tuple(labels), tuple(probabilities), answers.replies, answers.answer_form)


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
    lone = owner == "local" and any("lone model" in entries[part].traits for part in parts)
    return lone or any(trained_as(experiment, other) == owner for other in others)


def require_options(experiment: Experiment, data: DataSet, message: Callable[[str], None]) -> None:
    """Check that the parts of an experiment's methods that change options' probabilities have options to change.

    Args:
        experiment: Every choice.
        data: The examples.
        message: Shows how many questions stay as they are.

    Raises:
        UserError: No test question has options.
    """
    entries = experiment.entries
    parts = [part for name in experiment.methods for part in experiment.method(name).parts]
    changing = dict.fromkeys(part for part in parts if entries[part].kind == "answers")
    if not changing or not data.test:
        return
    names, free = " and ".join(changing), sum(not example.options for example in data.test)
    if free == len(data.test):
        raise UserError(
            f"methods: {names} only changes which option a client chooses, and no test question of {data.name} has options; "
            "nothing takes its place for captions, boxes and open questions, so leave it out"
        )
    if free:
        message(
            f"{names}: {free:,} of {len(data.test):,} test questions have no options; their answers stay as they are"
        )
