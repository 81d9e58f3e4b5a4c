"""The Qwen-VL and GLM-V families: pictures of any size as rows and columns of merged patches, positions on three axes.

Shape legend: B pictures, H and W rows and columns of merged patches, M patches merged into one token, E encoder
width, S places of the encoder whose features the decoder receives, D language-model width, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.models.family_interface import Grid, scatter


def _mergers(visual: Any) -> list[nn.Module]:
    return [visual.merger, *getattr(visual, "deepstack_merger_list", [])]


def _inputs_of(modules: Sequence[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """Run something and return the tensor that each module was given."""
    seen: dict[int, Tensor] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen[id(module)] = arguments[0]

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[id(module)] for module in modules]


def _sides(visual: Any, grids: Tensor) -> list[tuple[int, int]]:
    """Return rows and columns of merged patches of each image."""
    return [(int(h) // visual.spatial_merge_size, int(w) // visual.spatial_merge_size) for _, h, w in grids]


def glm_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode with the convolution that merges patches: [H, W, E] for each image."""
    visual, grids = model.model.visual, inputs["image_grid_thw"]
    pixels = inputs["pixel_values"].to(model.dtype)
    (states,) = _inputs_of([visual.merger], lambda: visual(pixels, grid_thw=grids))
    sides = _sides(visual, grids)
    rows = states.split([h * w for h, w in sides])
    return [one.unflatten(0, side) for one, side in zip(rows, sides, strict=True)]


def glm_connect(model: Any, features: Tensor) -> Tensor:
    """Connect [B, H, W, E] to [B, H · W, D]."""
    return model.model.visual.merger(features.flatten(0, 2)).unflatten(0, (len(features), -1))


def qwen_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode up to where patches are merged: [H, W, S · M · E] for each picture."""
    visual, grids = model.model.visual, inputs["image_grid_thw"]
    pixels = inputs["pixel_values"].to(model.dtype)
    states = _inputs_of(_mergers(visual), lambda: visual(pixels, grid_thw=grids))
    merged = visual.spatial_merge_size**2
    together = torch.cat([one.reshape(len(one) // merged, -1) for one in states], dim=-1)
    sides = _sides(visual, grids)
    rows = together.split([h * w for h, w in sides])
    return [one.unflatten(0, side) for one, side in zip(rows, sides, strict=True)]


def windowed_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode like `qwen_encode` where the encoder looks at windows, and bring the patches back into order."""
    from transformers.vision_utils import get_vision_window_index

    visual, grids = model.model.visual, inputs["image_grid_thw"]
    merge, window = visual.spatial_merge_size, visual.window_size
    found = []
    start = 0
    for grid in grids:  # one by one, so that the order is that of one picture
        count = int(grid.prod())
        one = {"pixel_values": inputs["pixel_values"][start : start + count], "image_grid_thw": grid[None]}
        order, _ = get_vision_window_index(grid[None], merge, window, visual.patch_size)
        (states,) = qwen_encode(model, one)
        found.append(states.flatten(0, 1)[torch.argsort(order)].view_as(states))
        start += count
    return found


def qwen_connect(model: Any, features: Tensor) -> Tensor:
    """Merge patches at each of the S places: [B, H · W, S · D]."""
    visual = model.model.visual
    mergers, merged = _mergers(visual), visual.spatial_merge_size**2
    parts = features.flatten(1, 2).chunk(len(mergers), dim=-1)  # S times [B, H · W, M · E]
    tokens = [
        merge(part.reshape(part.shape[0] * part.shape[1] * merged, -1)).unflatten(0, part.shape[:2])
        for merge, part in zip(mergers, parts, strict=True)
    ]
    return torch.cat(tokens, dim=-1)


def qwen_positions(model: Any, ids: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Count time, row and column: [3, L]; a picture takes as many positions as its longer side is long."""
    merge = model.config.vision_config.spatial_merge_size
    image = (ids == model.config.image_token_id).int()
    sizes = ids.new_tensor([[1, rows * merge, columns * merge] for rows, columns in grids]) if grids else None
    positions, _ = model.model.get_rope_index(ids[None], mm_token_type_ids=image[None], image_grid_thw=sizes)
    return positions[:, 0]


def deepstack_place(model: Any, ids: Tensor, embeddings: Tensor, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Put the last features where image tokens are; those of earlier places join in the first layers."""
    if not tokens:
        return {"inputs_embeds": embeddings}
    last, *earlier = torch.cat(list(tokens)).to(embeddings.dtype).split(embeddings.shape[-1], dim=-1)
    return {
        **scatter(model, ids, embeddings, [last]),
        "visual_pos_masks": ids == model.config.image_token_id,
        "deepstack_visual_embeds": earlier,
    }
