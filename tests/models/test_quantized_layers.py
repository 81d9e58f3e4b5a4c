"""Decoders whose linear layers are quantized: what the layers compute, what they take, and that adapters train over them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.simulated_accelerator import simulated_accelerator
from torch import nn

from fedloom.client.backpropagation import backpropagate
from fedloom.config.schema import Model
from fedloom.engine.machine_choices import saved_bytes
from fedloom.experiment.experiment import Experiment, InvalidExperiment
from fedloom.models.batches import answer_losses, collate, generate, option_scores
from fedloom.models.empty_model import empty_vlm, weight_bytes
from fedloom.models.family_table import FAMILIES
from fedloom.models.linear_layers import weight_count
from fedloom.models.load_model import Vlm, load_vlm, move_model
from fedloom.models.quantized_layers import KINDS, QuantizedLinear, quantized_bytes, quantized_names
from fedloom.seeds import torch_stream
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import prepare, side_by_side
from fedloom.tuning.dropout import Masks
from fedloom.tuning.strategies import Full, LoRA, Stage, stage

from .conversations import TARGETS, talks
from .tiny import calm

PRECISIONS = ("float32", "bfloat16")

try:
    import bitsandbytes
except ImportError:
    bitsandbytes = None
needs_library = pytest.mark.skipif(bitsandbytes is None, reason="bitsandbytes is not installed")


def families() -> list[Any]:
    """Return family, format and precision: every pair of the latter for one family, and one pair for two more."""
    often = {("llava", kind, precision) for kind in KINDS for precision in PRECISIONS}
    often |= {("qwen2_5_vl", "nf4", "bfloat16"), ("gemma3", "int8", "float32")}
    every = [(name, *pair) for name in sorted(FAMILIES) for pair in product(KINDS, PRECISIONS)]
    return [pytest.param(*one, marks=() if one in often else pytest.mark.slow) for one in every]


def layer_of(kind: str, outputs: int = 48, inputs: int = 80, bias: bool = True) -> tuple[nn.Linear, Any]:
    plain = nn.Linear(inputs, outputs, bias=bias)
    plain.weight.data = torch.randn(outputs, inputs, generator=torch_stream(0, "weights"))
    plain.weight.data[3] = 0  # a row without values has no largest one to divide by
    return plain, KINDS[kind](plain.weight.data, None if plain.bias is None else plain.bias.data)


@needs_library
def test_int8_is_the_nearest_of_255_steps_of_each_output() -> None:
    plain, layer = layer_of("int8")
    # Half a step, and what float16, from which bitsandbytes rounds, loses of 127 steps.
    step = plain.weight.abs().amax(1, keepdim=True) / 127
    assert ((layer.values(torch.float32) - plain.weight).abs() <= 0.54 * step).all()
    assert not layer.values(torch.float32)[3].any()


@needs_library
def test_nf4_is_what_bitsandbytes_stores() -> None:
    plain, layer = layer_of("nf4", 48, 128)
    theirs = bitsandbytes.nn.Linear4bit(128, 48, quant_type="nf4", compress_statistics=True)  # type: ignore[union-attr]
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to("cpu")
    x = torch.randn(5, 128, generator=torch_stream(0, "x"))
    torch.testing.assert_close(layer(x), theirs(x))


@needs_library
@pytest.mark.parametrize("shape", [(48, 128), (48, 80), (7, 9), (1, 64)])
def test_nf4_is_near_the_weights_whatever_their_shape(shape: tuple[int, int]) -> None:
    """The 16 values of NF4 are those that divide normal values evenly; their error is 9 % then."""
    weight = torch.randn(shape, generator=torch_stream(0, "weights"))
    values = KINDS["nf4"](weight, None).values(torch.float32)
    assert values.shape == shape
    assert 0.05 < (values - weight).norm() / weight.norm() < 0.13


@needs_library
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_a_layer_with_the_stored_values(kind: str, bias: bool) -> None:
    plain, layer = layer_of(kind, bias=bias)
    plain.weight.data = layer.values(torch.float32)
    x = [torch.randn(2, 3, 80, generator=torch_stream(0, "x")).requires_grad_() for _ in range(2)]
    ys = [one(value) for one, value in zip((layer, plain), x, strict=True)]
    torch.testing.assert_close(*ys)
    for y in ys:
        y.square().sum().backward()
    assert x[0].grad is not None and x[0].grad.any()
    torch.testing.assert_close(x[0].grad, x[1].grad)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_tensors(kind: str) -> None:
    for outputs, inputs in ((48, 80), (256, 512)):
        _, layer = layer_of(kind, outputs, inputs, bias=False)
        tensors = [*layer.parameters(), *layer.buffers()]
        assert sum(value.nbytes for value in tensors) == quantized_bytes(kind, inputs, outputs)
        assert weight_count(layer) == outputs * inputs


def with_values(vlm: Vlm, quantized: Vlm) -> Vlm:
    """Put the values that a quantized model's layers stand for into a plain one."""
    for name, module in quantized.model.named_modules():
        if isinstance(module, QuantizedLinear):
            plain = vlm.model.get_submodule(name)
            plain.weight.data = module.values(plain.weight.dtype)
    return vlm


def gradient(vlm: Vlm) -> torch.Tensor:
    """Return the gradient of two clients side by side at random adapters."""
    name = "both" if vlm.family.parts.connector else "lora"
    tuned = prepare(vlm, stage(name, LoRA(rank=2, targets=TARGETS)), seed=0)
    assert tuned.adapters and all(isinstance(one.base, nn.Linear) for one in tuned.adapters.values())
    with side_by_side(tuned, 2) as stack:
        for row in range(2):
            noise = torch.randn(tuned.layout.size, generator=torch_stream(row, "noise"))
            stack.write(tuned.start.with_flat(tuned.start.flat + 0.02 * noise), row)
        batch = collate(vlm, [talks(vlm), talks(vlm)[:1]])
        masks = [Masks(lambda layer: torch_stream(0, layer)) for _ in range(2)]
        backpropagate(stack, [batch], masks, Clock(vlm.device.type))
        return stack.grads.cpu().clone()


@needs_library
@pytest.mark.parametrize(("name", "kind", "precision"), families())
def test_a_quantized_decoder_trains_scores_and_generates_as_the_values_it_stores(
    name: str, kind: str, precision: str, saved: Callable[[str], Path]
) -> None:
    vlm = move_model(calm(load_vlm(str(saved(name)))), "cpu", precision, kind)
    plain = with_values(move_model(calm(load_vlm(str(saved(name)))), "cpu", precision), vlm)
    replaced = {key for key, module in vlm.model.named_modules() if isinstance(module, QuantizedLinear)}
    assert replaced == {*quantized_names(plain.model, plain.family.parts)} != set()
    assert all(vlm.family.parts.part_of(key) == "llm" for key in replaced)
    assert type(vlm.model.get_output_embeddings()) is nn.Linear
    others = dict(plain.model.named_parameters())
    for key, value in vlm.model.named_parameters():
        if key.rpartition(".")[0] not in replaced:
            assert value.dtype == others[key].dtype and torch.equal(value, others[key]), key
    torch.testing.assert_close(option_scores(vlm, talks(vlm)), option_scores(plain, talks(plain)))
    assert generate(vlm, talks(vlm), max_tokens=3) == generate(plain, talks(plain), max_tokens=3)
    mine, theirs = gradient(vlm), gradient(plain)
    assert torch.isfinite(mine).all() and mine.any()
    # In bfloat16 the plain model's fused layers round at other places.
    alike = 0.9999 if precision == "float32" else 0.98
    assert torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > alike


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_clients_side_by_side_get_the_gradients_that_they_get_alone(
    kind: str, saved: Callable[[str], Path]
) -> None:
    vlm = move_model(load_vlm(str(saved("llava"))), "cpu", "float32", kind)
    tuned = prepare(vlm, stage("lora", LoRA(rank=2, targets=TARGETS)), seed=0)
    tuned.write(tuned.start.with_flat(tuned.start.flat + 0.05))
    groups, alone = [talks(vlm), talks(vlm)[:1]], []
    for group in groups:
        tuned.grads.zero_()
        answer_losses(vlm, collate(vlm, [group])).sum().backward()
        alone.append(tuned.grads[0].clone())
    with side_by_side(tuned, 2) as stack:
        for row in range(2):
            stack.flat[row].copy_(tuned.flat[0])
        answer_losses(vlm, collate(vlm, groups)).sum().backward()
        together = stack.grads.clone()
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_on_an_accelerator(kind: str, saved: Callable[[str], Path]) -> None:
    expected = gradient(move_model(load_vlm(str(saved("llava"))), "cpu", "float32", kind))
    vlm = load_vlm(str(saved("llava")))
    with simulated_accelerator() as device:
        move_model(vlm, "cuda", "float32", kind)
        assert vlm.device.type == "cuda"
        assert torch.equal(gradient(vlm), expected)
        tuned = prepare(vlm, stage("lora", LoRA(rank=2)), seed=0)
        batch = collate(vlm, [talks(vlm)])
        device.syncs.clear()
        answer_losses(vlm, batch).sum().backward()
        assert tuned.grads.any()
        assert device.syncs.total() <= 4, device.syncs


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_the_bytes_that_are_loaded(kind: str, saved: Callable[[str], Path]) -> None:
    for precision in PRECISIONS:
        vlm = move_model(load_vlm(str(saved("llava"))), "cpu", precision, kind)
        planned = weight_bytes(empty_vlm(Model(path=str(saved("llava")))), precision, kind)
        tensors = {id(value): value for value in vlm.model.parameters()}
        tensors |= {
            id(value): value
            for module in vlm.model.modules()
            if isinstance(module, QuantizedLinear)
            for value in module.buffers()
        }
        assert sum(planned.values()) == sum(value.nbytes for value in tensors.values())


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_keeps_no_weights(kind: str, tiny_model: Path) -> None:
    """Those that a layer computes from its bits are computed again in the backward pass."""
    from tests.clients import job_of

    from fedloom.algorithms.local_rule import PLAIN
    from fedloom.config.schema import Train
    from fedloom.types import Conversation

    def kept(quantize: str | None) -> int:
        vlm = move_model(load_vlm(str(tiny_model)), "cpu", "float32", quantize)
        tuned = prepare(vlm, stage("lora", LoRA(rank=2)), seed=0)
        return saved_bytes(tuned, job_of(tuned, PLAIN, [Conversation("Which?", "yes")], Train(), seed=0))

    weights = sum(weight_count(layer) for layer in load_vlm(str(tiny_model)).decoder.layers)  # type: ignore[union-attr]
    assert kept(kind) < kept(None) + weights  # four bytes each, were they kept


def test_without_bitsandbytes_one_message_names_the_extra(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for kind in KINDS:
        with pytest.raises(UserError, match=r"model\.quantize: .*pip install 'fedloom\[quantized\]'"):
            move_model(load_vlm(str(tiny_model)), "cpu", "float32", kind)


@needs_library
def test_quantized_weights_are_not_trained_in_full(tiny_model: Path) -> None:
    vlm = move_model(load_vlm(str(tiny_model)), "cpu", "float32", "int8")
    with pytest.raises(UserError, match=r"model\.quantize: quantized weights cannot be trained in full"):
        prepare(vlm, Stage({"llm": Full()}), seed=0)


def test_conflicts_and_digest() -> None:
    with pytest.raises(InvalidExperiment, match=r"model\.quantize is nf4, but engine\.compile is true"):
        Experiment(model={"quantize": "nf4"}, engine={"compile": True})  # type: ignore[arg-type]
    plain, quantized = Experiment(), Experiment(model={"quantize": "nf4"})  # type: ignore[arg-type]
    assert plain.digest != quantized.digest
