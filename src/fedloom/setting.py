"""What all methods of a run share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedloom.experiment import Experiment
from fedloom.hashes import json_digest
from fedloom.models.load import Vlm
from fedloom.progress import Progress
from fedloom.record import Record
from fedloom.scenarios.plan import Plan
from fedloom.scenarios.validation import Validation
from fedloom.tasks.verdict import Judge
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.strategy import Strategy
from fedloom.types import DataSet


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
    validation: Validation | None = None

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
