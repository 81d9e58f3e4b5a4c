"""Which values of the flat buffer a stage trains, which of them are exchanged, and where a client starts.

Shape legend: P trained values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.params import Layout, Params
from fedloom.tuning.strategy import Stage


def trained_mask(layout: Layout, stage: Stage) -> Tensor | None:
    """Return 1.0 for values that a stage trains and 0.0 for those it leaves, shape [P]; None where it trains all."""
    return _mask(layout, tuple(stage.train))


def shared_mask(layout: Layout, stage: Stage) -> Tensor | None:
    """Return 1.0 for values that are exchanged and 0.0 for personal ones, shape [P]; None where all are exchanged."""
    return _mask(layout, tuple({_part(name) for name in layout.names} - set(stage.personal)))


def _mask(layout: Layout, parts: tuple[str, ...]) -> Tensor | None:
    mask = layout.mask(lambda name: _part(name) in parts)
    return None if bool(mask.all()) else mask


def _part(name: str) -> str:
    return name.partition("/")[0]


def own_start(broadcast: Params, own: Tensor | None, shared: Tensor | None) -> Params:
    """Return what a client starts a round from: the broadcast where values are exchanged, its own elsewhere.

    Args:
        broadcast: What the server sent.
        own: What the client ended its last round with, shape [P], or None before its first.
        shared: Of `shared_mask`.
    """
    if own is None or shared is None:
        return broadcast
    return broadcast.with_flat(torch.where(shared.bool(), broadcast.flat, own))
