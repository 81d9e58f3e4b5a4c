"""The model card of an exported model, in the format of model hubs: how it was trained, by whom, and how well it does.

A card holds nothing that depends on the time or on the machine, so that the same run has the same card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedloom.client.site import Question
from fedloom.config.schema import Model
from fedloom.experiment.experiment import Experiment
from fedloom.report.confidence_intervals import interval
from fedloom.report.run_results import at, number
from fedloom.run_log import read_lines
from fedloom.runs.modality_slices import dependent_groups, effective_count, tasks_of
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import METHODS, PLAN, RECORD, RESULT
from fedloom.system.json_files import read_json
from fedloom.system.manifest import read_manifest, read_sealed
from fedloom.system.terminal import one_line
from fedloom.version import __version__

LISTED = 20
"""Most clients, and most reasons, that a card lists."""

SHARES = ("accuracy", "unparsed")
"""Scores that are shares of answers, for which an interval follows from the number of answers."""

LOAD = """\
```python
from {module} import {name}

model = {name}.from_pretrained("path/to/this/folder")
```"""


LOAD_BY_HAND = """\
```python
from fedloom.config.schema import Model
from fedloom.models.assemble_model import load_model

base = load_model(Model({settings}), seed={seed}).model
{rest}
```"""

WITH_PEFT = """\
from peft import PeftModel

model = PeftModel.from_pretrained(base, "path/to/this/folder")"""

CONNECTOR_ONLY = """\
from safetensors.torch import load_file

base.load_state_dict(load_file("path/to/this/folder/connector.safetensors"), strict=False)"""


def model_card(
    context: RunContext,
    question: Question,
    base: str | None,
    *,
    merged: bool = False,
    rank: int | None = None,
    foreign: Sequence[str] = (),
) -> str:
    """Return the model card of a model.

    Args:
        context: The run; its method has a result.
        question: Names the model.
        base: What the base model is loaded from; None if it was made for the run and is in no folder.
        merged: Whether the folder holds a whole model.
        rank: The rank of the adapters, if it is not that of the run.
        foreign: Values with which no class of transformers loads the model; see `foreign_parameters`.
    """
    experiment, plan = context.experiment, read_json(context.folder / PLAN)
    result = read_sealed(context.folder / METHODS / question.method / RESULT)
    lines = _lines(context.folder / RECORD, question)
    return "\n".join(
        [
            *_head(experiment, context, base, merged),
            *_introduction(context, question, base, merged, rank, foreign),
            *_training(experiment, question, lines),
            *_clients(plan, lines, question.client if _trained_alone(lines) else None),
            *_excluded(lines),
            *_data(context, plan),
            *_scores(context, result["scores"], question),
        ]
    )


def _head(experiment: Experiment, context: RunContext, base: str | None, merged: bool) -> Iterator[str]:
    """Yield the front matter; only a model of a hub can be named in it."""
    images = context.vlm.family.images
    yield "---"
    if base is not None and not Path(base).is_absolute():
        yield f"base_model: {base}"
    yield f"library_name: {'transformers' if merged else 'peft'}"
    yield f"pipeline_tag: {'image-text-to-text' if images else 'text-generation'}"
    yield f"tags: [fedloom, federated-learning, {experiment.strategy.name}]"
    yield "---"


def _introduction(
    context: RunContext,
    question: Question,
    base: str | None,
    merged: bool,
    rank: int | None,
    foreign: Sequence[str],
) -> Iterator[str]:
    experiment, manifest = context.experiment, read_manifest(context.folder)
    whose = "the model of all clients" if question.client is None else f"client {question.client}'s own model"
    identity = manifest.identity if manifest else {}
    yield f"\n# {experiment.name}: {question.method}\n"
    yield f"This is {whose} after training with {question.method}, made by fedloom {__version__}.\n"
    digest = identity.get("base model", "unknown")
    yield f"* **Base model:** {_base_model(experiment.model)}, SHA-256 `{digest}`"
    if not merged:
        place = "no folder: it was made for this run" if base is None else f"`{base}`"
        yield f"* **Loaded from:** {place}"
    lora = context.tuned.stage.lora
    if lora is not None and not merged:
        form = f"LoRA of rank {rank or lora.rank}, trained with rank {lora.rank}"
        yield f"* **Adapter:** {form}; strategy `{experiment.strategy.name}`"
    yield "* **Prompts:** `prompt.json` has their form with an example; the chat template is in this folder"
    if merged:
        name = "AutoModelForImageTextToText" if context.vlm.family.images else "AutoModelForCausalLM"
        yield f"\n{LOAD.format(module='transformers', name=name)}"
    elif foreign:
        yield from _load_by_hand(experiment, foreign, connector_only=lora is None)
    elif base is None:
        yield (
            "\nThis adapter does not load by itself. `fedloom export RUN --out FOLDER` writes the base model beside a copy of it, "
            "which does."
        )
    elif lora is not None:
        name = "AutoPeftModel" if context.vlm.family.images else "AutoPeftModelForCausalLM"
        yield f"\n{LOAD.format(module='peft', name=name)}\n"
        yield (
            "If the base model is elsewhere, because the folder was moved, load it and use "
            '`PeftModel.from_pretrained(base, "path/to/this/folder")`.'
        )
    else:
        yield "\nLoad `connector.safetensors` into the base model with `load_state_dict(…, strict=False)`."


def _base_model(model: Model) -> str:
    """Return the parts of a base model, as the experiment names them."""
    parts = [model.encoder, model.llm] if model.encoder and model.llm else [model.path]
    connector = "" if model.connector is None else f" with a new connector, `{model.connector}`"
    return " + ".join(f"`{part}`" for part in parts) + connector


def _load_by_hand(experiment: Experiment, foreign: Sequence[str], connector_only: bool) -> Iterator[str]:
    """Yield how a model is loaded that no class of transformers can hold."""
    keys = ("path", "encoder", "llm", "connector", "connector_weights", "queries")
    settings = experiment.model.model_dump(include={*keys}, exclude_defaults=True)
    given = ", ".join(f"{key}={settings[key]!r}" for key in keys if key in settings)
    yield f"\nNo class of transformers has this model's `{foreign[0]}`; fedloom loads the base model.\n"
    yield LOAD_BY_HAND.format(
        settings=given, seed=experiment.seed, rest=CONNECTOR_ONLY if connector_only else WITH_PEFT
    )


def _training(
    experiment: Experiment, question: Question, lines: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    train, method = experiment.train, experiment.method(question.method)
    names = [name for name in method.composed if name in experiment.entries] if method.federated else []
    yield "\n## Training\n"
    for name in names:
        yield f"* **{name}:** {one_line(experiment.entries[name].about)}"
    clients = "" if _trained_alone(lines) else f"{train.cohort or 'all'} clients, "
    epochs = f"{train.epochs} epoch{'s' * (train.epochs != 1)}"
    yield f"* **Rounds:** {len(lines)}"
    yield (
        f"* **In each round:** {clients}{epochs}, batches of {train.batch_size}, "
        f"{train.optimizer}, learning rate {train.lr:g}"
    )
    yield f"* **Seed:** {experiment.seed}; experiment digest `{experiment.digest}`"


def _clients(plan: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], alone: int | None) -> Iterator[str]:
    """Yield what each client held, and in how many rounds its update was used; only of the client `alone` if it is given."""
    used = Counter(
        one["client"]
        for line in lines
        for one in line.get("clients") or ()
        if one["client"] not in {refused["client"] for refused in line.get("refused") or ()}
    )
    rows = plan.get("clients") or []
    if alone is None:
        yield f"\n## Clients\n\n{plan.get('count', len(rows))} clients.\n"
    else:
        rows = [row for row in rows if row["id"] == alone]
        yield f"\n## Clients\n\nClient {alone} trained alone.\n"
    yield "| client | examples | image and text | image only | text only | rounds with an accepted update |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for row in rows[:LISTED]:
        name = f"{row['id']} ({one_line(str(row['group']))})" if row.get("group") else row["id"]
        counts = " | ".join(str(row.get(key, "")) for key in ("size", "both", "image_only", "text_only"))
        yield f"| {name} | {counts} | {used[row['id']]} |"
    if len(rows) > LISTED:
        yield f"\nAnd {plan.get('count', len(rows)) - LISTED} more clients."


def _excluded(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the updates that were refused, and those that never came, with the reasons."""
    for kind, what in (("refused", "Refused updates"), ("missing", "Missing updates")):
        found = [(line["round"], one) for line in lines for one in line.get(kind) or ()]
        yield f"\n**{what}:** {len(found) or 'none'}"
        for which, one in found[:LISTED]:
            yield f"* round {which}, client {one['client']}: {one_line(str(one['reason']))}"
        if len(found) > LISTED:
            yield f"* and {len(found) - LISTED} more"


def _data(context: RunContext, plan: Mapping[str, Any]) -> Iterator[str]:
    manifest = read_manifest(context.folder)
    identity = manifest.identity if manifest else {}
    yield f"\n## Data\n\nData set `{context.experiment.data.name}`, SHA-256 of its parts:\n"
    for name, digest in identity.items():
        if name.endswith((" examples", " images")):
            yield f"* {name}: `{digest}`"
    yield f"* division among clients: `{plan.get('digest')}`"


def _scores(context: RunContext, scores: Mapping[str, Any], question: Question) -> Iterator[str]:
    """Yield the scores on the test set, with intervals for shares of answers."""
    counts = [line for _, line in read_lines(context.folder / RECORD) if line["kind"] == "data"]
    count = int(counts[-1].get("test") or 0) if counts else 0
    independent = min(_independent(context) or count, count)
    mean = isinstance(scores.get("best"), int | float)
    yield "\n## Scores\n"
    where = f"On {count} test examples" if count else "On the test examples of the sites"
    where += f" (as informative as {independent:,.0f} independent ones)" if round(independent) < count else ""
    yield where + (", mean over the clients' own models." if mean else ".")
    yield "Intervals are 95 % Wilson intervals of one run, over test examples alone.\n"
    yield "| modalities | score | value | 95 % interval |\n| --- | --- | ---: | ---: |"
    for part, values in (scores.get("slices") or {}).items():
        one_task = len(values.get("tasks") or ()) == 1  # otherwise a score is a mean over tasks
        for name, value in values.items():
            if isinstance(value, int | float) and not name.endswith("_published"):
                share = name in SHARES and independent and one_task and not mean
                ends = interval(value, independent) if share else None
                shown = f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
                yield f"| {part} | {name} | {value:.3f} | {shown} |"
    if (
        question.client is not None
        and (own := (scores.get("clients") or []))
        and own[question.client] is not None
    ):
        yield f"\nOn test examples like those of client {question.client}: {own[question.client]:.3f}."
    yield ""


def _independent(context: RunContext) -> float | None:
    """Return the number of independent test questions of a run of one task; None if it is unknown.

    The run itself has its test examples; of a finished run, they are not read again.
    """
    if test := context.data.test:
        groups = dependent_groups(test)
        return effective_count(np.bincount(groups)) if len(tasks_of(test)) == 1 else None
    file = context.folder / RESULT
    known = at(read_json(file), "independent_questions", "test") if file.is_file() else None
    return number(known, next(iter(known))) if isinstance(known, Mapping) and len(known) == 1 else None


def _lines(record: Path, question: Question) -> list[Mapping[str, Any]]:
    """Return the lines of the rounds in which a model was trained; of a repeated round, only the last line.

    If each client trained alone, these are the rounds of the model's client.
    """
    rounds = {
        (line.get("client"), line["round"]): line
        for _, line in read_lines(record)
        if line["kind"] == "round"
        and line["method"] == question.method
        and line.get("client") in (None, question.client)
    }
    return list(rounds.values())


def _trained_alone(lines: Sequence[Mapping[str, Any]]) -> bool:
    return any(line.get("client") is not None for line in lines)
