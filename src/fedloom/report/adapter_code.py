"""Code for loading the adapter that a run exported, from what its folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fedloom.models.folder_checks import BUNDLED
from fedloom.report.introduction import assembled
from fedloom.report.run_results import Run, at
from fedloom.report.tables import label

STOCK = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

{where}
base = AutoModelForImageTextToText.from_pretrained(name, dtype="float32")
processor = AutoProcessor.from_pretrained(name)"""
TEXT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

{where}
base = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(name)"""
OURS = "from fedloom.models.load_model import BUNDLED\n\nname = BUNDLED[{path!r}]"
MADE = """\
from pathlib import Path

from fedloom import Experiment
from fedloom.models.assemble_model import load_model

experiment = Experiment.from_json(Path({file!r}).read_text(encoding="utf-8"))
base = load_model(experiment.model, experiment.seed).model"""
"""The base model of a run with a fresh connector, which no checkpoint has."""

PEFT = "from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, {folder!r})"
CONNECTOR = """\
from safetensors.torch import load_file

base.load_state_dict(load_file({file!r}), strict=False)"""


class Loading(NamedTuple):
    """The text about the exported adapter: a sentence, and code or ""."""

    told: str
    code: str = ""


def loading(run: Run) -> Loading | None:
    """Describe the adapter of a run folder and how it is loaded; None where the run exports none."""
    main = run.result.get("main")
    if not main:
        return None
    name, of = f"{run.folder.name}/adapter", label(str(main))
    base = _base(run)
    if (run.folder / "adapter/adapter_model.safetensors").is_file():
        told = f"The exported adapter is that of {of}. Load it with {_what(run)}:"
        return Loading(told, f"{base}\n{PEFT.format(folder=name)}")
    own = _own(run.folder / "adapter")
    if own:
        told = (
            f"With {of} every client keeps a part of the model to itself, so each has its own adapter in {name}. Load that "
            f"of client {own[0].name.removeprefix('client-')} with {_what(run)}, and the others likewise:"
        )
        return Loading(told, f"{base}\n{PEFT.format(folder=f'{name}/{own[0].name}')}")
    if (run.folder / "adapter/connector.safetensors").is_file():
        told = f"The trained connector of {of} was exported. It is not an adapter, so PEFT is not needed to load it:"
        return Loading(told, f"{base}\n{CONNECTOR.format(file=f'{name}/connector.safetensors')}")
    return Loading(f"The run exports the adapter of {of}, but it is not in the folder {name}.")


def _own(folder: Path) -> list[Path]:
    """List the folders of clients' own adapters, by the clients' numbers."""
    found = [file.parent for file in folder.glob("client-*/adapter_model.safetensors")]
    return sorted(found, key=lambda one: (len(one.name), one.name))


def _fresh(run: Run) -> bool:
    return assembled(run.experiment) or at(run.experiment, "model", "connector") is not None


def _what(run: Run) -> str:
    return "PEFT into the model that fedloom builds for this experiment" if _fresh(run) else "stock PEFT"


def _base(run: Run) -> str:
    if _fresh(run):
        return MADE.format(file=f"{run.folder.name}/experiment.json")
    path = str(at(run.experiment, "model", "path") or "bundled")
    where = OURS.format(path=path) if path in BUNDLED else f"name = {path!r}"
    return (TEXT if run.text_only else STOCK).format(where=where)
