"""Check a server's requests against what the owner of a site allows."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from fedloom.config.allow_schema import Allow
from fedloom.experiment.experiment import Experiment
from fedloom.params import Layout, Part
from fedloom.system.errors import UserError
from fedloom.wire.messages import Assignment


def require_allowed(allow: Allow, experiment: Experiment) -> None:
    """Check the settings of an experiment.

    Raises:
        UserError: A setting exceeds what the owner allows; the message names it.
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


def require_reportable(allow: Allow, assignments: Sequence[Assignment], layout: Layout) -> None:
    """Check the parameters that assignments ask clients to report.

    Raises:
        UserError: The owner does not allow one of them to be reported.
    """
    for part in {assignment.up for assignment in assignments}:
        for name in parameter_names(part, layout):
            if not any(fnmatchcase(name, pattern) for pattern in allow.tensors):
                raise UserError(f"the owner of this site does not allow {name} to be reported")


def parameter_names(part: Part | None, layout: Layout) -> list[str]:
    """Return the names of the parameters with values in a part; None is everything."""
    if part is None:
        return list(layout.names)
    mask = part.mask
    return [name for name in layout.names if bool(mask[layout.slice(name)].any())]
