"""Choose the device of a model and the precision of its language model, where an experiment leaves them to the machine."""

from __future__ import annotations

import torch

from fedloom.system.errors import UserError

BFLOAT16_FROM = (8, 0)
"""The first generation of NVIDIA's cards (compute capability) that multiplies in bfloat16; a T4 is 7.5 and a V100 7.0."""


def device_of(setting: str) -> str:
    """Return the kind of device that `model.device` means here, "cpu" or "cuda"; only "cpu" does not ask for a card.

    Raises:
        UserError: The setting is cuda, and there is none here.
    """
    if setting == "cpu":
        return "cpu"  # without a question to CUDA, after which this process could not be copied
    if torch.cuda.is_available():
        return "cuda"
    if setting == "cuda":
        raise UserError("model.device: there is no cuda device here; choose cpu or auto")
    return "cpu"


def precision_of(setting: str, device: str) -> str:
    """Return the data type that `model.precision` means on a kind of device.

    "auto" is float32 on processors; on cards it is bfloat16 where the card multiplies in it, and otherwise float16, for which
    losses are scaled (`fedloom.client.backpropagation`).

    Args:
        setting: "auto", or the name of a data type.
        device: The result of `device_of`.
    """
    if setting != "auto":
        return setting
    if device == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability() >= BFLOAT16_FROM else "float16"
