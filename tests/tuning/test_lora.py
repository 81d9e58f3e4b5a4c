"""A layer with a low-rank update: its value and its gradients, alone and side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.answer_loss import answer_loss
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedloom.models.load_model import load_vlm
from fedloom.params import Params
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import prepare, release
from fedloom.tuning.lora import LoRALinear, scale_b, scale_of
from fedloom.tuning.strategies import LoRA, stage
from fedloom.tuning.svd_start import svd_start
from fedloom.types import Conversation


def layer(rows: int | None, *, bias: bool, dropped: bool, kind: str = "plain") -> LoRALinear:
    torch.manual_seed(0)
    base: nn.Module = nn.Linear(5, 4, bias=bias, dtype=torch.float64).requires_grad_(False)
    base = base if kind == "plain" else OTHERS[kind](base)
    clients = () if rows is None else (rows,)
    a, b = (nn.Parameter(torch.randn(*clients, *size, dtype=torch.float64)) for size in ((2, 5), (4, 2)))
    made = LoRALinear(base, a, b, scale=1.5)
    if dropped:
        made.drop = lambda x: x * torch.tensor([0.0, 2.0, 2.0, 0.0, 2.0], dtype=x.dtype)
    return made


class Packed(nn.Linear):
    """A quantized layer: bytes of another shape than the weight's, and one scale."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        step = plain.weight.abs().max() / 127
        packed = (plain.weight / step).round().to(torch.int8).view(-1, 1)
        self.weight, self.step, self.bias = nn.Parameter(packed, requires_grad=False), step, plain.bias

    def unpacked(self) -> Tensor:
        return (self.weight * self.step).view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.unpacked().to(input.dtype), self.bias)


def transposed(plain: nn.Linear) -> Conv1D:
    made = Conv1D(plain.out_features, plain.in_features).to(plain.weight.dtype).requires_grad_(False)
    made.weight.data = plain.weight.data.mT.contiguous()
    made.bias.data = torch.zeros_like(made.bias) if plain.bias is None else plain.bias.data
    return made


OTHERS: dict[str, Callable[[Any], nn.Module]] = {"packed": Packed, "Conv1D": transposed}


@pytest.mark.parametrize("kind", ["plain", *OTHERS])
@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_value_and_gradients_are_those_of_the_formula(
    kind: str, rows: int | None, bias: bool, dropped: bool
) -> None:
    made = layer(rows, bias=bias, dropped=dropped, kind=kind)
    x = torch.randn(2 * (rows or 1), 3, 5, dtype=torch.float64, requires_grad=True)

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        inside = made.drop(x) if made.drop else x
        own = inside.view(rows or 1, -1, 5) @ a.view(-1, 2, 5).mT @ b.view(-1, 4, 2).mT
        return made.base(x) + 1.5 * own.reshape(*x.shape[:-1], 4)

    y, expected = made(x), plain(x, made.lora_a, made.lora_b)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    wanted = (x, made.lora_a, made.lora_b)
    ours = torch.autograd.grad((y * weights).sum(), wanted)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), wanted))


@pytest.mark.parametrize("kind", ["Linear4bit", "Linear8bitLt"])
def test_layers_of_bitsandbytes_get_adapters(kind: str) -> None:
    """The frozen product is the layer's own; adapters and inputs get gradients through it."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plain = nn.Linear(64, 32)
    base = getattr(bitsandbytes.nn, kind)(64, 32)
    base.load_state_dict(plain.state_dict())
    base = base.to("cpu").requires_grad_(False)
    made = LoRALinear(base, nn.Parameter(torch.randn(2, 64)), nn.Parameter(torch.randn(32, 2)), 1.5)
    x = torch.randn(3, 4, 64, requires_grad=True)
    y = made(x)
    torch.testing.assert_close(y, base(x) + 1.5 * x @ made.lora_a.mT @ made.lora_b.mT)
    y.square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in (x, made.lora_a, made.lora_b))


def test_a_model_with_quantized_layers_trains_as_one_with_the_values_they_stand_for(tiny_model: Path) -> None:
    vlms = [load_vlm(str(tiny_model)) for _ in range(2)]
    for vlm, quantized in zip(vlms, (True, False), strict=True):
        for layer_ in vlm.decoder.layers:
            for block in (layer_.self_attn, layer_.mlp):
                for name, linear in [*block.named_children()]:
                    if isinstance(linear, nn.Linear):
                        packed = Packed(linear)
                        linear.weight.data = packed.unpacked()
                        setattr(block, name, packed if quantized else linear)
    results = []
    for vlm in vlms:
        tuned = prepare(vlm, stage("both", LoRA(rank=2)), seed=0)
        tuned.write(tuned.start.with_flat(tuned.start.flat + torch.linspace(-0.1, 0.1, tuned.layout.size)))
        answer_loss(vlm, [Conversation("Which?", "yes")]).backward()
        results.append(tuned.grads.clone())
        release(tuned)
        assert not tuned.adapters
    assert results[0].any()
    torch.testing.assert_close(*results)
    with pytest.raises(UserError, match=r"yoco starts from the values .* is quantized"):
        svd_start(prepare(vlms[0], stage("lora", LoRA(rank=2)), seed=0))


def test_each_client_has_its_own_scale() -> None:
    """Value and gradients of three clients side by side are those of three layers with a scale each."""
    scales = [0.5, 3.0, 1.0]
    together = layer(3, bias=True, dropped=False)
    together.scale = torch.tensor(scales, dtype=torch.float64).view(3, 1, 1)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    y = together(x)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    for k, scale in enumerate(scales):
        a, b = (nn.Parameter(value[k].detach().clone()) for value in (together.lora_a, together.lora_b))
        alone, rows = LoRALinear(together.base, a, b, scale), slice(2 * k, 2 * k + 2)
        result = alone(x[rows])
        torch.testing.assert_close(y[rows], result)
        (result * weights[rows]).sum().backward()
        for stacked, own in ((together.lora_a, a), (together.lora_b, b)):
            assert stacked.grad is not None and own.grad is not None
            torch.testing.assert_close(stacked.grad[k], own.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_scales_give_equal_bits_as_a_number_or_for_each_client(dtype: torch.dtype) -> None:
    made = layer(3, bias=True, dropped=False).to(dtype)
    x, result = torch.randn(6, 2, 5).to(dtype), []
    for scale in (16 / 3, torch.full((3, 1, 1), 16 / 3)):
        made.scale = scale
        made.zero_grad()
        y = made(x)
        y.float().square().sum().backward()
        assert made.lora_a.grad is not None and made.lora_b.grad is not None
        result.append((y, made.lora_a.grad.clone(), made.lora_b.grad.clone()))
    assert all(torch.equal(one, other) for one, other in zip(*result, strict=True))


def test_a_scale_is_a_number_where_all_have_it() -> None:
    assert scale_of(2.0, [1.0], torch.device("cpu")) == scale_of(2.0, [1.0, 1.0], torch.device("cpu")) == 2.0
    result = scale_of(2.0, [1.0, 4.0], torch.device("cpu"))
    assert (
        isinstance(result, Tensor) and result.flatten().tolist() == [2.0, 8.0] and result.shape == (2, 1, 1)
    )


def test_scale_b_multiplies_only_b() -> None:
    params = Params.of({name: torch.ones(2) for name in ("connector/w", "llm/q:lora_a", "llm/q:lora_b")})
    assert scale_b(params.flat, params.layout, 3.0).tolist() == [1, 1, 1, 1, 3, 3]
    assert params.flat.tolist() == [1] * 6
    assert scale_b(params.flat, params.layout, 1.0) is params.flat


@pytest.mark.parametrize("held", ["lora_a", "lora_b"])
def test_what_is_held_fixed_gets_no_gradient(held: str) -> None:
    made = layer(None, bias=False, dropped=False)
    getattr(made, held).requires_grad_(False)
    made(torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    assert {name for name, value in made.named_parameters() if value.grad is not None} == {
        "lora_a",
        "lora_b",
    } - {held}
