"""Make a run's site in this process: its clients' examples, prompts, rules and memory, from the experiment and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedloom.algorithms.algorithm import Budget, FederatedAlgorithm
from fedloom.algorithms.compose import budgets, check_method, compose, make_parts
from fedloom.algorithms.local_rule import Final
from fedloom.client.client_memory import Files
from fedloom.client.site import (
    CLIENTS_HELD,
    Profile,
    Profiles,
    Question,
    QuestionExamples,
    Site,
    SiteMethod,
    SiteStage,
)
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import Method
from fedloom.params import Layout, Params, Part
from fedloom.runs.modality_slices import SLICES
from fedloom.scenarios.plan import Plan, Share, pooled
from fedloom.scenarios.validation_part import Validation
from fedloom.system.errors import UserError
from fedloom.tasks import PROMPTS
from fedloom.tasks.rendering import render
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.strategies import Strategy
from fedloom.tuning.strategy_parts import Parts, parts_of
from fedloom.tuning.svd_start import svd_start
from fedloom.types import Conversation, DataSet, Presence
from fedloom.wire.compression import FP32, Codecs

if TYPE_CHECKING:
    from fedloom.config.schema import Train

V = TypeVar("V")


def make_site(
    experiment: Experiment,
    data: DataSet,
    plan: Plan,
    tuned: Tuned,
    strategy: Strategy,
    folder: Path,
    validation: Validation | None = None,
    *,
    own_data: bool = False,
) -> Site:
    """Make a site of all clients of a plan.

    Args:
        experiment: Every choice.
        data: The examples.
        plan: The examples of each client.
        tuned: The model with the adapters that the strategy trains.
        strategy: The stages.
        folder: The folder of the clients' memories, which has one folder for each method.
        validation: The examples that are kept out of training for choices, if any.
        own_data: Whether clients are at sites that bring data of their own; a client that trains alone then does so there,
            and nothing of its model leaves.
    """
    for (
        name
    ) in experiment.methods:  # methods that do not fit the model are refused before the first one trains
        _with_layout(check_method, experiment, experiment.method(name), tuned.layout)
        personal_of(experiment, experiment.method(name), tuned.layout)
    together = cache(partial(pooled, plan))
    of_strategy = [
        experiment.train.model_copy(update={"rounds": rounds}) for rounds in rounds_of(experiment, strategy)
    ]

    @cache
    def method_of(name: str) -> SiteMethod:
        method = experiment.method(name)
        held = together() if method.base == "centralized" else plan
        alone, personal = not method.federated, personal_of(experiment, method, tuned.layout)
        stages = [
            SiteStage(settings, parts_of(tuned.layout, strategy, number, alone=alone, personal=personal))
            for number, settings in enumerate(of_strategy)
        ]
        if not method.federated and trains_at_sites(method, own_data=own_data):
            stages = [_alone(stage) for stage in stages]
        if (final := final_of(experiment, method)) is not None:
            # A client that trains alone has its model at its own server, which goes on from stage to stage.
            parts = stages[-1].parts if alone else _kept(stages[-1].parts)
            stages.append(SiteStage(_settings_of(experiment.train, final), parts, without_rule=True))
        algorithm = algorithm_of(experiment, method, tuned.layout)
        return SiteMethod(
            algorithm.local,
            STARTS[experiment.entries[method.composed[0]].start](tuned),
            stages,
            Profiles(len(held.clients), partial(_profile, data, held)),
            _conversations(experiment, data, held, method),
            budget_of(experiment, method, tuned.layout),
            algorithm.second,
            algorithm.exchanges,
            codecs_of(experiment, method),
        )

    def examples_of(question: Question) -> QuestionExamples:
        clause = clause_of(experiment, experiment.method(question.method))
        if question.test == "test":
            return QuestionExamples(data.test, [SLICES[question.slice]] * len(data.test), clause)
        assert validation is not None
        share = validation.share(question.client)
        examples = [validation.examples[index] for index in share.indices.tolist()]
        return QuestionExamples(examples, _presence(share), clause)

    return Site(tuned, experiment.training_seed, method_of, Files(folder), examples_of, experiment.evaluate)


def trains_at_sites(method: Method, *, own_data: bool) -> bool:
    """Return whether a method's clients train at their sites if these are on other machines.

    Args:
        method: The method.
        own_data: Whether sites bring data of their own; if not, the server has all data and trains baselines itself.
    """
    return method.federated or (own_data and method.base == "local")


def rounds_of(experiment: Experiment, strategy: Strategy) -> tuple[int, ...]:
    """Return the rounds of each stage of a strategy."""
    rounds, total, count = experiment.strategy.stage_rounds, experiment.train.rounds, len(strategy)
    return rounds or tuple(total * (k + 1) // count - total * k // count for k in range(count))


def algorithm_of(
    experiment: Experiment, method: Method, layout: Layout, stage: int = 0
) -> FederatedAlgorithm:
    """Compose a method's algorithm for a stage; baselines train with plain FedAvg over their one client."""
    return _with_layout(compose, experiment, method, layout, stage)


def budget_of(experiment: Experiment, method: Method, layout: Layout) -> Budget:
    """Return what each client of a method holds, trains and reports."""
    return _with_layout(budgets, experiment, method, layout)


def personal_of(experiment: Experiment, method: Method, layout: Layout) -> Part | None:
    """Return the values that each client of a method keeps to itself, besides those of the strategy; None for no others.

    Raises:
        UserError: They do not fit what the strategy trains.
    """
    chosen = next(parts_of_kind(experiment, method, "personal"), None)
    try:
        return None if chosen is None else chosen.part(layout)
    except ValueError as error:
        raise UserError(f"methods: {'+'.join(method.composed)}: {error}") from error


def _with_layout(
    make: Callable[..., V], experiment: Experiment, method: Method, layout: Layout, stage: int = 0
) -> V:
    given = replace(experiment.given, layout=layout, stage=stage)
    return make(method.composed, given, experiment.arguments_of(method), experiment.entries)


def codecs_of(experiment: Experiment, method: Method) -> Codecs:
    """Return the codecs of a method's messages; baselines send nothing, so they have the codecs that lose nothing."""
    chosen = experiment.communication
    return Codecs(chosen.up, chosen.down, chosen.feedback) if method.federated else FP32


def final_of(experiment: Experiment, method: Method) -> Final | None:
    """Return the stage that a method adds after the last round, or None."""
    return next(parts_of_kind(experiment, method, "stage"), None)


def _settings_of(train: Train, final: Final) -> Train:
    """Return the settings of the final stage, in which all clients train for one round."""
    rate = {"lr": train.lr * final.rate, "schedule": "constant", "epochs": final.epochs}
    return train.model_copy(update={**rate, "rounds": 1, "cohort": None})


def _kept(parts: Parts) -> Parts:
    """Return the parts of a stage from which nothing is reported, because what clients train stays with them."""
    return Parts(parts.down, Part(parts.up.size, ()), parts.down | parts.trained, parts.trained)


def _alone(stage: SiteStage) -> SiteStage:
    """Return a stage in which all clients train in every round, and nothing of their models is sent in either direction."""
    nothing, whole = Part(stage.parts.up.size, ()), Part.whole(stage.parts.up.size)
    parts = Parts(nothing, nothing, whole, stage.parts.trained)
    return SiteStage(stage.settings.model_copy(update={"cohort": None}), parts)


def clause_of(experiment: Experiment, method: Method) -> str | None:
    """Return the clause of a method's prompts about an example's modalities; None names those that are present."""
    return PROMPTS[next(parts_of_kind(experiment, method, "prompt"), experiment.evaluate.prompt)]


def parts_of_kind(experiment: Experiment, method: Method, kind: str) -> Iterator[Any]:
    """Make the parts of one kind that a method has."""
    return make_parts(method.parts, kind, experiment.given, experiment.arguments, experiment.entries)


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
"""`start` of an algorithm's entry → the function that returns the parameters of the first round."""


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
