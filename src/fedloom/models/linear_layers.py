"""Linear layers of all kinds that a decoder may have: torch's, quantized ones, and those of GPT-2's relatives."""

from __future__ import annotations

from torch import Tensor, nn


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return the numbers of inputs and outputs of a linear layer, or None for any other module.

    A quantized layer is one of torch's kind whose weight has another shape, and Conv1D has its weight transposed.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return inputs, outputs
    return None


def plain_weight(module: nn.Module) -> Tensor | None:
    """Return the weight [O, I] of a linear layer in which its values lie as they are, or None.

    A quantized layer has none, and a layer whose weights are in the host's memory has values only while it computes.
    """
    shape, weight = linear_shape(module), module.get_parameter("weight")
    if (
        shape is None
        or is_offloaded(module)
        or not weight.is_floating_point()
        or weight.numel() != shape[0] * shape[1]
    ):
        return None
    return weight if isinstance(module, nn.Linear) else weight.mT


def is_offloaded(module: nn.Module) -> bool:
    """Return whether a module's own weights are in the host's memory between its passes; see `fedloom.models.device_map`."""
    return bool(getattr(getattr(module, "_hf_hook", None), "offload", False))


def weight_count(module: nn.Module) -> int:
    """Return the number of values of a module's parameters; a quantized weight counts by the values that it stands for."""
    count = 0
    for part in module.modules():
        shape = linear_shape(part)
        for name, value in part.named_parameters(recurse=False):
            count += value.numel() if shape is None or name != "weight" else shape[0] * shape[1]
    return count
