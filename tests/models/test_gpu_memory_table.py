"""The table of docs/gpu.md: what it computes is what autograd keeps, and the page has what the script computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import gpu_memory_table as script
from fedloom.models.decoder_inputs import run_decoder
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.models.last_layer import last_layer_at
from fedloom.tuning.adapters import cast_adapters, prepare
from fedloom.tuning.strategies import stage

BATCH, LENGTH, ANSWER, LAYERS = 2, 512, 8, 4


@contextmanager
def attention_of_gpus() -> Iterator[None]:
    """Attention by the kernel that GPUs use for padded batches, which torch also has for tensors without values."""

    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, **more: Any) -> Tensor:
        mask = torch.empty(
            attn_mask.shape, dtype=q.dtype, device="meta"
        )  # made anew for each layer, as on a GPU
        mask = mask.expand(q.shape[0], q.shape[1], -1, -1)
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True)[0]

    with patch.object(torch.nn.functional, "scaled_dot_product_attention", fused):
        yield


def kept_bytes(name: str, *, recompute: bool) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps, and those that are computed, for a model's own widths."""
    vlm = script.build(name, LAYERS)
    computed = script.sizes_of(vlm).kept(BATCH, LENGTH, recompute=recompute)
    tuned = prepare(vlm, stage("lora", script.LORA), seed=0)
    own = {value.untyped_storage()._cdata for value in vlm.model.state_dict(keep_vars=True).values()}
    own.add(tuned.flat.untyped_storage()._cdata)
    kept: dict[int, Any] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no address is used twice
        return value

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    width = vlm.model.config.get_text_config().hidden_size
    states = empty(BATCH, LENGTH, width, dtype=torch.bfloat16).requires_grad_()
    inputs = {"inputs_embeds": states, "attention_mask": empty(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)}
    positions = empty(BATCH, LENGTH, dtype=torch.long)
    inputs["position_ids"] = positions if vlm.family.positions is None else positions.expand(3, -1, -1)
    with (
        attention_of_gpus(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
        cast_adapters(tuned),
        last_layer_at(vlm, empty(1, BATCH * ANSWER, dtype=torch.long)),
        gradient_checkpointing(vlm, recompute),
    ):
        result = run_decoder(vlm, inputs, use_cache=False)
    counted = sum(storage.nbytes() for storage in kept.values())
    del result
    return counted, computed


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", script.SHAPES)
def test_what_is_computed_is_within_five_percent_of_what_autograd_keeps(name: str, recompute: bool) -> None:
    counted, computed = kept_bytes(name, recompute=recompute)
    assert computed == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("LLaVA-1.5-7B", 7.06), ("Qwen2.5-VL-3B", 3.75), ("Qwen2.5-VL-7B", 8.29), ("SmolLM2-135M", 0.1345)],
)
def test_models_have_their_published_number_of_weights(name: str, billions: float) -> None:
    vlm = script.build(name)
    assert sum(value.numel() for value in vlm.model.parameters()) == pytest.approx(billions * 1e9, rel=0.01)


def test_the_page_has_the_table_that_the_script_computes() -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    assert page.partition(script.BEGIN)[2].partition(script.END)[0].strip() == "\n".join(script.table())
