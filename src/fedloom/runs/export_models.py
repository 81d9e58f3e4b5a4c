"""Export a model of a run, as a complete adapter for PEFT or merged into its base model; see docs/decisions/0014."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedloom.client.site import Question
from fedloom.experiment.experiment import Experiment
from fedloom.models.hub import Source
from fedloom.models.load_model import Vlm
from fedloom.runs.model_card import model_card
from fedloom.runs.run_context import RunContext
from fedloom.runs.saved_models import SavedModels, open_models
from fedloom.runs.site_setup import clause_of
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest
from fedloom.system.json_files import to_json, write_atomic
from fedloom.system.manifest import Manifest, files_in, write_manifest
from fedloom.system.progress import Progress
from fedloom.system.temporary_folders import temporary_folder
from fedloom.tasks.rendering import render
from fedloom.tuning.adapters import release
from fedloom.tuning.export_adapter import (
    base_location,
    export_adapter,
    foreign_parameters,
    merge_adapters,
    with_rank,
)
from fedloom.types import Example, Presence
from fedloom.version import __version__

CARD, PROMPT, BASE = "README.md", "prompt.json", "base"
"""Names in an exported folder: the model card, the form of prompts, and the folder of a base model that no other folder holds."""

FOREIGN = 3
"""The most values that a message names with which no class of transformers loads a model."""

PROCESSOR = "processor_config.json"
"""The file of a processor, which may hold the settings of its image processor."""

LEFT_OUT = ("config.json", "generation_config.json", "model.safetensors.index.json")
"""Files of a model folder that belong to its weights, and not to its processor."""


def export_model(
    context: RunContext, question: Question, folder: Path, *, rank: int | None = None, base: str | None = None
) -> None:
    """Write the adapter of one model with everything that is needed to use it.

    Args:
        context: The run.
        question: Names the model.
        folder: The folder; it is made if it does not exist.
        rank: The rank of the exported adapters; None keeps theirs.
        base: What the base model is loaded from; None is its folder, or its name on a hub. A base model that was made for the
            run is in no folder; the adapter then names the folder in which `export_from_run` would write it.

    Raises:
        UserError: The rank is larger than that of the adapters, or there are none.
    """
    tuned, params = context.tuned, context.site.model(question)
    if rank is not None:
        lora = tuned.stage.lora
        if lora is None or not 1 <= rank <= lora.rank:
            most = (
                "the strategy connector has no adapters" if lora is None else f"it must be 1 to {lora.rank}"
            )
            raise UserError(f"--rank {rank}: {most}")
        tuned, params = with_rank(tuned, params, rank)
    if base is None and not has_no_folder(context.experiment):
        base = base_location(tuned.vlm)
    foreign = foreign_values(context)
    others = {
        **processor_files(context.vlm, context.experiment),
        PROMPT: _prompt_form(context, question),
        CARD: model_card(context, question, base, rank=rank, foreign=foreign).encode(),
    }
    export_adapter(tuned, params, folder, base or str((folder / BASE).resolve()), others)


def export_from_run(
    folder: Path,
    out: Path,
    *,
    method: str | None = None,
    client: int | None = None,
    merged: bool = False,
    rank: int | None = None,
    with_base: bool = False,
    changes: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> None:
    """Export a model of a finished run.

    Args:
        folder: The run folder.
        out: The folder to write: missing or empty.
        method: The method; None is the one whose adapter the run exported.
        client: The client whose own model it is, or None.
        merged: Whether to write a whole model, in which the adapters are merged, instead of an adapter.
        rank: The rank of the exported adapters; None keeps theirs.
        with_base: Whether to write the base model beside the adapter, in `base`. A base model that was made for the run, by a
            new connector or from parts, always is, unless no class of transformers would load it.
        changes: Current places of data and models.
        progress: Shows the loading and the writing; None shows nothing.

    Raises:
        UserError: There is no such model, `out` is not empty, or no class of transformers would load the whole model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another one with --out")
    if merged and rank is not None:
        raise UserError("--rank: a merged model has no adapters; leave out --rank or --merged")
    progress = progress or Progress(None)
    models = open_models(folder, changes, (), progress)
    question = models.question(models.method(method), client)
    progress.stage("export", 1)
    if merged:
        _export_merged(models, question, out)
    else:
        _export_adapter(models, question, out, rank=rank, with_base=with_base)
    progress.advance()


def has_no_folder(experiment: Experiment) -> bool:
    """Return whether the base model of an experiment is in no folder, because it was assembled or got another connector."""
    model = experiment.model
    return model.connector is not None or (model.encoder is not None and model.llm is not None)


def foreign_values(context: RunContext) -> list[str]:
    """Return the names of values with which no class of transformers loads a run's model; see `foreign_parameters`."""
    return foreign_parameters(context.tuned) if has_no_folder(context.experiment) else []


def _require_class(context: RunContext, option: str) -> None:
    """Raise `UserError` if no class of transformers would load a whole model of a run."""
    if foreign := foreign_values(context):
        model = type(context.vlm.model).__name__
        listed = ", ".join(foreign[:FOREIGN]) + (" and others" if len(foreign) > FOREIGN else "")
        raise UserError(
            f"{option}: {model} of transformers and the run's model differ in {listed}, so that stock libraries would load another "
            f"model; leave out {option}, and load the adapter as its README.md shows"
        )


def _export_adapter(
    models: SavedModels, question: Question, out: Path, *, rank: int | None, with_base: bool
) -> None:
    if with_base:
        _require_class(models.context, "--with-base")
    own_base = with_base or (has_no_folder(models.experiment) and not foreign_values(models.context))
    place = str((out / BASE).resolve()) if own_base else None
    export_model(models.context, question, out, rank=rank, base=place)
    if own_base:
        release(models.context.tuned)
        _save_model(models.context, out / BASE, {})


def _export_merged(models: SavedModels, question: Question, out: Path) -> None:
    context = models.context
    _require_class(context, "--merged")
    base = None if has_no_folder(context.experiment) else base_location(context.vlm)
    card = model_card(context, question, base, merged=True)
    others = {PROMPT: _prompt_form(context, question), CARD: card.encode()}
    merge_adapters(context.tuned, models.params(question))
    _save_model(context, out, others)


def _save_model(context: RunContext, out: Path, others: Mapping[str, bytes]) -> None:
    """Write a whole model, its processor and other files, under a temporary name until all are written."""
    with temporary_folder(out.resolve().parent, out.name) as work:
        whole = work / "model"
        context.vlm.model.save_pretrained(whole, safe_serialization=True)
        for name, content in {**processor_files(context.vlm, context.experiment), **others}.items():
            write_atomic(whole / name, content)
        write_manifest(
            whole, Manifest(__version__, files={name: file_digest(whole / name) for name in files_in(whole)})
        )
        if out.exists():
            out.rmdir()
        whole.rename(out)


def processor_files(vlm: Vlm, experiment: Experiment) -> dict[str, bytes]:
    """Return name → content of the files of a model's tokenizer, processor and chat template, with which the run worked."""
    if experiment.model.encoder and experiment.model.llm:
        files = _saved_parts(vlm.processor.tokenizer, vlm.processor.image_processor)
    else:
        found = Source("model.path", vlm.name, network=False).files
        files = {
            file.relative_to(found.folder).as_posix(): file.read_bytes()
            for file in (*found.others, *found.unread)
            if file.name not in LEFT_OUT
        }
    if experiment.model.pixels is not None:
        files |= _bounded_images(vlm, files.get(PROCESSOR))
    if vlm.processor.tokenizer.chat_template is None:
        files.setdefault("chat_template.jinja", vlm.processor.chat_template.encode())
    return files


def _saved_parts(*parts: Any) -> dict[str, bytes]:
    """Return name → content of the files in which tokenizers and image processors save themselves; None has no files."""
    with TemporaryDirectory() as work:
        for part in parts:
            if part is not None:
                part.save_pretrained(work)
        return {file.name: file.read_bytes() for file in sorted(Path(work).iterdir()) if file.is_file()}


def _bounded_images(vlm: Vlm, processor: bytes | None) -> dict[str, bytes]:
    """Return the files of an image processor that has the run's bound of pixels, which the base model's has not.

    Args:
        vlm: The model of the run.
        processor: The content of the base model's `processor_config.json`, which may hold an image processor; None for none.
    """
    files = _saved_parts(vlm.processor.image_processor)
    content = {} if processor is None else json.loads(processor)
    if "image_processor" in content:
        (own,) = map(json.loads, files.values())
        files[PROCESSOR] = json.dumps({**content, "image_processor": own}, indent=2).encode()
    return files


def _prompt_form(context: RunContext, question: Question) -> bytes:
    """Return how prompts are written, with an example of one."""
    vlm, experiment = context.vlm, context.experiment
    clause = clause_of(experiment, experiment.method(question.method))
    example = Example(
        "example", "What is shown?", "a cat", text="A note.", label=0, options=("a cat", "a dog")
    )
    (conversation,) = render([example], [Presence(True, True)], experiment.evaluate.answer, clause=clause)
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": conversation.user}]}]
    value = {
        "answer": experiment.evaluate.answer,
        "scoring": experiment.evaluate.scoring,
        "clause": clause,
        "image": vlm.processor.image,
        "chat_template_arguments": dict(vlm.processor.template_arguments),
        "example": {
            "question": example.question,
            "text": example.text,
            "options": list(conversation.options),
            "prompt": vlm.processor.build_prompt(turns)[1],
        },
    }
    return f"{to_json(value, 2)}\n".encode()
