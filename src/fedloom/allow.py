"""What the owner of a site allows: a file `allow.yaml` that bounds what a server may ask for.

    tensors: ["llm/*"]        # names of parameters that may be reported, with * for any text
    rounds: 50                # most rounds of a run
    smallest_batch: 8         # smallest local batch: updates of fewer examples say more about each
    metrics: [accuracy]       # scores that may leave; empty for none
    replies: false            # whether answers to single examples may leave

Whatever is left out has the value of `Allow`'s fields. A request that goes beyond is refused, with a reason that the
server records.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import Field

from fedloom.document import MAX_BYTES, read
from fedloom.experiment import Experiment
from fedloom.messages import Assignment
from fedloom.mistakes import resolve
from fedloom.params import Layout, Part
from fedloom.record import read_text
from fedloom.sections import Count, Flag, Section, Text
from fedloom.types import UserError


class Allow(Section):
    """What a server may ask of a site."""

    tensors: tuple[Text, ...] = Field(default=("*",), description="Names of parameters that may be reported.")
    rounds: Count | None = Field(default=None, description="Most rounds of a run; null for any number.")
    smallest_batch: Count = Field(default=1, description="Smallest local batch.")
    metrics: tuple[Text, ...] | None = Field(default=None, description="Scores that may leave; null for all.")
    replies: Flag = Field(default=False, description="Whether answers to single examples may leave.")


def read_allow(path: Path | None) -> Allow:
    """Read a site owner's file.

    Args:
        path: The file; None, or one that is not there, allows what `Allow` does by itself.

    Raises:
        UserError: Every mistake in it, one a line.
    """
    if path is None:
        return Allow()
    text = read_text(path, MAX_BYTES)
    return resolve(Allow, read(text, str(path))) if text.strip() else Allow()


def require_allowed(allow: Allow, experiment: Experiment) -> None:
    """Check what an experiment asks for.

    Raises:
        UserError: It goes beyond what the owner allows; beyond what.
    """
    train = experiment.train
    rounds = sum(experiment.strategy.stage_rounds or (train.rounds,))
    if allow.rounds is not None and rounds > allow.rounds:
        raise UserError(f"the owner of this site allows {allow.rounds} rounds, and the run has {rounds}")
    if train.batch_size < allow.smallest_batch:
        raise UserError(
            f"the owner of this site allows local batches of {allow.smallest_batch} examples and more, and the run has "
            f"train.batch_size {train.batch_size}"
        )


def require_reported(allow: Allow, assignments: Sequence[Assignment], layout: Layout) -> None:
    """Check which parameters assignments ask clients to report.

    Raises:
        UserError: One is none that the owner allows.
    """
    for part in {one.up for one in assignments}:
        for name in reported(part, layout):
            if not any(fnmatchcase(name, pattern) for pattern in allow.tensors):
                raise UserError(f"the owner of this site does not allow {name} to be reported")


def reported(part: Part | None, layout: Layout) -> list[str]:
    """Return the names of the parameters of which a part holds any value; None is everything."""
    if part is None:
        return list(layout.names)
    mask = part.mask
    return [name for name in layout.names if bool(mask[layout.slice(name)].any())]
