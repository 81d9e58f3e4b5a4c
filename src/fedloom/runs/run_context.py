"""What all methods of a run share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedloom.client.site import Site
from fedloom.engine.federation import Federation
from fedloom.engine.gpu_processes import GpuProcesses
from fedloom.engine.ray_actors import Actors
from fedloom.engine.rounds import Backend
from fedloom.experiment.experiment import Experiment
from fedloom.models.load_model import Vlm
from fedloom.run_log import RunLog
from fedloom.scenarios.plan import Plan
from fedloom.scenarios.validation_part import Validation
from fedloom.system.file_hashes import json_digest
from fedloom.system.progress import Progress
from fedloom.tasks.llm_judge import Judge
from fedloom.tasks.score_answers import Answers
from fedloom.tasks.task import Metric
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.strategies import Strategy
from fedloom.types import DataSet


@dataclass(frozen=True, eq=False)
class RunContext:
    """The values that all methods of a run share: the server's folder and record, the site, and the data for scores.

    If clients are at sites on other machines, `remote` reaches them, and `site` is the one that the server builds itself.
    `answered` holds answers to the test set by models that other methods ask too; they change no result.
    """

    experiment: Experiment
    folder: Path
    data: DataSet
    plan: Plan
    site: Site
    strategy: Strategy
    record: RunLog
    progress: Progress
    identity: str
    judge: Judge | None = None
    validation: Validation | None = None
    actors: Actors | None = None
    gpus: GpuProcesses | None = None
    remote: Backend | None = None
    answered: dict[Hashable, Answers] = field(default_factory=dict[Hashable, Answers])

    @property
    def sites(self) -> Federation | None:
        """The sites on other machines if they bring data of their own, else None."""
        return self.remote if isinstance(self.remote, Federation) and self.remote.own_data else None

    def of(self, name: str, client: int | None = None, stage: int | None = None) -> str:
        """Return the digest that files of a method, or of one training of it, carry as proof of their origin."""
        return json_digest([self.identity, name, client, stage])

    @property
    def tuned(self) -> Tuned:
        """The model with its adapters."""
        return self.site.tuned

    @property
    def vlm(self) -> Vlm:
        """The model."""
        return self.tuned.vlm

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Name → metric, for the metrics besides fedloom's own."""
        return self.experiment.metrics(self.experiment.evaluate.metrics)

    def damaged(self, reason: str) -> None:
        """Record and show that a file is not used because it is damaged."""
        self.record.append("damaged", {"reason": reason})
        self.progress.message(f"{reason}; the run goes on from before it")

    def rounds(self, name: str) -> tuple[int, ...]:
        """Return the rounds of each stage of a method."""
        return tuple(stage.settings.rounds for stage in self.site.method(name).stages)

    def stage_count(self, name: str) -> int:
        """Return the number of stages of a method: those of the strategy, and its own."""
        return len(self.rounds(name))


@dataclass(frozen=True)
class RemoteSites:
    """Sites on other machines.

    Attributes:
        connect: Run context → the backend that reaches the sites.
        data: What the server knows about their data, with its own test part; None if the experiment's data are theirs.
    """

    connect: Callable[[RunContext], Backend]
    data: DataSet | None = None
