"""Compute the decoder's last layer only at the positions whose output is used.

Only attention mixes positions, and no layer follows the last one. So only those of its states matter that predict a
token of an answer: keys and values are computed everywhere; queries, the output of attention and the feed-forward part
only at these positions. Loss and gradients do not change; with short answers after long prompts, most of the
layer's computation is saved.

Shape legend: K clients side by side, B conversations of each, L tokens, n positions of a client, I and O a module's
inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from fedloom.models.load_model import Vlm
from fedloom.models.replaced_forwards import Forward, replaced_forwards

ATTENTION = ("self_attn", "cross_attn")
QUERIES = ("q_proj", "o_proj", "dense")
"""Modules of attention that compute each position of the queries independently."""
FEED_FORWARD = ("mlp", "feed_forward")


@contextmanager
def last_layer_at(vlm: Vlm, positions: Tensor) -> Iterator[None]:
    """Compute the decoder's last layer only at some positions inside this block.

    Its output at other positions has no meaning. The backward pass may come after the block. If an adapter of the layer
    has dropout, the whole layer is computed, because masks are drawn for every token.

    Args:
        vlm: The model; its modules are restored afterward.
        positions: The positions, shape [K, n], counted through the batch: row · L + column; K·B·L is the padding of
            clients with fewer positions.
    """
    modules = _position_wise(vlm)
    if any(getattr(part, "drop", None) is not None for module in modules for part in module.modules()):
        modules = []
    with replaced_forwards(modules, partial(_only_at, positions)):
        yield


def layers_of(vlm: Vlm) -> list[nn.Module]:
    """Return the decoder's layers in order; none if it has no list of layers."""
    layers = getattr(vlm.decoder, "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def _position_wise(vlm: Vlm) -> list[nn.Module]:
    """Return the modules of the last layer that compute every position independently."""
    layers = layers_of(vlm)
    if not layers:
        return []
    children = dict(layers[-1].named_children())
    attention = [dict(children[name].named_children()) for name in ATTENTION if name in children]
    return [
        *(parts[name] for parts in attention for name in QUERIES if name in parts),
        *(children[name] for name in FEED_FORWARD if name in children),
    ]


def _only_at(positions: Tensor, forward: Forward) -> Forward:
    """Return a forward that computes positions [K, n] only, client by client, as adapters side by side need them."""

    def only_at(x: Tensor) -> Tensor:  # [K·B, L, I] → [K·B, L, O]
        flat = x.reshape(-1, x.shape[-1])
        y = forward(flat[positions.clamp(max=len(flat) - 1)]).flatten(0, 1)  # experts need [K, n, I]
        whole = y.new_zeros(len(flat) + 1, y.shape[-1])  # the last row takes the padding of `positions`
        return whole.index_copy(0, positions.flatten(), y)[:-1].view(*x.shape[:-1], -1)

    return only_at
