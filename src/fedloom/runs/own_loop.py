"""Open the clients of an experiment for a training loop of one's own; see docs/own-loop.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedloom.algorithms.algorithm import FederatedAlgorithm, ServerState
from fedloom.client.client_memory import InMemory
from fedloom.client.site import Profile, Question, Site
from fedloom.engine.admission import Admission
from fedloom.engine.client_sampling import Schedule, draw_cohort
from fedloom.engine.in_process import InProcess
from fedloom.engine.rounds import Training, TrainingState, admission_of, assignments_of
from fedloom.experiment.experiment import Experiment
from fedloom.params import Params
from fedloom.runs.modality_slices import SLICES
from fedloom.runs.run_setup import open_site, stages_of
from fedloom.runs.site_setup import algorithm_of, codecs_of
from fedloom.runs.train_method import sent_and_reported_parts
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.tasks.score_answers import score
from fedloom.types import Broadcast
from fedloom.wire.messages import Answer

NOTHING_KEPT: Mapping[int, int] = {}


@dataclass(frozen=True, eq=False)
class Clients:
    """The clients of an experiment, with their data, the base model and the test set, for one method.

    Nothing is remembered from call to call but what clients themselves keep.

    Attributes:
        experiment: The experiment.
        method: The method, whose prompts, local rule and trainable parameters the clients have.
        server: The method's algorithm: `server.init(params)`, `server.broadcast(state)` and `server.apply(state, updates)`.
        start: The parameters of the first round.
        rounds: Number of rounds that the experiment asks for, by which learning rates are scheduled.
        profiles: What each client holds, by its number.
    """

    experiment: Experiment
    method: str
    server: FederatedAlgorithm
    start: Params
    rounds: int
    profiles: Sequence[Profile]
    _site: Site

    def cohort(self, round: int) -> Sequence[int]:
        """Return the clients that `fedloom.run` lets train in a round, counted from 0, in ascending order."""
        return draw_cohort(self._schedule, round)

    def train(
        self,
        round: int,
        sent: Params | Broadcast,
        clients: Sequence[int] | None = None,
        memory: Mapping[int, int] = NOTHING_KEPT,
    ) -> Iterator[Answer]:
        """Let clients train, and yield the update of each, or `Missing` with the reason why there is none.

        Args:
            round: Number of the round, from 0; it names the random streams of the clients.
            sent: The global parameters, or what `server.broadcast` returns.
            clients: The clients, whose answers come in this order; None for the `cohort` of the round.
            memory: Client → the last round after which what it keeps was accepted. Only for methods whose clients keep
                something between rounds; see `Admission.clients_with_memory`.
        """
        chosen = self.cohort(round) if clients is None else clients
        if wrong := [one for one in chosen if not 0 <= one < len(self.profiles)]:
            raise UserError(
                f"clients: there is no client {wrong[0]}; there are 0 to {len(self.profiles) - 1}"
            )
        training = self._training(round, sent, (), memory)
        rows = self.experiment.engine.side_by_side
        backend = InProcess(self._site, 1 if rows == "auto" else rows)
        return backend.train(assignments_of(training, chosen), Clock())

    def admission(self, round: int, sent: Params | Broadcast, norms: Sequence[float] = ()) -> Admission:
        """Return the admission of a round: `admit(answers)` yields the updates that pass all checks of `fedloom.run`.

        Afterwards `refused` and `missing` have the reasons for other clients, `norms` what the next round's admission takes, and
        `clients_with_memory` the clients that keep something of this round.

        Args:
            round: Number of the round.
            sent: What `train` sent.
            norms: The `norms` of the admission of the round before.
        """
        return admission_of(self._training(round, sent, norms, NOTHING_KEPT))

    def evaluate(
        self,
        params: Params,
        part: str = "both",
        *,
        client: int | None = None,
        memory: Mapping[int, int] = NOTHING_KEPT,
    ) -> dict[str, Any]:
        """Return the scores of a model on the test set, as in `result.json`.

        Args:
            params: The global parameters.
            part: The modalities that are shown: "both", "image" or "text".
            client: The client whose own model or personal parameters are used; None for the global model.
            memory: See `train`.

        Raises:
            UserError: There is no such slice or client.
        """
        if part not in SLICES:
            raise UserError(f"part: there is no slice {part!r}; there are {', '.join(SLICES)}")
        if client is not None and not 0 <= client < len(self.profiles):
            raise UserError(f"client {client}: there are clients 0 to {len(self.profiles) - 1}")
        since = -1 if client is None else memory.get(client, -1)
        question = Question(self.method, 0, params, client, since, slice=part)
        test = self._site.examples_of(question).examples
        (answers,) = self._site.answer([question])
        return score(test, answers, self.experiment.metrics(self.experiment.evaluate.metrics))

    @property
    def _schedule(self) -> Schedule:
        train = self._site.method(self.method).stages[0].settings
        numbers = range(len(self.profiles))
        return Schedule(train.rounds, numbers, train.cohort, self.experiment.seed, train.sampler)

    def _training(
        self, round: int, sent: Params | Broadcast, norms: Sequence[float], memory: Mapping[int, int]
    ) -> Training:
        """Return a round as the engine's value, from which it makes assignments and bounds of updates."""
        broadcast = sent if isinstance(sent, Broadcast) else Broadcast(sent)
        local = self._site.method(self.method)
        down, up = sent_and_reported_parts(
            self.experiment, self.start.layout, self.profiles, local.stages[0].parts, local.budget
        )
        kept = {client: (last,) for client, last in memory.items()}
        return Training(
            self.method,
            self.server._replace(broadcast=lambda _: broadcast),
            TrainingState(ServerState(broadcast.params, round), kept, tuple(norms)),
            self._schedule,
            self.profiles,
            local.stages[0].settings,
            self.experiment.admission,
            down=down,
            up=up,
            scale=local.budget.scale,
            codecs=codecs_of(self.experiment, self.experiment.method(self.method)),
        )


@contextmanager
def open_clients(experiment: Experiment, method: str | None = None) -> Iterator[Clients]:
    """Load data and model and yield the clients; see `fedloom.open_clients`."""
    name = experiment.exported if method is None else method
    federated = experiment.federated_methods
    if name not in federated:
        advice = f"choose one of {', '.join(federated)}" if federated else "none of its methods is"
        raise UserError(f"method: {name!r} is no federated method of this experiment; {advice}")
    if len(stages_of(experiment)) > 1:
        raise UserError(
            f"strategy: {experiment.strategy.name} has several stages; a loop of one's own has one"
        )
    with open_site(experiment, Path()) as opened:
        site = replace(opened, memory=InMemory())
        local = site.method(name)
        if len(local.stages) > 1:
            raise UserError(f"method: {name} adds a stage of its own; a loop of one's own has one")
        yield Clients(
            experiment,
            name,
            algorithm_of(experiment, experiment.method(name), local.start.layout),
            local.start,
            local.stages[0].settings.rounds,
            local.profiles,
            site,
        )
