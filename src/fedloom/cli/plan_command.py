"""The command `fedloom plan`: what a run needs, before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.options import (
    Changes,
    Debug,
    Json,
    PluginFiles,
    Quiet,
    Recipe,
    echo,
    echo_json,
    report_errors,
)
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.runs.resource_plan import ResourcePlan

KINDS = ("weights", "adapter", "gradients", "optimizer", "activations")


def plan(
    recipe: Recipe,
    changes: Changes = None,
    plugins: PluginFiles = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Correct memory and times with three real steps on the longest example."
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict memory, time, bytes and disk of a run for each class of clients, without training."""
    with report_errors(debug, as_json=as_json):
        from fedloom.experiment.recipes import is_grid, load_experiment

        if is_grid(recipe, changes or ()):
            raise UserError(
                f"{recipe} is a grid; plan one of its experiments, such as a recipe without `grid:`"
            )
        experiment = load_experiment(recipe, changes or (), plugins or ())
        from fedloom.runs.plan_run import plan_run, probed
        from fedloom.system.progress import make_progress

        with closing(make_progress(quiet)) as progress:
            progress.stage("estimate", 1)
            result = plan_run(experiment)
            progress.advance()
            if probe:
                result = probed(experiment, result, progress)
        divided = [DIVIDED] if experiment.model.device_map is not None else []
        echo_json(result.to_json()) if as_json else echo("\n".join([*_lines(result), *divided]))


DIVIDED = "model.device_map divides the decoder among cards and the host's memory: one card needs less than this, and steps take longer."


def _lines(plan: ResourcePlan) -> Iterator[str]:
    from fedloom.report.privacy_table import epsilon_text
    from fedloom.report.tables import counted, size
    from fedloom.system.progress import duration

    weights = ", ".join(f"{name} {size(value)}" for name, value in plan.weights.items() if value)
    yield f"Model: {size(sum(plan.weights.values()))} of weights ({weights}); {plan.trained:,} trainable parameters"
    for one in plan.classes:
        low, high = one.examples
        examples = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        seen = {"both": "image and text", "image": "images only", "text": "text only"}[one.modalities]
        yield ""
        yield f"{counted(one.clients, 'client')} with {seen}: {examples} examples, at most {one.steps:,} steps a round"
        yield f"  longest example {one.tokens:,} tokens; a step takes about {seconds(one.step_seconds)}"
        memory = ", ".join(f"{kind} {size(one.memory[kind])}" for kind in KINDS)
        yield f"  memory {size(sum(one.memory.values()))}: {memory}"
        if one.seconds:
            yield f"  about {duration(one.seconds)} of training in all rounds of all methods"
        for name, sent in one.bytes.items():
            yield f"  {name}: {sent['down']:,} bytes down and {sent['up']:,} up in a round"
    yield ""
    total = sum(plan.seconds.values())
    parts = ", ".join(f"{kind} {duration(value)}" for kind, value in plan.seconds.items())
    yield f"Together: at most about {size(plan.peak_bytes)} of memory ({plan.workers} × {plan.rows} clients at once)"
    for name, sent in plan.bytes.items():
        yield f"  {name} sends {size(sent['down'])} down and {size(sent['up'])} up"
    for name, spends in plan.privacy.items():
        for one in spends:
            unit = "client" if one["unit"] == "client" else "training example"
            shown = f"ε = {epsilon_text(one['epsilon'])}, δ = {one['delta']:g}"
            yield f"  {name} spends at most {shown} for a {unit} ({counted(one['releases'], 'release')})"
    yield f"  {size(plan.disk_bytes)} on disk, besides the cache; about {duration(total)} ({parts})"
    if not plan.probed:
        yield "Memory and times are estimates; --probe corrects them with three real steps."


def seconds(value: float) -> str:
    """Format the seconds of a step."""
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
