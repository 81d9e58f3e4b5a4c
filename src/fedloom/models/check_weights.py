"""Check a model's weights: all of its tensors and no others, each of the shape that the configuration gives.

transformers fills missing or misshapen tensors with random values and ignores unknown ones, with a
warning at most. Here all three are errors that name the tensors. Missing tensors that transformers itself considers
harmless are no error: tensors that are tied to others, and buffers that are computed again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from fedloom.models.folder_checks import ModelFiles
from fedloom.system.errors import UserError

TENSORS_NAMED = 3
"""The most tensors that a message names; it counts the others."""

FREE_VALUES = 2**28
"""Values that a model may always have, so that missing tensors can be named."""

FLOATS = ("F64", "F32", "F16", "BF16")

HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""Data types of 16 bits, as safetensors names them."""

UNUSED = re.compile(r"(^|\.)vision_(tower|model)\.(vision_model\.)?head\.")
"""Extra tensors that are never used: the head that pools the patches of a SigLIP encoder to one vector."""

UNUSED_BESIDE_ENCODER = re.compile(
    r"^(text_model|text_projection|visual_projection|logit_scale|logit_bias|(vision_model\.)?head)(\.|$)"
)
"""Extra tensors of a CLIP or SigLIP model of which only the encoder is loaded, and the same head."""


def tensors_of(files: ModelFiles) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in the weights of a model folder, from the headers of its files.

    Raises:
        UserError: There are no weights, or a file is truncated or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if not files.weights:
        raise _wrong(
            files,
            "there is no model.safetensors and no index of safetensors files; other formats are not read",
        )
    for path in files.weights:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    tensor = file.get_slice(name)
                    if name.endswith((".weight", ".bias")) and tensor.get_dtype() not in FLOATS:
                        raise _wrong(
                            files,
                            f"{path.name}: {name} holds {tensor.get_dtype()}; weights must be in full precision",
                        )
                    shapes[name] = tuple(tensor.get_shape())
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise _wrong(files, f"{path.name} is damaged: {error}") from error
    return shapes


def half_dtype(files: ModelFiles) -> torch.dtype | None:
    """Return the data type of 16 bits that all floating-point tensors of a model folder have, or None."""
    kinds = set[str]()
    for path in files.weights:
        with safe_open(path, "pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()} & {*FLOATS}
    return HALVES.get(kinds.pop()) if len(kinds) == 1 else None


@contextmanager
def limited_size(files: ModelFiles, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Raise an error if a model that is built inside this block is far larger than its weights, before it takes memory.

    transformers first builds a model without values; its tensors are counted then. It reads each weight in the data type
    that the parameter has in that model.

    Args:
        files: The files of the folder.
        dtype: The data type of parameters. Buffers that the model computes stay in float32.

    Raises:
        UserError: The configuration describes a far larger model than the weights.
    """
    shapes = tensors_of(files)
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    remaining = {"tensors": 4 * len(shapes) + 2_000, "values": max(2 * count, FREE_VALUES)}

    def note(module: nn.Module, name: str, value: Tensor | None) -> nn.Parameter | None:
        del module, name
        if value is None or value.device.type != "meta":
            return None
        remaining["tensors"] -= 1
        remaining["values"] -= value.numel()
        if min(remaining.values()) < 0:
            raise _wrong(
                files,
                f"config.json describes a far larger model than the weights, which hold {count:,} values in "
                f"{len(shapes):,} tensors",
            )
        if isinstance(value, nn.Parameter) and value.dtype == torch.float32 != dtype:
            return nn.Parameter(value.detach().to(dtype), value.requires_grad)
        return None

    handles = [
        hooks.register_module_parameter_registration_hook(note),  # pyright: ignore[reportArgumentType]
        hooks.register_module_buffer_registration_hook(note),  # pyright: ignore[reportArgumentType]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_whole(files: ModelFiles, info: Mapping[str, Any], unused: re.Pattern[str] = UNUSED) -> None:
    """Raise an error if tensors of a model are missing, of another shape, or unknown.

    Args:
        files: The files of the folder.
        info: The loading info of transformers: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        unused: Names of extra tensors that are ignored.

    Raises:
        UserError: Tensors are missing, misshapen or unknown.
    """
    shapes = {name: (tuple(actual), tuple(expected)) for name, actual, expected in info["mismatched_keys"]}
    problems = {
        "missing": sorted(info["missing_keys"]),
        "of another shape than config.json says": [
            f"{name} {list(actual)} instead of {list(expected)}"
            for name, (actual, expected) in sorted(shapes.items())
        ],
        "unknown to the model that config.json describes": sorted(
            name for name in info["unexpected_keys"] if not unused.search(name)
        ),
    }
    sentences = [
        f"{_counted(names)} {'is' if len(names) == 1 else 'are'} {problem}"
        for problem, names in problems.items()
        if names
    ]
    if sentences:
        raise _wrong(files, "; ".join(sentences))


def check_finite(files: ModelFiles, model: nn.Module) -> None:
    """Raise an error if weights are infinite or not a number (NaN).

    This takes one pass over the loaded model; its files are read again only to find the tensor's name in them. Buffers
    may be infinite, because some hold bounds that are never reached.

    Args:
        files: The files of the folder.
        model: The model with its weights.

    Raises:
        UserError: There are such values; the message names the file and the tensor.
    """
    parameters = (name for name, value in model.named_parameters() if not _finite(value))
    buffers = (name for name, value in model.named_buffers() if not _finite(value) and value.isnan().any())
    name = next(iter((*parameters, *buffers)), None)
    if name is None:
        return
    for path in files.weights:
        with safe_open(path, "pt") as file:
            for key in file.keys():
                value = file.get_tensor(key)
                if value.isnan().any() or (value.isinf().any() and key.endswith((".weight", ".bias"))):
                    raise _wrong(files, f"{path.name}: {key} holds {_nonfinite(value)}")
    raise _wrong(files, f"{name} holds {_nonfinite(model.state_dict()[name])}")


def _finite(value: Tensor) -> bool:
    """Return whether all values are finite; a finite sum, which is fastest to compute, shows that they are."""
    return math.isfinite(value.sum().item()) or bool(value.isfinite().all())


def _nonfinite(value: Tensor) -> str:
    return "values that are not numbers (NaN)" if value.isnan().any() else "infinite values"


def _counted(names: Sequence[str]) -> str:
    listed = ", ".join(name[:120] for name in names[:TENSORS_NAMED])
    more = f" and {len(names) - TENSORS_NAMED} more" if len(names) > TENSORS_NAMED else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {listed}{more}"


def _wrong(files: ModelFiles, what: str) -> UserError:
    return UserError(f"{files.key}: cannot load {files.name!r} ({what})")
