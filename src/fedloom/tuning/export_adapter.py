"""Write an adapter as files that stock PEFT loads."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from fedloom.config.old_spellings import current_name
from fedloom.models.added_models import ADDED, find_added
from fedloom.models.linear_layers import plain_weight
from fedloom.models.load_model import BUNDLED, Vlm
from fedloom.models.quantized_layers import QuantizedLinear, quiet_library
from fedloom.params import Layout, Params
from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic
from fedloom.system.manifest import Manifest, write_manifest
from fedloom.tuning.adapters import PEFT_PREFIX, Tuned, adapted_modules, release
from fedloom.tuning.lora import LoRALinear
from fedloom.tuning.strategies import LoRA, Stage
from fedloom.version import __version__

NOTHING: Mapping[str, bytes] = MappingProxyType({})
"""No further files."""


def peft_names(layout: Layout) -> dict[str, str]:
    """Return canonical name → key of PEFT's `adapter_model.safetensors`."""
    renamed = {}
    for name in layout.names:
        path = name.partition("/")[2]
        path = re.sub(r":lora_([ab])$", lambda match: f".lora_{match.group(1).upper()}.weight", path)
        renamed[name] = PEFT_PREFIX + path
    return renamed


def base_location(vlm: Vlm) -> str:
    """Return what `from_pretrained` loads a model from: the absolute path of its folder, or its name on a model hub.

    A model that has no folder of its own, because it was assembled, keeps its name.
    """
    if " + " in vlm.name and not Path(vlm.name).is_dir():
        return vlm.name
    folder = BUNDLED.get(current_name(vlm.name), Path(vlm.name))
    if vlm.name in ADDED:
        folder = find_added("model.path", vlm.name)
    return str(folder.resolve()) if folder.is_dir() else vlm.name


def foreign_parameters(tuned: Tuned) -> list[str]:
    """Return the names of values that the model has and its class in transformers has not, or the other way round.

    A class would draw the latter at random and leave the former out, with a warning at most. They are those of a connector of
    another form than the class's own, or the bias of a head that the class has without one.
    """
    model = tuned.vlm.model
    with torch.device("meta"):
        stock = type(model)(copy.deepcopy(model.config))
    replaced = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, LoRALinear | QuantizedLinear)
    )
    names = {name for name in {*model.state_dict()} ^ {*stock.state_dict()} if not name.startswith(replaced)}
    return sorted(names)


def adapter_config(tuned: Tuned, base: str | None = None) -> dict[str, Any]:
    """Return the content of PEFT's `adapter_config.json` for the adapter.

    Args:
        tuned: The model with the adapter.
        base: What the base model is loaded from; None is `base_location`.
    """
    quiet_library()
    from peft import LoraConfig, TaskType

    parts, lora = tuned.vlm.family.parts, tuned.stage.lora
    names, targets = adapted_modules(tuned.spots), lora.targets if lora else ()
    # Names of layers that the model lacks are left out, since PEFT has special rules for some, such as those of experts.
    used = [target for target in targets if any(LoRA(targets=(target,)).adapts(name) for name in names)]
    linears = "|".join(map(re.escape, used))
    prefixes = "|".join(re.escape(prefix) for prefix in parts.llm)
    # `AutoPeftModel` loads the class named here; `AutoPeftModelForCausalLM` knows no models that see images.
    images, model = tuned.vlm.family.images, type(tuned.vlm.model)
    config = LoraConfig(
        task_type=None if images else TaskType.CAUSAL_LM,
        auto_mapping={"base_model_class": model.__name__, "parent_library": model.__module__}
        if images
        else None,
        base_model_name_or_path=base_location(tuned.vlm) if base is None else base,
        inference_mode=True,
        r=lora.rank if lora else 1,
        lora_alpha=lora.alpha if lora else 1,  # type: ignore[arg-type]
        lora_dropout=lora.dropout if lora else 0.0,
        bias="none",
        # A regular expression, because encoders name their layers as decoders do.
        target_modules=rf"({prefixes})\.(.*\.)?({linears})" if lora else None,
        modules_to_save=_saved_modules(tuned.vlm) if "connector" in tuned.stage.train else None,
    )
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }


def _saved_modules(vlm: Vlm) -> list[str]:
    """Return the names of the connector's modules; PEFT expects the members of a list, not the list."""
    names: list[str] = []
    for prefix in vlm.family.parts.connector:
        module = dict(vlm.model.named_modules()).get(prefix)
        if isinstance(module, nn.ModuleList):
            names += [f"{prefix}.{number}" for number in range(len(module))]
        elif module is not None:
            names.append(prefix)
    return names


def export_adapter(
    tuned: Tuned,
    params: Params,
    folder: Path,
    base: str | None = None,
    others: Mapping[str, bytes] = NOTHING,
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which stock PEFT loads.

    Without adapters on the language model (strategy "connector") PEFT has nothing to insert; then the
    trained tensors are written as `connector.safetensors` under the model's own parameter names. A manifest lists the digests
    of the files, so that the folder can be verified anywhere.

    Args:
        tuned: The model.
        params: The trainable parameters.
        folder: The folder; it is made if it does not exist.
        base: What the base model is loaded from; None is `base_location`.
        others: Name → content of further files, such as those of the tokenizer.
    """
    if tuned.stage.lora is None:
        plain = {name.partition("/")[2]: value.clone() for name, value in params.items()}
        files = {"connector.safetensors": save(plain, metadata={"format": "pt"})}
    else:
        names = peft_names(params.layout)
        tensors = {names[name]: value.clone() for name, value in params.items()}
        text = json.dumps(adapter_config(tuned, base), indent=2, sort_keys=True, default=str)
        files = {
            "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
            "adapter_config.json": text.encode(),
        }
    files |= others
    for name, content in files.items():
        write_atomic(folder / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_manifest(folder, Manifest(__version__, files=digests))


def with_rank(tuned: Tuned, params: Params, rank: int) -> tuple[Tuned, Params]:
    """Return the adapters of another rank whose products B·A are nearest to those of the given ones.

    Each product, with its scale, is replaced by its truncated singular value decomposition U S Vᵀ, the best
    approximation of that rank in the Frobenius norm (Eckart and Young 1936): B = U √S and A = √S Vᵀ, with a scale of 1.

    Args:
        tuned: The model, which has adapters; only its settings are read.
        params: The trainable parameters.
        rank: The new rank, 1 to that of the adapters.

    Returns:
        The settings and the values.
    """
    lora = tuned.stage.lora
    assert lora is not None
    tensors = dict(params.items())
    for name in [name for name in tensors if name.endswith(":lora_a")]:
        other = name.removesuffix("a") + "b"
        # Both factors are thin, so the decomposition of a small matrix is enough.
        left, right = torch.linalg.qr(tensors[other].double()), torch.linalg.qr(tensors[name].double().mT)
        inner = (lora.alpha / lora.rank) * left.R @ right.R.mT
        u, s, v = torch.linalg.svd(inner)
        roots = s[:rank].sqrt()
        tensors[other] = (left.Q @ u[:, :rank] * roots).float()
        tensors[name] = (roots[:, None] * v[:rank] @ right.Q.mT).float()
    changed = replace(lora, rank=rank, alpha=float(rank))
    train = {part: changed if isinstance(how, LoRA) else how for part, how in tuned.stage.train.items()}
    return replace(tuned, stage=Stage(train, tuned.stage.personal)), Params.of(tensors)


@torch.no_grad()
def merge_adapters(tuned: Tuned, params: Params) -> None:
    """Add adapters to the layers below them, put the trained connector into the model, and remove the adapters.

    The model then is an ordinary one; `tuned` must not be used any more.

    Raises:
        UserError: A layer is quantized or in the host's memory, so that nothing can be added to its weight.
    """
    if any(plain_weight(layer.base) is None for layer in tuned.adapters.values()):
        raise UserError(
            "adapters cannot be merged into quantized layers (model.quantize), or into layers in the host's memory "
            "(model.device_map); export the adapter without --merged"
        )
    tuned.write(params)
    for layer in tuned.adapters.values():
        # On the CPU, since some accelerators have no float64.
        update = layer.scale * (layer.lora_b.cpu().double() @ layer.lora_a.cpu().double())
        if (weight := plain_weight(layer.base)) is not None:
            weight.add_(update.to(weight))
    release(tuned)
    for name, value in params.items():
        if not name.endswith((":lora_a", ":lora_b")):
            spot = tuned.spots[name]
            getattr(tuned.vlm.model.get_submodule(spot.module), spot.attribute).copy_(value)
