"""Load a model's weights: all of its tensors and no others, each of the shape that the configuration says.

transformers gives tensors that are missing or misshapen random values and leaves out those it does not know, with a
warning at most. Here all three are errors that name them. What transformers itself knows to be harmless is no error:
tensors that are tied to others, and buffers that are computed again.
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

NAMED = 3
"""How many tensors a message names; it counts the rest."""

FREE = 2**28
"""Values that a model may have whatever its weights hold, so that what is missing can be named."""

FLOATS = ("F64", "F32", "F16", "BF16")

UNUSED = re.compile(r"(^|\.)vision_(tower|model)\.(vision_model\.)?head\.")
"""Extra tensors that no model here uses: the head that pools a SigLIP encoder's patches to one vector."""

BESIDE = re.compile(
    r"^(text_model|text_projection|visual_projection|logit_scale|logit_bias|(vision_model\.)?head)(\.|$)"
)
"""Extra tensors beside an encoder that is taken out of a model of images and text, and the same head."""


def tensors_of(files: ModelFiles) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in the weights of a model folder, from the headers of its files.

    Raises:
        UserError: There are no weights, or a file is cut off or damaged.
    """
    found: dict[str, tuple[int, ...]] = {}
    if not files.weights:
        raise _wrong(
            files,
            "there is no model.safetensors and no index of safetensors files; other formats are not read",
        )
    for path in files.weights:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    part = file.get_slice(name)
                    if name.endswith((".weight", ".bias")) and part.get_dtype() not in FLOATS:
                        raise _wrong(
                            files,
                            f"{path.name}: {name} holds {part.get_dtype()}; weights must be in full precision",
                        )
                    found[name] = tuple(part.get_shape())
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise _wrong(files, f"{path.name} is damaged: {error}") from error
    return found


@contextmanager
def bounded(files: ModelFiles) -> Iterator[None]:
    """Let no model inside this block describe far more than its weights hold, before memory is taken for it.

    transformers describes a model without values first; that is when this counts.

    Raises:
        UserError: The configuration has numbers out of every proportion.
    """
    shapes = tensors_of(files)
    held = sum(torch.Size(shape).numel() for shape in shapes.values())
    left = {"tensors": 4 * len(shapes) + 2_000, "values": max(2 * held, FREE)}

    def note(module: nn.Module, name: str, value: Tensor | None) -> None:
        del module, name
        if value is None or value.device.type != "meta":
            return
        left["tensors"] -= 1
        left["values"] -= value.numel()
        if min(left.values()) < 0:
            raise _wrong(
                files,
                f"config.json describes a far larger model than the weights, which hold {held:,} values in "
                f"{len(shapes):,} tensors",
            )

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
    """Refuse a model whose weights are not all there, or of another shape, or more than it has.

    Args:
        files: The files of the folder.
        info: What transformers found while loading: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        unused: Names of extra tensors that are no error.

    Raises:
        UserError: Tensors are missing, misshapen or unknown.
    """
    shapes = {name: (tuple(here), tuple(wanted)) for name, here, wanted in info["mismatched_keys"]}
    listed = {
        "missing": sorted(info["missing_keys"]),
        "of another shape than config.json says": [
            f"{name} {list(here)} instead of {list(wanted)}"
            for name, (here, wanted) in sorted(shapes.items())
        ],
        "unknown to the model that config.json describes": sorted(
            name for name in info["unexpected_keys"] if not unused.search(name)
        ),
    }
    wrong = [
        f"{_counted(names)} {'is' if len(names) == 1 else 'are'} {what}"
        for what, names in listed.items()
        if names
    ]
    if wrong:
        raise _wrong(files, "; ".join(wrong))


def check_finite(files: ModelFiles, model: nn.Module) -> None:
    """Refuse weights that are not numbers or infinite, before a run has taken time.

    The model that was loaded is looked at, in one pass over memory; its files are read once more only to find the
    tensor's name there. Buffers may be infinite, as bounds that bound nothing are.

    Args:
        files: The files of the folder.
        model: The model with its weights.

    Raises:
        UserError: There are such values; the message names the file and the tensor.
    """
    named = (name for name, value in model.named_parameters() if not _finite(value))
    buffers = (name for name, value in model.named_buffers() if not _finite(value) and value.isnan().any())
    name = next(iter((*named, *buffers)), None)
    if name is None:
        return
    for path in files.weights:
        with safe_open(path, "pt") as file:
            for held in file.keys():
                value = file.get_tensor(held)
                if value.isnan().any() or (value.isinf().any() and held.endswith((".weight", ".bias"))):
                    raise _wrong(files, f"{path.name}: {held} holds {_odd(value)}")
    raise _wrong(files, f"{name} holds {_odd(model.state_dict()[name])}")


def _finite(value: Tensor) -> bool:
    """Return whether all values are finite; where their sum is, they are, and a sum is the fastest to know."""
    return math.isfinite(value.sum().item()) or bool(value.isfinite().all())


def _odd(value: Tensor) -> str:
    return "values that are not numbers (NaN)" if value.isnan().any() else "infinite values"


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(name[:120] for name in names[:NAMED])
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {shown}{rest}"


def _wrong(files: ModelFiles, what: str) -> UserError:
    return UserError(f"{files.key}: cannot load {files.name!r} ({what})")
