"""How clients choose their own answers: the parts of a method that change options' probabilities, applied to a client's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedloom.algorithms.own_answers import Known, OwnAnswers
from fedloom.experiment.experiment import Experiment
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
