"""Read the files of an exported adapter, which users load with PEFT, into the parameters of a model."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from fedloom.params import Params
from fedloom.system.errors import UserError
from fedloom.system.manifest import check_files, read_manifest
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.export_adapter import peft_names


def import_adapter(tuned: Tuned, folder: Path) -> Params:
    """Read parameters that `export_adapter` or PEFT wrote.

    Raises:
        UserError: A file is missing or damaged; a tensor is missing, is one too many, or has another shape than this model's.
    """
    if (manifest := read_manifest(folder)) is not None:
        check_files(folder, manifest, manifest.files)
    file = folder / "adapter_model.safetensors"
    if tuned.stage.lora is None:
        file = folder / "connector.safetensors"
        names = {name: name.partition("/")[2] for name in tuned.layout.names}
    else:
        names = peft_names(tuned.layout)
    tensors = load_file(file)
    shapes = dict(zip(tuned.layout.names, tuned.layout.shapes, strict=True))
    wrong = [
        key for name, key in names.items() if key not in tensors or tuple(tensors[key].shape) != shapes[name]
    ]
    wrong += sorted(set(tensors) - set(names.values()))
    if wrong:
        raise UserError(f"{file}: {len(wrong)} tensors are missing, extra or misshapen, first {wrong[0]!r}")
    return Params.of({name: tensors[key] for name, key in names.items()})
