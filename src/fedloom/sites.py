"""Make a run's site in this process: its clients' examples, prompts, rules and memory, from the experiment and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedloom.algorithms.base import Budget, FederatedAlgorithm
from fedloom.algorithms.compose import budgets, compose, made, rehearse
from fedloom.algorithms.rule import Final
from fedloom.client.evaluate import render
from fedloom.client.memory import Files
from fedloom.client.site import CLIENTS_HELD, Asked, Local, Profile, Profiles, Question, Site
from fedloom.experiment import Experiment
from fedloom.measure import SLICES
from fedloom.methods import Method
from fedloom.params import Layout, Params, Part
from fedloom.scenarios.plan import Plan, Share, pooled
from fedloom.scenarios.validation import Validation
from fedloom.tasks import PROMPTS
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.parts import Parts, parts_of
from fedloom.tuning.strategy import Strategy
from fedloom.tuning.svd import svd_start
from fedloom.types import Conversation, DataSet, Presence
from fedloom.wire import FP32, Codecs

if TYPE_CHECKING:
    from fedloom.sections import Train

V = TypeVar("V")


def make_site(
    experiment: Experiment,
    data: DataSet,
    plan: Plan,
    tuned: Tuned,
    strategy: Strategy,
    folder: Path,
    validation: Validation | None = None,
) -> Site:
    """Make a site of all clients of a plan.

    Args:
        experiment: Every choice.
        data: The examples.
        plan: Who holds what.
        tuned: The model with the adapters that the strategy trains.
        strategy: The stages.
        folder: The folder of the clients' memories, which has one folder for each method.
        validation: The examples that are kept out of training for choices, if any.
    """
    for name in experiment.methods:  # what does not fit the model is found before the first method trains
        _with_layout(rehearse, experiment, experiment.method(name), tuned.layout)
    together = cache(partial(pooled, plan))

    @cache
    def local(name: str) -> Local:
        method = experiment.method(name)
        held = together() if method.base == "centralised" else plan
        parts = [
            parts_of(tuned.layout, strategy, stage, alone=not method.federated)
            for stage in range(len(strategy))
        ]
        final, algorithm = final_of(experiment, method), algorithm_of(experiment, method, tuned.layout)
        return Local(
            algorithm.local,
            STARTS[experiment.entries[method.composed[0]].start](tuned),
            [*parts, *([_kept(parts[-1])] if final else [])],
            Profiles(len(held.clients), partial(_profile, data, held)),
            _conversations(experiment, data, held, method),
            [_settings_of(experiment.train, final)] if final else [],
            budget_of(experiment, method, tuned.layout),
            algorithm.second,
            algorithm.exchanges,
            codecs_of(experiment, method),
        )

    def asked(question: Question) -> Asked:
        clause = clause_of(experiment, experiment.method(question.method))
        if question.test == "test":
            return Asked(data.test, [SLICES[question.slice]] * len(data.test), clause)
        assert validation is not None
        share = validation.share(question.client)
        examples = [validation.examples[index] for index in share.indices.tolist()]
        return Asked(examples, _presence(share), clause)

    settings = [
        experiment.train.model_copy(update={"rounds": rounds}) for rounds in rounds_of(experiment, strategy)
    ]
    return Site(tuned, settings, experiment.seed, local, Files(folder), asked, experiment.evaluate)


def rounds_of(experiment: Experiment, strategy: Strategy) -> tuple[int, ...]:
    """Return the rounds of each stage of a strategy."""
    given, total, count = experiment.strategy.stage_rounds, experiment.train.rounds, len(strategy)
    return given or tuple(total * (k + 1) // count - total * k // count for k in range(count))


def algorithm_of(
    experiment: Experiment, method: Method, layout: Layout, stage: int = 0
) -> FederatedAlgorithm:
    """Put a method's algorithm together for a stage; baselines train with plain FedAvg over their one client."""
    return _with_layout(compose, experiment, method, layout, stage)


def budget_of(experiment: Experiment, method: Method, layout: Layout) -> Budget:
    """Return what each client of a method holds, trains and reports."""
    return _with_layout(budgets, experiment, method, layout)


def _with_layout(
    make: Callable[..., V], experiment: Experiment, method: Method, layout: Layout, stage: int = 0
) -> V:
    given = replace(experiment.given, layout=layout, stage=stage)
    return make(method.composed, given, experiment.arguments_of(method), experiment.entries)


def codecs_of(experiment: Experiment, method: Method) -> Codecs:
    """Return how a method's messages are written; baselines send nothing, so they lose nothing."""
    chosen = experiment.communication
    return Codecs(chosen.up, chosen.down, chosen.feedback) if method.federated else FP32


def final_of(experiment: Experiment, method: Method) -> Final | None:
    """Return the stage after the last round that a method has, or None."""
    return next(_of_kind(experiment, method, "stage"), None)


def _settings_of(train: Train, final: Final) -> Train:
    """Return how clients train in the final stage: all of them, for one round."""
    rate = {"lr": train.lr * final.rate, "schedule": "constant", "epochs": final.epochs}
    return train.model_copy(update={**rate, "rounds": 1, "cohort": None})


def _kept(parts: Parts) -> Parts:
    """Return the parts of a stage of which nothing is reported: what clients train stays with them."""
    return Parts(parts.down, Part(parts.up.size, ()), parts.down | parts.trained, parts.trained)


def clause_of(experiment: Experiment, method: Method) -> str | None:
    """Return what a method's prompts say of an example's modalities; None names those that are present."""
    return PROMPTS[next(_of_kind(experiment, method, "prompt"), experiment.evaluate.prompt)]


def _of_kind(experiment: Experiment, method: Method, kind: str) -> Iterator[Any]:
    """Make the parts of a method that are of one kind."""
    return made(method.parts, kind, experiment.given, experiment.arguments, experiment.entries)


def _profile(data: DataSet, plan: Plan, client: int) -> Profile:
    """Return a client's profile: how many examples it holds, and of which modalities."""
    share, train = plan.clients[client], data.train
    return Profile(
        len(share.indices),
        any(seen and train[k].pictures for k, seen in zip(share.indices, share.image, strict=True)),
        any(seen and train[k].text for k, seen in zip(share.indices, share.text, strict=True)),
    )


def _presence(share: Share) -> list[Presence]:
    """Return the modalities of each of a client's examples."""
    return [Presence(bool(i), bool(t)) for i, t in zip(share.image, share.text, strict=True)]


STARTS: dict[str, Callable[[Tuned], Params]] = {"loaded": lambda tuned: tuned.start, "svd": svd_start}
"""Where the first round starts, by the `start` of an algorithm's entry."""


def _conversations(
    experiment: Experiment, data: DataSet, plan: Plan, method: Method
) -> Callable[[int], Sequence[Conversation]]:
    """Return a function that renders a client's examples with the modalities that it holds and the method's prompt."""

    @lru_cache(maxsize=CLIENTS_HELD)
    def conversations(client: int) -> list[Conversation]:
        share = plan.clients[client]
        examples = [data.train[index] for index in share.indices]
        return render(
            examples, _presence(share), experiment.evaluate.answer, clause=clause_of(experiment, method)
        )

    return conversations
