"""Code that loads the adapter of a run folder, shown in the report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fedloom.models.folder_checks import BUNDLED
from fedloom.report.introduction import is_assembled
from fedloom.report.run_results import Run, at
from fedloom.report.tables import label

VISION_BASE = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

{where}
base = AutoModelForImageTextToText.from_pretrained(name, dtype="float32")
processor = AutoProcessor.from_pretrained(name)"""
TEXT_BASE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

{where}
base = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(name)"""
BUNDLED_NAME = "from fedloom.models.load_model import BUNDLED\n\nname = BUNDLED[{path!r}]"
ASSEMBLED_BASE = """\
from pathlib import Path

from fedloom import Experiment
from fedloom.models.assemble_model import load_model

experiment = Experiment.from_json(Path({file!r}).read_text(encoding="utf-8"))
base = load_model(experiment.model, experiment.seed).model"""
"""The base model of a run with a newly initialized connector, which no pretrained checkpoint holds."""

PEFT = "from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, {folder!r})"
CONNECTOR = """\
from safetensors.torch import load_file

base.load_state_dict(load_file({file!r}), strict=False)"""


class Loading(NamedTuple):
    """A sentence about the exported adapter, and the code that loads it or ""."""

    sentence: str
    code: str = ""


def adapter_loading(run: Run) -> Loading | None:
    """Describe the adapter of a run folder and how to load it; None if the run exports none."""
    main = run.result.get("main")
    if not main:
        return None
    name, method = f"{run.folder.name}/adapter", label(str(main))
    base = _base(run)
    if (run.folder / "adapter/adapter_model.safetensors").is_file():
        sentence = f"The exported adapter is that of {method}. Load it with {_loader(run)}:"
        return Loading(sentence, f"{base}\n{PEFT.format(folder=name)}")
    adapters = _client_adapters(run.folder / "adapter")
    if adapters:
        sentence = (
            f"With {method} every client keeps a part of the model to itself, so each has its own adapter in {name}. Load that "
            f"of client {adapters[0].name.removeprefix('client-')} with {_loader(run)}, and the others in the same way:"
        )
        return Loading(sentence, f"{base}\n{PEFT.format(folder=f'{name}/{adapters[0].name}')}")
    if (run.folder / "adapter/connector.safetensors").is_file():
        sentence = f"The trained connector of {method} was exported. It is not an adapter, so PEFT is not needed to load it:"
        return Loading(sentence, f"{base}\n{CONNECTOR.format(file=f'{name}/connector.safetensors')}")
    return Loading(f"The run exports the adapter of {method}, but it is not in the folder {name}.")


def _client_adapters(folder: Path) -> list[Path]:
    """Return the folders of the clients' own adapters in the order of the clients' numbers."""
    folders = [file.parent for file in folder.glob("client-*/adapter_model.safetensors")]
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def _has_new_connector(run: Run) -> bool:
    return is_assembled(run.experiment) or at(run.experiment, "model", "connector") is not None


def _loader(run: Run) -> str:
    return (
        "PEFT into the model that fedloom builds for this experiment"
        if _has_new_connector(run)
        else "stock PEFT"
    )


def _base(run: Run) -> str:
    if _has_new_connector(run):
        return ASSEMBLED_BASE.format(file=f"{run.folder.name}/experiment.json")
    path = str(at(run.experiment, "model", "path") or "bundled")
    where = BUNDLED_NAME.format(path=path) if path in BUNDLED else f"name = {path!r}"
    return (TEXT_BASE if run.text_only else VISION_BASE).format(where=where)
