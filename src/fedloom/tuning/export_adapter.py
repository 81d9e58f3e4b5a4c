"""Write an adapter as files that stock PEFT loads."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from fedloom.models.load_model import Vlm
from fedloom.params import Layout, Params
from fedloom.system.json_files import write_atomic
from fedloom.system.manifest import Manifest, write_manifest
from fedloom.tuning.adapters import PEFT_PREFIX, Tuned, adapted_modules
from fedloom.tuning.strategies import LoRA
from fedloom.version import __version__


def peft_names(layout: Layout) -> dict[str, str]:
    """Return canonical name → key of PEFT's `adapter_model.safetensors`."""
    renamed = {}
    for name in layout.names:
        path = name.partition("/")[2]
        path = re.sub(r":lora_([ab])$", lambda match: f".lora_{match.group(1).upper()}.weight", path)
        renamed[name] = PEFT_PREFIX + path
    return renamed


def adapter_config(tuned: Tuned) -> dict[str, Any]:
    """Return the content of PEFT's `adapter_config.json` for the adapter."""
    from peft import LoraConfig, TaskType

    parts, lora = tuned.vlm.family.parts, tuned.stage.lora
    names, targets = adapted_modules(tuned.spots), lora.targets if lora else ()
    # Names of layers that the model lacks are left out, since PEFT has special rules for some, such as those of experts.
    used = [target for target in targets if any(LoRA(targets=(target,)).adapts(name) for name in names)]
    linears = "|".join(map(re.escape, used))
    prefixes = "|".join(re.escape(prefix) for prefix in parts.llm)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=tuned.vlm.name,
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


def export_adapter(tuned: Tuned, params: Params, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which stock PEFT loads.

    Without adapters on the language model (strategy "connector") PEFT has nothing to insert; then the
    trained tensors are written as `connector.safetensors` under the model's own parameter names. A manifest lists the digests
    of the files, so that the folder can be verified anywhere.
    """
    if tuned.stage.lora is None:
        plain = {name.partition("/")[2]: value.clone() for name, value in params.items()}
        files = {"connector.safetensors": save(plain, metadata={"format": "pt"})}
    else:
        names = peft_names(params.layout)
        tensors = {names[name]: value.clone() for name, value in params.items()}
        text = json.dumps(adapter_config(tuned), indent=2, sort_keys=True, default=str)
        files = {
            "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
            "adapter_config.json": text.encode(),
        }
    for name, content in files.items():
        write_atomic(folder / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_manifest(folder, Manifest(__version__, files=digests))
