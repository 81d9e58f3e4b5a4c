"""Trained tensors as views of one flat buffer, and their files in PEFT's format.

Shape legend: P trained values, I and O a linear layer's inputs and outputs, R rank.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedloom.models.load import Vlm
from fedloom.params import Layout, Params
from fedloom.record import write_atomic
from fedloom.seeds import torch_stream
from fedloom.tuning.strategy import LoRA, Stage
from fedloom.types import UserError

PEFT_PREFIX = "base_model.model."


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank update: y = W x + b + (alpha / rank) · B A x.

    Args:
        base: The frozen layer.
        lora_a: A, shape [R, I].
        lora_b: B, shape [O, R].
        scale: alpha / rank.
    """

    def __init__(self, base: nn.Linear, lora_a: nn.Parameter, lora_b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base, self.lora_a, self.lora_b, self.scale = base, lora_a, lora_b, scale

    def forward(self, x: Tensor) -> Tensor:  # [..., I] → [..., O]
        """Apply layer and update."""
        return self.base(x) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model whose trained tensors are views of `flat`, and their gradients views of `grads`.

    Attributes:
        vlm: The model.
        stage: What is trained.
        start: The parameters before training: A random, B zero, connector as loaded.
        flat: The live values, shape [P]; writing to it changes the model.
        grads: Where `backward` adds gradients, shape [P].
    """

    vlm: Vlm
    stage: Stage
    start: Params
    flat: Tensor
    grads: Tensor

    @property
    def layout(self) -> Layout:
        """Names and shapes of the trained tensors."""
        return self.start.layout

    def write(self, params: Params) -> None:
        """Put parameters into the model: one copy."""
        if params.layout != self.layout:
            raise ValueError("these parameters were made for another model or strategy")
        self.flat.copy_(params.flat)

    def read(self) -> Params:
        """Copy the live parameters out."""
        return Params(self.layout, self.flat.clone())


def prepare(vlm: Vlm, stage: Stage, seed: int) -> Tuned:
    """Insert adapters and tie every trained tensor to one flat buffer; changes `vlm.model` in place.

    Args:
        vlm: A freshly loaded model.
        stage: Which parts to train and how.
        seed: Names the random stream that A is drawn from (uniform in ±1/√I, as PEFT draws it).

    Raises:
        UserError: The stage names a part the model lacks, or no layer matches its targets.
    """
    tensors: dict[str, Tensor] = {}
    places: dict[str, tuple[str, str]] = {}  # canonical name → (module, attribute)
    for part, how in stage.train.items():
        if not getattr(vlm.family.parts, part):
            raise UserError(f"strategy: this model has no {part}, so it cannot be trained")
        if isinstance(how, LoRA):
            for name in _targets(vlm, part, how):
                layer = vlm.model.get_submodule(name)
                bound = 1 / math.sqrt(layer.in_features)
                generator = torch_stream(seed, f"lora/{name}")
                drawn = torch.rand(how.rank, layer.in_features, generator=generator) * 2 * bound - bound
                for key, value in (("lora_a", drawn), ("lora_b", torch.zeros(layer.out_features, how.rank))):
                    tensors[f"{part}/{name}:{key}"], places[f"{part}/{name}:{key}"] = value, (name, key)
        else:
            names = vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())[part]
            for name in names:
                module, _, attribute = name.rpartition(".")
                tensors[f"{part}/{name}"] = vlm.model.get_parameter(name).detach()
                places[f"{part}/{name}"] = (module, attribute)
    start = Params.of(tensors)
    tuned = Tuned(vlm, stage, start, start.flat.clone(), torch.zeros(start.layout.size))
    _tie(tuned, places)
    return tuned


def _targets(vlm: Vlm, part: str, how: LoRA) -> list[str]:
    found = [
        name
        for name, module in vlm.model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in how.targets
        and any(name.startswith(prefix + ".") for prefix in getattr(vlm.family.parts, part))
        and vlm.family.parts.part_of(name) == part
    ]
    if not found:
        raise UserError(
            f"strategy.targets: no linear layer of the {part} is called any of {', '.join(how.targets)}"
        )
    return found


def _tie(tuned: Tuned, places: dict[str, tuple[str, str]]) -> None:
    parameters: dict[str, dict[str, nn.Parameter]] = {}
    values, grads = Params(tuned.layout, tuned.flat), Params(tuned.layout, tuned.grads)
    for name, (module, attribute) in places.items():
        parameter = nn.Parameter(values[name])
        # Backward adds into the view in place, so the flat gradient needs no gathering.
        parameter.grad = grads[name]
        parameters.setdefault(module, {})[attribute] = parameter
    model = tuned.vlm.model
    lora = tuned.stage.lora
    for name, found in parameters.items():
        if "lora_a" in found:
            assert lora is not None
            layer = LoRALinear(
                model.get_submodule(name), found["lora_a"], found["lora_b"], lora.alpha / lora.rank
            )
            above, _, last = name.rpartition(".")
            setattr(model.get_submodule(above), last, layer)
        else:
            for attribute, parameter in found.items():
                setattr(model.get_submodule(name), attribute, parameter)


def _peft_names(layout: Layout) -> dict[str, str]:
    """Map canonical names to the keys of PEFT's `adapter_model.safetensors`."""
    renamed = {}
    for name in layout.names:
        path = name.partition("/")[2]
        path = re.sub(r":lora_([ab])$", lambda match: f".lora_{match.group(1).upper()}.weight", path)
        renamed[name] = PEFT_PREFIX + path
    return renamed


def adapter_config(tuned: Tuned) -> dict[str, Any]:
    """Describe the adapter as PEFT's `adapter_config.json` does."""
    from peft import LoraConfig, TaskType

    parts, lora = tuned.vlm.family.parts, tuned.stage.lora
    linears = "|".join(lora.targets) if lora else ""
    prefixes = "|".join(re.escape(prefix) for prefix in parts.llm)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=tuned.vlm.name,
        inference_mode=True,
        r=lora.rank if lora else 1,
        lora_alpha=lora.alpha if lora else 1,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        # A regular expression, because encoders name their layers as decoders do.
        target_modules=rf"({prefixes})\..*\.({linears})" if lora else None,
        modules_to_save=list(parts.connector) if "connector" in tuned.stage.train else None,
    )
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }


def export_adapter(tuned: Tuned, params: Params, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which stock PEFT loads.

    Without adapters on the language model (strategy "connector") PEFT has nothing to insert; then the
    trained tensors are written as `connector.safetensors` under the model's own parameter names.
    """
    if tuned.stage.lora is None:
        plain = {name.partition("/")[2]: value.clone() for name, value in params.items()}
        write_atomic(folder / "connector.safetensors", save(plain, metadata={"format": "pt"}))
        return
    names = _peft_names(params.layout)
    tensors = {names[name]: value.clone() for name, value in params.items()}
    write_atomic(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    text = json.dumps(adapter_config(tuned), indent=2, sort_keys=True, default=str)
    write_atomic(folder / "adapter_config.json", text.encode())


def import_adapter(tuned: Tuned, folder: Path) -> Params:
    """Read parameters that `export_adapter` or PEFT wrote.

    Raises:
        UserError: A tensor is missing, is one too many, or has another shape than this model's.
    """
    file = folder / "adapter_model.safetensors"
    if tuned.stage.lora is None:
        file = folder / "connector.safetensors"
        names = {name: name.partition("/")[2] for name in tuned.layout.names}
    else:
        names = _peft_names(tuned.layout)
    found = load_file(file)
    shapes = dict(zip(tuned.layout.names, tuned.layout.shapes, strict=True))
    wrong = [
        key for name, key in names.items() if key not in found or tuple(found[key].shape) != shapes[name]
    ]
    wrong += sorted(set(found) - set(names.values()))
    if wrong:
        raise UserError(f"{file}: {len(wrong)} tensors are missing, extra or misshapen, first {wrong[0]!r}")
    return Params.of({name: found[key] for name, key in names.items()})
