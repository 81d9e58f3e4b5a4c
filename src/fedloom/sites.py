"""Make a run's site in this process: its clients' examples, prompts, rules and memory, from the experiment and its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path

from fedloom.algorithms import configured, make
from fedloom.algorithms.base import FederatedAlgorithm, with_rule
from fedloom.algorithms.wrap import adaptive
from fedloom.client.evaluate import render
from fedloom.client.memory import Files
from fedloom.client.site import CLIENTS_HELD, Asked, Local, Profile, Profiles, Question, Site
from fedloom.experiment import Experiment
from fedloom.measure import SLICES
from fedloom.methods import Method, parse_method
from fedloom.params import Layout, Params
from fedloom.scenarios.plan import Plan, Share, pooled
from fedloom.scenarios.validation import Validation
from fedloom.tasks import PROMPTS
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.parts import parts_of
from fedloom.tuning.strategy import Strategy
from fedloom.tuning.svd import svd_start
from fedloom.types import Conversation, DataSet, Presence


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
    together = cache(partial(pooled, plan))

    @cache
    def local(name: str) -> Local:
        method = parse_method(name)
        held = together() if method.base == "centralised" else plan
        return Local(
            algorithm_of(experiment, method, len(plan.clients), tuned.layout).local,
            _start(tuned, method),
            [
                parts_of(tuned.layout, strategy, stage, alone=not method.federated)
                for stage in range(len(strategy))
            ],
            Profiles(len(held.clients), partial(_profile, data, held)),
            _conversations(experiment, data, held, method),
        )

    def asked(question: Question) -> Asked:
        clause = clause_of(experiment, parse_method(question.method))
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


def algorithm_of(experiment: Experiment, method: Method, clients: int, layout: Layout) -> FederatedAlgorithm:
    """Make a method's algorithm; references train with plain FedAvg over their one client."""
    base = method.base if method.federated else "fedavg"
    arguments = experiment.arguments(base) if method.federated else {}
    algorithm = make(base, clients, arguments)
    if "adaptive" in method.modifiers:
        chosen = experiment.adaptive.model_dump()
        rule = configured("algorithms.adaptive", partial(adaptive, layout), chosen)
        algorithm = with_rule(algorithm, rule)
    return algorithm


def clause_of(experiment: Experiment, method: Method) -> str | None:
    """Return what a method's prompts say of an example's modalities; None names those that are present."""
    return PROMPTS[experiment.prompt.variant if "prompt" in method.modifiers else experiment.evaluate.prompt]


def _profile(data: DataSet, plan: Plan, client: int) -> Profile:
    """Return what is told of a client: how many examples it holds, and of which modalities."""
    share, train = plan.clients[client], data.train
    return Profile(
        len(share.indices),
        any(seen and train[k].pictures for k, seen in zip(share.indices, share.image, strict=True)),
        any(seen and train[k].text for k, seen in zip(share.indices, share.text, strict=True)),
    )


def _presence(share: Share) -> list[Presence]:
    """Return the modalities of each of a client's examples."""
    return [Presence(bool(i), bool(t)) for i, t in zip(share.image, share.text, strict=True)]


def _start(tuned: Tuned, method: Method) -> Params:
    """Return the parameters of a method's first round: YOCO's adapters come from the weights that they adapt."""
    return svd_start(tuned) if method.base == "yoco" else tuned.start


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
