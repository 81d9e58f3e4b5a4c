"""The Qwen-VL and GLM-V families: images of any size as rows and columns of merged patches, with positions on three axes.

Shape legend: B images, H and W rows and columns of merged patches, M patches merged into one token, E encoder
width, S features of each patch, from different layers, that the decoder receives, D language-model width, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.models.family_interface import ADDED, Grid, dtype_of, image_places, scatter, send


def _mergers(visual: Any) -> list[nn.Module]:
    return [visual.merger, *getattr(visual, "deepstack_merger_list", [])]


def _inputs_of(modules: Sequence[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """Call a function and return the input that each module got."""
    inputs: dict[int, Tensor] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs[id(module)] = arguments[0]

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [inputs[id(module)] for module in modules]


def _sides(visual: Any, grids: Tensor) -> list[tuple[int, int]]:
    """Return the rows and columns of merged patches of each image."""
    return [(int(h) // visual.spatial_merge_size, int(w) // visual.spatial_merge_size) for _, h, w in grids]


def glm_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode including the convolution that merges patches: [H, W, E] for each image."""
    visual, grids = model.model.visual, inputs["image_grid_thw"]
    pixels = inputs["pixel_values"].to(dtype_of(visual))
    (states,) = _inputs_of([visual.merger], lambda: visual(pixels, grid_thw=grids))
    sides = _sides(visual, grids)
    images = states.split([h * w for h, w in sides])
    return [image.unflatten(0, side) for image, side in zip(images, sides, strict=True)]


def glm_connect(model: Any, features: Tensor) -> Tensor:
    """Connect [B, H, W, E] to [B, H · W, D]."""
    return model.model.visual.merger(features.flatten(0, 2)).unflatten(0, (len(features), -1))


def qwen_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode up to the modules that merge patches: [H, W, S · M · E] for each image."""
    visual, grids = model.model.visual, inputs["image_grid_thw"]
    pixels = inputs["pixel_values"].to(dtype_of(visual))
    states = _inputs_of(_mergers(visual), lambda: visual(pixels, grid_thw=grids))
    merged = visual.spatial_merge_size**2
    features = torch.cat([state.reshape(len(state) // merged, -1) for state in states], dim=-1)
    sides = _sides(visual, grids)
    images = features.split([h * w for h, w in sides])
    return [image.unflatten(0, side) for image, side in zip(images, sides, strict=True)]


def windowed_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode as `qwen_encode` does, for an encoder with windowed attention, and restore the order of patches."""
    from transformers.vision_utils import get_vision_window_index

    visual, grids = model.model.visual, inputs["image_grid_thw"]
    merge, window = visual.spatial_merge_size, visual.window_size
    features = []
    start = 0
    for grid in grids:  # one image at a time, because the order of patches depends on the batch
        count = int(grid.prod())
        image = {"pixel_values": inputs["pixel_values"][start : start + count], "image_grid_thw": grid[None]}
        order, _ = get_vision_window_index(grid[None], merge, window, visual.patch_size)
        (states,) = qwen_encode(model, image)
        features.append(states.flatten(0, 1)[torch.argsort(order)].view_as(states))
        start += count
    return features


def qwen_connect(model: Any, features: Tensor) -> Tensor:
    """Merge the patches of each of the S features: [B, H · W, S · D]."""
    visual = model.model.visual
    mergers, merged = _mergers(visual), visual.spatial_merge_size**2
    parts = features.flatten(1, 2).chunk(len(mergers), dim=-1)  # S times [B, H · W, M · E]
    tokens = [
        merge(part.reshape(part.shape[0] * part.shape[1] * merged, -1)).unflatten(0, part.shape[:2])
        for merge, part in zip(mergers, parts, strict=True)
    ]
    return torch.cat(tokens, dim=-1)


def qwen_positions(model: Any, ids: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Return positions on the axes time, row and column: [3, L]; an image takes as many positions as its longer side."""
    merge = model.config.vision_config.spatial_merge_size
    image = (ids == model.config.image_token_id).int()
    sizes = ids.new_tensor([[1, rows * merge, columns * merge] for rows, columns in grids]) if grids else None
    positions, _ = model.model.get_rope_index(ids[None], mm_token_type_ids=image[None], image_grid_thw=sizes)
    return positions[:, 0]


def deepstack_place(model: Any, ids: Tensor, embeddings: Tensor, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Put the last features where image tokens are; the first layers of the decoder add those of earlier layers."""
    if not tokens:
        return {"inputs_embeds": embeddings}
    last, *earlier = torch.cat(list(tokens)).to(embeddings.dtype).split(embeddings.shape[-1], dim=-1)
    shown = send(image_places(model, ids), embeddings.device)
    # The stock model adds the first of them after layer 0, at places that an accelerator would have to report first.
    return {
        **scatter(model, ids, embeddings, [last]),
        ADDED: {number: (shown, features) for number, features in enumerate(earlier, 1)},
    }
