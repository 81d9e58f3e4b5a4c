"""Divide the decoder's layers among several GPUs and the host's memory, for models that are larger than a GPU.

Hooks of accelerate move a layer's inputs to its GPU and its outputs back, or copy the weights of a layer from the host's
memory for each of its passes. Embeddings, the last layer, head, connector and adapters are on the first GPU, where all other
computation takes place; so no other code knows of further GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm

FIRST_SHARE, OTHER_SHARE = 0.5, 0.9
"""Shares of the memory of the first GPU, and of the others, that weights may take; activations and adapters take the rest."""

Place = torch.device | None
"""The GPU on which a layer computes, or None for a layer in the host's memory, which computes on the first GPU."""


def places_of(sizes: Sequence[int], rest: int, memory: Sequence[int]) -> list[int | None]:
    """Return the number of the GPU that each layer is on, or None for the host's memory; GPUs are filled one after another.

    Args:
        sizes: Bytes of each layer's weights.
        rest: Bytes of everything else, which is on the first GPU, with the last layer.
        memory: Bytes of memory of each GPU.

    Example:
        >>> places_of([4, 4, 4, 4, 4], 2, [20, 5])
        [0, 1, None, None, 0]
    """
    rooms = [FIRST_SHARE * memory[0] - rest - sizes[-1], *(OTHER_SHARE * one for one in memory[1:])]
    places, gpu = list[int | None](), 0
    for size in sizes[:-1]:
        while gpu < len(rooms) and rooms[gpu] < size:
            gpu += 1
        if gpu < len(rooms):
            rooms[gpu] -= size
        places.append(gpu if gpu < len(rooms) else None)
    return [*places, 0]


def spread_decoder(vlm: Vlm) -> None:
    """Move a model to this machine's GPUs, in place, with its decoder's layers where `places_of` puts them.

    A model whose layers share keys and values (Gemma 4) has the first GPU alone, and the host's memory.
    """
    layers, gpus = layers_of(vlm), range(1 if shares_keys(vlm) else torch.cuda.device_count())
    sizes = list(map(_bytes, layers))
    memory = [torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus]
    numbers = places_of(sizes, _bytes(vlm.model) - sum(sizes), memory)
    places = [None if number is None else torch.device("cuda", number) for number in numbers]
    place_layers(vlm, places, torch.device("cuda", 0))


def place_layers(vlm: Vlm, places: Sequence[Place], first: torch.device) -> None:
    """Move a model to the first GPU, in place, and each layer of its decoder to its own place.

    Args:
        vlm: The model, on the CPU and without adapters.
        places: The place of each layer.
        first: The first GPU.
    """
    from accelerate import cpu_offload
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    elsewhere = set[int]()
    for layer, place in zip(layers_of(vlm), places, strict=True):
        if place == first:
            continue
        if place is None:
            cpu_offload(layer, first)
        else:
            hook = AlignDevicesHook(place, io_same_device=True, place_submodules=True)
            add_hook_to_module(layer, hook)
        elsewhere |= {id(value) for value in (*layer.parameters(), *layer.buffers())}
    for value in (*vlm.model.parameters(), *vlm.model.buffers()):
        if id(value) not in elsewhere:
            value.data = value.data.to(first)


def shares_keys(vlm: Vlm) -> bool:
    """Return whether some layers read keys and values of another layer, on whose GPU they must therefore be."""
    return bool(getattr(vlm.model.config.get_text_config(), "num_kv_shared_layers", 0))


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
