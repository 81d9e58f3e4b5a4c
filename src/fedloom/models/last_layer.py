"""The decoder's last layer, computed only where its output is read.

Attention alone mixes positions, and no layer follows the last one. So of its output only those states count that
predict a token of an answer: keys and values are computed everywhere, queries, attention's output and the
feed-forward part at these positions alone. Loss and gradients stay what they are; with short answers behind long
prompts most of a layer's arithmetic is saved.

Shape legend: K clients side by side, B conversations of each, L tokens, n positions of a client, I and O a module's
inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from fedloom.models.load_model import Vlm
from fedloom.models.replaced_forwards import Forward, forwards

ATTENTION = ("self_attn", "cross_attn")
QUERIES = ("q_proj", "o_proj", "dense")
"""Modules of attention that treat each position of the queries by itself."""
FEED_FORWARD = ("mlp", "feed_forward")


@contextmanager
def reading(vlm: Vlm, reads: Tensor) -> Iterator[None]:
    """Let a forward pass of the decoder inside this block compute the last layer at some positions only.

    Elsewhere its output has no meaning. The backward pass may come after the block. Where dropout stands in front of
    an adapter of the layer, all of it is computed, for masks are drawn for every token.

    Args:
        vlm: The model; its modules are put back afterward.
        reads: The positions, shape [K, n], counted through the batch: row · L + column; K·B·L fills up the rows of
            clients with fewer.
    """
    changed = _by_position(vlm)
    if any(getattr(part, "drop", None) is not None for module in changed for part in module.modules()):
        changed = []
    with forwards(changed, partial(_only, reads)):
        yield


def layers_of(vlm: Vlm) -> list[nn.Module]:
    """Return the decoder's layers in their order; none where it has no list of them."""
    layers = getattr(vlm.decoder, "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def _by_position(vlm: Vlm) -> list[nn.Module]:
    """Return the modules of the last layer that treat every position by itself."""
    layers = layers_of(vlm)
    if not layers:
        return []
    below = dict(layers[-1].named_children())
    within = [dict(below[name].named_children()) for name in ATTENTION if name in below]
    return [
        *(parts[name] for parts in within for name in QUERIES if name in parts),
        *(below[name] for name in FEED_FORWARD if name in below),
    ]


def _only(places: Tensor, forward: Forward) -> Forward:
    """Compute a module at some places, [K, n], client by client as adapters side by side want them."""

    def only(x: Tensor) -> Tensor:  # [K·B, L, I] → [K·B, L, O]
        flat = x.reshape(-1, x.shape[-1])
        y = forward(flat[places.clamp(max=len(flat) - 1)]).flatten(0, 1)  # experts ask for [K, n, I]
        whole = y.new_zeros(len(flat) + 1, y.shape[-1])  # the last row takes what fills up `reads`
        return whole.index_copy(0, places.flatten(), y)[:-1].view(*x.shape[:-1], -1)

    return only
