"""What all methods of a run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedloom.client.site import Site
from fedloom.engine.rounds import Backend
from fedloom.experiment import Experiment
from fedloom.hashes import json_digest
from fedloom.models.fitness import Checked
from fedloom.models.load import Vlm, versions
from fedloom.progress import Progress
from fedloom.record import Record
from fedloom.scenarios.plan import Plan
from fedloom.scenarios.validation import Validation
from fedloom.tasks.base import Metric
from fedloom.tasks.verdict import Judge
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.strategy import Strategy
from fedloom.types import DataSet


@dataclass(frozen=True, eq=False)
class Setting:
    """What all methods of a run share: the server's folder and record, the site, and the data that scores need.

    Where clients are at sites elsewhere, `elsewhere` reaches them, and `site` is what the server builds for itself.
    """

    experiment: Experiment
    folder: Path
    data: DataSet
    plan: Plan
    site: Site
    strategy: Strategy
    record: Record
    progress: Progress
    identity: str
    judge: Judge | None = None
    twins: tuple[Tuned, ...] = ()
    validation: Validation | None = None
    elsewhere: Backend | None = None

    def of(self, name: str, client: int | None = None, stage: int | None = None) -> str:
        """Return the digest by which files of a method, or of one training of it, prove whose they are."""
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
        """Name → metric, of those that are computed besides fedloom's own."""
        return self.experiment.metrics(self.experiment.evaluate.metrics)

    def damaged(self, reason: str) -> None:
        """Record and show that a file is not used because it is damaged."""
        self.record.append("damaged", {"reason": reason})
        self.progress.message(f"{reason}; the run goes on from before it")

    def rounds(self, name: str) -> tuple[int, ...]:
        """Return the rounds of each stage of a method."""
        return tuple(one.rounds for one in self.site.stages(name))

    def stage_count(self, name: str) -> int:
        """Return the number of stages of a method: those of the strategy, and its own."""
        return len(self.rounds(name))


@dataclass(frozen=True)
class Elsewhere:
    """Sites on other machines.

    Attributes:
        open: What all methods share → the way to the sites, for as long as the run lasts.
        data: What the server knows of their data, and its own test part; None where the experiment's data are theirs.
    """

    open: Callable[[Setting], AbstractContextManager[Backend]]
    data: DataSet | None = None


def record_start(
    record: Record,
    experiment: Experiment,
    tuned: Tuned,
    check: Checked,
    seconds: float,
    validation: Validation | None,
) -> None:
    """Append what a run starts with: versions, model, data, and the `seconds` that encoding its images took."""
    import torch

    import fedloom

    vlm, data = tuned.vlm, check.data
    record.append(
        "start",
        {
            "digest": experiment.digest,
            "version": fedloom.__version__,
            "seed": experiment.seed,
            **versions(),
            "threads": torch.get_num_threads(),
            "model": vlm.digest,
            "trained": tuned.layout.size,
            **({} if vlm.family.images else {"images": False}),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    counts = {"name": data.name, "train": len(data.train), "test": len(data.test)}
    counts |= {} if validation is None else {"validation": len(validation.plan.indices)}
    record.append("data", {**counts, "rejected": [str(one) for one in data.rejected], **check.noted})
    record.append(
        "vision",
        {
            "pictures": len({image.key for one in data.examples for image in one.pictures}),
            "computed": check.computed,
            "seconds": seconds,
            "damaged": vlm.memo.store.damaged if vlm.memo.store else [],
        },
    )
