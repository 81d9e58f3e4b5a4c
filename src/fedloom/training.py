"""Train methods of runs: their rounds, their commits, their learning curves.

A method asks for its trainings and does not drive them itself, so that methods of a run, and those of several runs
over the same model, can be trained in step; one by itself is the case of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from fedloom.algorithms import configured, make
from fedloom.algorithms.base import FederatedAlgorithm, with_rule
from fedloom.algorithms.wrap import adaptive
from fedloom.client.evaluate import render
from fedloom.client.train import learning_rate
from fedloom.courses import Course, End
from fedloom.engine.fit import copyable, cores
from fedloom.engine.rounds import Run, Schedule, Standing
from fedloom.engine.store import commit, last_commit, opened
from fedloom.experiment import Experiment
from fedloom.hashes import json_digest
from fedloom.measure import answer_slice, slices_of
from fedloom.methods import Method
from fedloom.models.load import Vlm
from fedloom.params import Params
from fedloom.progress import Progress
from fedloom.record import Clock, Record
from fedloom.scenarios.plan import Plan, Share
from fedloom.tasks import PROMPTS
from fedloom.tasks.scoring import Judged, score
from fedloom.tasks.verdict import Judge
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.tuning.masks import shared_mask, trained_mask
from fedloom.tuning.strategy import Strategy
from fedloom.tuning.svd import svd_start
from fedloom.types import Conversation, DataSet, Presence, UserError

CLIENTS_HELD = 1024
"""Clients whose rendered examples are kept from round to round."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What all methods of a run share."""

    experiment: Experiment
    folder: Path
    data: DataSet
    plan: Plan
    tuned: Tuned
    stages: Strategy
    record: Record
    progress: Progress
    identity: str
    judge: Judge | None = None
    twins: tuple[Tuned, ...] = ()

    def of(self, name: str, client: int | None = None, stage: int | None = None) -> str:
        """Return what names a method of this run, or one training of it, so that no other's files pass for its own."""
        return json_digest([self.identity, name, client, stage])

    @property
    def vlm(self) -> Vlm:
        """The model."""
        return self.tuned.vlm

    def damaged(self, reason: str) -> None:
        """Write down, and show, that a file is not used because it is damaged."""
        self.record.append("damaged", {"reason": reason})
        self.progress.message(f"{reason}; the run goes on from before it")

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds of each stage of the strategy."""
        given, total, count = (
            self.experiment.strategy.stage_rounds,
            self.experiment.train.rounds,
            len(self.stages),
        )
        return given or tuple(total * (k + 1) // count - total * k // count for k in range(count))


def algorithm_of(setting: Setting, method: Method) -> FederatedAlgorithm:
    """Make a method's algorithm; references train with plain FedAvg over their one client."""
    base = method.base if method.federated else "fedavg"
    arguments = setting.experiment.arguments(base) if method.federated else {}
    algorithm = make(base, len(setting.plan.clients), arguments)
    if "adaptive" in method.modifiers:
        rule = partial(adaptive, setting.tuned.layout)
        chosen = setting.experiment.adaptive.model_dump()
        algorithm = with_rule(algorithm, configured("algorithms.adaptive", rule, chosen))
    return algorithm


def _start(tuned: Tuned, method: Method) -> Params:
    """Return what a method's first round broadcasts: YOCO's adapters come from the weights they adapt."""
    return svd_start(tuned) if method.base == "yoco" else tuned.start


def conversations_of(setting: Setting, share: Share, method: Method) -> list[Conversation]:
    """Render a client's examples, showing what it holds, with the method's prompt."""
    examples = [setting.data.train[index] for index in share.indices]
    presence = [Presence(bool(i), bool(t)) for i, t in zip(share.image, share.text, strict=True)]
    answer = setting.experiment.evaluate.answer
    return render(examples, presence, answer, clause=_clause(setting, method))


def _clause(setting: Setting, method: Method) -> str | None:
    experiment = setting.experiment
    return PROMPTS[experiment.prompt.variant if "prompt" in method.modifiers else experiment.evaluate.prompt]


@dataclass(frozen=True, eq=False)
class Training:
    """What a method asks for: one stage of it, trained to its end.

    Attributes:
        setting: The run it belongs to.
        label: What it is called while it goes on.
        runs: Makes its trainings, each from its last commit if there is one.
    """

    setting: Setting
    label: str
    runs: Callable[[], list[Run]]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training came to.

    Attributes:
        ended: Where its runs stand, or what stopped one of them.
        seconds: Its own share of the time.
    """

    ended: list[Standing] | Exception
    seconds: float


Steps = Course[Training, Trained, End]
"""A piece of work that has trainings done for it."""


def train_method(
    setting: Setting, method: Method, name: str, plan: Plan, servers: Sequence[tuple[int | None, range]]
) -> Steps[list[Standing]]:
    """Ask for the rounds of one or several trainings, stage by stage.

    Args:
        setting: What all methods share.
        method: The method.
        name: Its name.
        plan: Who holds what.
        servers: For each training the client that trains alone, or None, and the training's clients.

    Returns:
        Where they stand at the end, in the order of `servers`.

    Raises:
        UserError: One of them cannot go on.
    """

    @lru_cache(maxsize=CLIENTS_HELD)
    def conversations(client: int) -> list[Conversation]:
        return conversations_of(setting, plan.clients[client], method)

    def runs(number: int, standings: Sequence[Standing]) -> list[Run]:
        return [
            _training(setting, method, name, conversations, server, number, before)
            for server, before in zip(servers, standings or [None] * len(servers), strict=True)
        ]

    standings: list[Standing] = []
    for number in range(len(setting.stages)):
        label = f"{name}, stage {number + 1}" if len(setting.stages) > 1 else name
        (trained,) = yield [Training(setting, label, partial(runs, number, standings))]
        if isinstance(trained.ended, Exception):
            raise trained.ended
        standings = trained.ended
    return standings


def _training(
    setting: Setting,
    method: Method,
    name: str,
    conversations: Callable[[int], Sequence[Conversation]],
    server: tuple[int | None, range],
    number: int,
    before: Standing | None,
) -> Run:
    """Set up one stage of one training: from its last commit, from the stage before, or from the start."""
    (alone, clients), layout, stage = server, setting.tuned.layout, setting.stages[number]
    last = number == len(setting.stages) - 1
    folder = setting.folder / "methods" / name / ("" if alone is None else f"client-{alone}")
    folder = folder if last else folder / f"stage-{number + 1}"
    algorithm = algorithm_of(setting, method)
    train = setting.experiment.train.model_copy(update={"rounds": setting.rounds[number]})
    seed, done_before = setting.experiment.seed, sum(setting.rounds[:number])
    schedule = Schedule(train.rounds, clients, train.cohort, seed, train.sampler)
    folder.mkdir(parents=True, exist_ok=True)  # only here: a folder that is removed later stays so
    of = setting.of(name, alone, number)
    standing = last_commit(folder, layout, setting.damaged, of)
    if standing is None and before is None:
        standing = Standing(algorithm.init(_start(setting.tuned, method)))
    elif standing is None and before is not None:  # a stage has a fresh server; what was sent adds up
        params = algorithm.broadcast(before.state).params
        standing = Standing(algorithm.init(params), up=before.up, down=before.down, seconds=before.seconds)
    assert standing is not None
    # Who trains alone, or on all data, has nobody to keep anything from.
    shared = shared_mask(layout, stage) if method.federated else None

    def committed(now: Standing, log: dict[str, Any]) -> None:
        done, every = now.state.round, setting.experiment.evaluate.every
        lr = learning_rate(train, done - 1)
        row = {"method": name, "client": alone, "lr": lr, **log, "round": log["round"] + done_before}
        setting.record.append("round", row)
        final = last and done == schedule.rounds
        if every and alone is None and shared is None and not final and done % every == 0:
            full = slices_of(setting.data.test)[0]
            params = algorithm.broadcast(now.state).params
            answers_of(setting, {None: params}, method, name, done + done_before, full)
        commit(folder, now, setting.record.size, of)

    return Run(
        algorithm,
        standing,
        schedule,
        conversations,
        train,
        setting.experiment.gate,
        partial(opened, folder),
        committed,
        number,
        trained_mask(layout, stage),
        shared,
    )


def workers_of(setting: Setting) -> int:
    """Return how many processes may work at once; on an accelerator its devices do, and processes cannot.

    With compiled layers there is one: a copy would forget what it compiled.

    Raises:
        UserError: The experiment wants more than there are devices where a process cannot be copied.
    """
    chosen, devices = setting.experiment.engine.workers, len(setting.twins) + 1
    if setting.experiment.engine.compile:
        return 1
    if chosen == "auto":
        return cores(setting.tuned)
    if copyable(setting.tuned):
        return chosen
    if chosen > devices:
        raise UserError(
            "engine.workers: several processes need Linux and a model on the CPU, and several devices are not "
            f"here; set it to {devices}"
        )
    return 1


def answers_of(
    setting: Setting,
    models: Mapping[int | None, Params],
    method: Method,
    name: str,
    round: int,
    part: str,
) -> list[Judged]:
    """Answer the test set with one slice's evidence, with several models at once, and write the scores down.

    Args:
        setting: What all methods share.
        models: Parameters by the client they belong to, or None for the global model.
        method: The method.
        name: Its name.
        round: Rounds these models were trained for.
        part: The slice.
    """
    test, clock = setting.data.test, Clock()
    with side_by_side(setting.tuned, len(models)) as stack:
        for row, params in enumerate(models.values()):
            stack.write(params, row)
        judged = answer_slice(
            stack.vlm,
            stack.connects(len(models)),
            test,
            part,
            setting.experiment.evaluate,
            clause=_clause(setting, method),
            workers=workers_of(setting),
        )
    clock.lap("evaluate")
    for client, found in zip(models, judged, strict=True):
        setting.record.append(
            "evaluation",
            {
                "method": name,
                "client": client,
                "round": round,
                "slice": part,
                "examples": len(test),
                "seconds": clock.seconds["evaluate"] / len(models),
                "scores": score(test, found),
            },
        )
    return judged
