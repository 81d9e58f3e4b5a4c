"""The values of the flat buffer that a strategy sends, trains and reports in each stage, and those that stay with clients."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from fedloom.params import Layout, Part
from fedloom.system.errors import UserError
from fedloom.tuning.strategies import Strategy


class Parts(NamedTuple):
    """The parts of one stage.

    Attributes:
        down: The part that is sent to a client: all that may differ from the start and is not personal, so that a client that
            first trains in a later stage has what was learned in earlier ones.
        up: The part that a client trains and reports.
        personal: The part that stays with each client, in this stage and earlier ones.
        trained: The part that a client trains: `up`, and the personal parameters of this stage.
    """

    down: Part
    up: Part
    personal: Part
    trained: Part


def parts_of(
    layout: Layout, strategy: Strategy, stage: int, *, alone: bool = False, personal: Part | None = None
) -> Parts:
    """Return the parts of a stage of a strategy.

    Args:
        layout: Names and shapes of all that the strategy trains.
        strategy: The stages.
        stage: Number of the stage, from 0.
        alone: Whether a client trains alone, or on all data pooled, so that nothing is personal.
        personal: Further values that stay with each client once they are trained; None for no others.

    Raises:
        UserError: Everything that the stage trains is personal, so nothing would be exchanged.

    Example:
        >>> from fedloom.tuning.strategies import LoRA, strategy
        >>> layout = Layout.of({"connector/w": (2,), "llm/q:lora_a": (3,)})
        >>> parts = parts_of(layout, strategy("share-connector", LoRA()), 0)
        >>> parts.up.stretches, parts.personal.stretches, parts.trained.is_whole
        (((0, 2),), ((2, 5),), True)
    """
    here, before = strategy[stage], strategy[: stage + 1]
    trained_so_far = {name for stage_before in before for name in stage_before.train}
    ever_personal = {name for stage_before in before for name in stage_before.personal if not alone}
    down, up, own, trained = (
        _part(layout, names)
        for names in (
            trained_so_far - ever_personal,
            set(here.train) - ever_personal,
            ever_personal,
            here.train,
        )
    )
    if personal is None:
        return Parts(down, up, own, trained)
    others, kept = personal.complement, personal & _part(layout, trained_so_far)
    if not (up & others).count:
        raise UserError(
            f"clients keep all that stage {stage + 1} of the strategy trains, so nothing is shared"
        )
    return Parts(down & others, up & others, own | kept, trained)


def part_named(layout: Layout, name: str) -> Part:
    """Return all values of one part of the model, such as the connector."""
    return _part(layout, (name,))


def _part(layout: Layout, names: Collection[str]) -> Part:
    return Part.of(layout.mask(lambda name: name.partition("/")[0] in names))
