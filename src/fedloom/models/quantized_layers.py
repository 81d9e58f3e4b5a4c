"""Replace the linear layers of a decoder by quantized ones, with bitsandbytes: NF4 (4 bits) or int8.

Both are formats of weights alone: a layer computes x W with the values of W that its few bits stand for, in the data type of x.
The layers of bitsandbytes do more: that of 8 bits also rounds x, and keeps apart the columns in which some token of the batch is
large, so a client's numbers would depend on who trains along with it. So only its kernels are used.

Shape legend: I and O a layer's inputs and outputs.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.models.module_paths import Parts
from fedloom.system.errors import UserError

EXTRA = "quantized"
"""The extra of this package that installs bitsandbytes."""

BLOCK, SCALES = 64, 256
"""In NF4, values that share a scale of 8 bits, and scales that share one of 32 bits."""


class QuantizedLinear(nn.Linear, ABC):
    """A frozen linear layer y = x W + b whose weight is stored in few bits.

    Args:
        packed: The stored weight.
        shape: O and I.
        bias: The bias, shape [O], or None.
    """

    def __init__(self, packed: Tensor, shape: torch.Size, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @abstractmethod
    def values(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that the stored bits stand for, shape [O, I]."""

    def forward(self, input: Tensor) -> Tensor:  # [..., I] → [..., O]
        """Apply the layer."""
        y = _Product.apply(input, self)
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    """x W; the backward pass computes W again, so that it is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.values(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.values(grad.dtype), None


class Int8Linear(QuantizedLinear):
    """A linear layer whose weight is int8 [O, I] times a scale of each output."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        values, largest, _ = library().functional.int8_vectorwise_quant(weight.half())
        super().__init__(values, weight.shape, bias)
        self.scale: Tensor
        self.register_buffer("scale", largest[:, None] / 127)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that the stored bits stand for, shape [O, I]."""
        return (self.weight * self.scale).to(dtype)


class Nf4Linear(QuantizedLinear):
    """A linear layer whose weight is NF4 (Dettmers et al., arXiv 2305.14314), with scales that are quantized too.

    The weight is stored as one row of whole blocks, because bitsandbytes' CPU kernels (0.50.2) read other values than
    they wrote where a row of the weight ends within a block.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        row = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK))[None]
        packed, state = library().functional.quantize_4bit(
            row, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        super().__init__(packed, weight.shape, bias)
        self.scales: Tensor
        self.scale_of_scales: Tensor
        self.middle: Tensor
        self.steps: Tensor
        self.register_buffer("scales", state.absmax)
        self.register_buffer("scale_of_scales", state.state2.absmax)
        self.register_buffer("middle", state.offset)
        self.register_buffer("steps", state.state2.code)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that the stored bits stand for, shape [O, I]."""
        form = library().functional
        outer = form.QuantState(self.scale_of_scales, code=self.steps, blocksize=SCALES, dtype=torch.float32)
        state = form.QuantState(
            self.scales, torch.Size((1, 2 * self.weight.numel())), blocksize=BLOCK, quant_type="nf4", dtype=dtype,
            offset=self.middle, state2=outer,
        )  # fmt: skip
        values = form.dequantize_4bit(self.weight, state).flatten()
        return values[: self.out_features * self.in_features].view(self.out_features, self.in_features)


KINDS: dict[str, type[Int8Linear | Nf4Linear]] = {"nf4": Nf4Linear, "int8": Int8Linear}


def quantize_decoder(model: Any, parts: Parts, kind: str, device: str, dtype: torch.dtype) -> None:
    """Replace the decoder's linear layers by quantized ones on a device, one by one, in place.

    Embeddings, head, encoder, connector, norms and the matrices of experts stay as they are.

    Args:
        model: The model, on the processor.
        parts: The parts of its family.
        kind: "nf4" or "int8".
        device: The kind of device.
        dtype: The data type in which the decoder computes.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    for name in quantized_names(model, parts):
        above, _, last = name.rpartition(".")
        layer = model.get_submodule(name)
        weight, bias = (
            None if value is None else value.detach().to(device, dtype)
            for value in (layer.weight, layer.bias)
        )
        assert weight is not None
        setattr(model.get_submodule(above), last, KINDS[kind](weight, bias))


def quantized_names(model: Any, parts: Parts) -> list[str]:
    """Return the names of the decoder's linear layers, which are those that can be quantized."""
    inside = {id(module) for module in model.get_decoder().modules()}
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and id(module) in inside and parts.part_of(name) == "llm"
    ]


def quantized_bytes(kind: str, inputs: int, outputs: int) -> int:
    """Return the bytes of a quantized layer's weight and scales.

    Example:
        >>> quantized_bytes("int8", 1000, 10), quantized_bytes("nf4", 1024, 16)
        (10040, 9480)
    """
    if kind == "int8":
        return outputs * (inputs + 4)
    scales = -(-inputs * outputs // BLOCK)
    return scales * BLOCK // 2 + scales + 4 * -(-scales // SCALES) + 4 * (SCALES + 1)


def quiet_library() -> None:
    """Keep bitsandbytes, which PEFT imports if it is installed, from reporting kernels that it looked for in vain."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def library() -> Any:
    """Import bitsandbytes.

    Raises:
        UserError: It is not installed.
    """
    quiet_library()
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"model.quantize: the package bitsandbytes is not installed; pip install 'fedloom[{EXTRA}]'"
        ) from error
    return bitsandbytes
