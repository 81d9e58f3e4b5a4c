"""The converted EfficientNet-Lite0 computes what the published network does, written here by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import make_efficientnet

# (repeats, kernel, stride, expansion, outputs) of each stage: M. Tan and Q. V. Le, arXiv 1905.11946v5, table 1.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


def blocks() -> list[tuple[int, int, int, int, int]]:
    """Kernel, stride, expansion, inputs and outputs of each of the sixteen blocks."""
    rows, width = [], 32
    for repeats, kernel, stride, expansion, outputs in STAGES:
        for number in range(repeats):
            rows.append((kernel, stride if number == 0 else 1, expansion, width, outputs))
            width = outputs
    return rows


def layers() -> list[tuple[str, str, tuple[int, int, int, int]]]:
    """Convolution, batch norm and shape of every layer, by their published names."""
    rows = [("_conv_stem", "_bn0", (32, 3, 3, 3))]
    for number, (kernel, _, expansion, inputs, outputs) in enumerate(blocks()):
        name, inner = f"_blocks.{number}", inputs * expansion
        if expansion > 1:
            rows.append((f"{name}._expand_conv", f"{name}._bn0", (inner, inputs, 1, 1)))
        rows.append((f"{name}._depthwise_conv", f"{name}._bn1", (inner, 1, kernel, kernel)))
        rows.append((f"{name}._project_conv", f"{name}._bn2", (outputs, inner, 1, 1)))
    return [*rows, ("_conv_head", "_bn1", (1280, 320, 1, 1))]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Random tensors with the published names and shapes, which keep the size of what passes through."""
    noise, tensors = torch.Generator().manual_seed(0), {}
    for convolution, norm, shape in layers():
        inputs = shape[1] * shape[2] * shape[3]
        tensors[f"{convolution}.weight"] = torch.randn(shape, generator=noise) * (2 / inputs) ** 0.5
        for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            tensors[f"{norm}.{name}"] = torch.rand(shape[0], generator=noise) + low
        tensors[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return {**tensors, "_fc.weight": torch.randn(1000, 1280, generator=noise), "_fc.bias": torch.zeros(1000)}


def layer(tensors: dict[str, Tensor], number: int, x: Tensor, stride: int = 1) -> Tensor:
    """Convolve with the padding that keeps ⌈size / stride⌉ places, more of it behind, and normalize."""
    convolution, norm, shape = layers()[number]
    missing = max((-(-x.shape[-1] // stride) - 1) * stride + shape[-1] - x.shape[-1], 0)
    before, after = missing // 2, missing - missing // 2
    padded, groups = F.pad(x, (before, after, before, after)), x.shape[1] // shape[1]
    y = F.conv2d(padded, tensors[f"{convolution}.weight"], stride=stride, groups=groups)
    mean, variance, scale, shift = (
        tensors[f"{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (y - mean) / (variance + 1e-3).sqrt() * scale + shift


def features(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """Pass images through the published network up to its last map."""
    x, number = layer(tensors, 0, x, 2).clamp(0, 6), 1
    for _, stride, expansion, inputs, outputs in blocks():
        y = x
        if expansion > 1:
            y, number = layer(tensors, number, y).clamp(0, 6), number + 1
        y = layer(tensors, number, y, stride).clamp(0, 6)
        y, number = layer(tensors, number + 1, y), number + 2
        x = x + y if stride == 1 and inputs == outputs else y
    return layer(tensors, number, x).clamp(0, 6)


@pytest.mark.parametrize("side", [128, 224])
def test_the_stock_model_computes_what_the_published_network_does(
    tensors: dict[str, Tensor], side: int
) -> None:
    """In float64, where roundings do not add up over fifty layers."""
    model = make_efficientnet.converted(tensors).double()
    tensors = {name: value.double() for name, value in tensors.items()}
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    computed, expected = model(x).last_hidden_state, features(tensors, x)
    assert computed.shape == (2, 1280, side // 32, side // 32)
    assert 0.05 < float(((expected > 0) & (expected < 6)).float().mean())  # no dead or saturated network
    torch.testing.assert_close(computed, expected, rtol=1e-8, atol=1e-8)


def test_no_tensor_may_be_missing_unknown_or_of_another_shape(tensors: dict[str, Tensor]) -> None:
    less = {name: value for name, value in tensors.items() if name != "_blocks.3._bn1.bias"}
    with pytest.raises(RuntimeError, match=r"encoder\.blocks\.3\.depthwise_conv\.depthwise_norm\.bias"):
        make_efficientnet.converted(less)
    with pytest.raises(ValueError, match=r"unknown tensor _blocks\.3\._se_reduce"):
        make_efficientnet.converted({**tensors, "_blocks.3._se_reduce.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_efficientnet.converted({**tensors, "_conv_stem.weight": torch.zeros(32, 3, 5, 5)})


def test_a_pixel_becomes_what_it_was_in_training() -> None:
    image = np.full((40, 60, 3), (0, 127, 255), np.uint8)
    computed = make_efficientnet.images()([image], return_tensors="pt")["pixel_values"]
    assert computed.shape == (1, 3, 128, 128)
    for channel, value in enumerate((-127 / 128, 0.0, 1.0)):
        torch.testing.assert_close(computed[0, channel], torch.full((128, 128), value), rtol=0, atol=1e-6)


def test_a_file_with_another_digest_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=make_efficientnet.SHA256):
        make_efficientnet.published(tmp_path / "weights.pth")
