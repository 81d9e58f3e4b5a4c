"""One self-contained HTML report: what was run, its results, and how to reproduce it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from fedloom.report import charts, client_charts, findings, introduction, time_chart
from fedloom.report.adapter_code import loading
from fedloom.report.compare_runs import experiments_table, groups, names, seeds_table
from fedloom.report.federation_gain import main_score
from fedloom.report.run_results import Json, Run, at, number, read_run
from fedloom.report.score_tables import gain_table, published_tables, score_table, task_tables
from fedloom.report.split_table import card_rows
from fedloom.report.tables import (
    MISSING,
    Table,
    client_table,
    cost_table,
    federated,
    label,
    seconds,
    title,
)
from fedloom.report.validation_section import curve_table, validation_chart, validation_table, validation_text
from fedloom.system.json_files import write_atomic
from fedloom.system.manifest import list_files, read_manifest

WIDE, SLIM = 760, 400  # CSS pixels; the style sheet shows one or the other
MOST_SLIM = 4  # runs; with more, charts come in one width to keep the page small, and narrow screens scroll
MOST_REJECTED = 100  # lines printed for each run; the record has all

HARDWARE = (
    ("version", "fedloom"),
    ("python", "Python"),
    ("torch", "PyTorch"),
    ("transformers", "Transformers"),
    ("machine", "Machine"),
    ("threads", "Threads"),
    ("model", "Model digest"),
    ("trained", "Trained values"),
    ("started", "Started"),
)

TRAINED = {
    "lora": "LoRA, rank {rank}",
    "both": "LoRA, rank {rank}, and connector",
    "two-stage": "connector, then LoRA, rank {rank}",
    "share-connector": "connector shared, LoRA, rank {rank}, kept",
    "share-lora": "LoRA, rank {rank}, shared, connector kept",
}


CHARTS: dict[str, Callable[[Run, float], Markup]] = {
    "curves": charts.learning_curves,
    "validation_curves": validation_chart,
    "slices": charts.slice_bars,
    "dots": charts.client_dots,
    "holdings": client_charts.holdings,
    "losses": partial(client_charts.training_panels, "loss"),
    "norms": partial(client_charts.training_panels, "norm"),
    "times": time_chart.time_bars,
}


@dataclass(frozen=True)
class Figure:
    """A chart in two widths, of which the style sheet shows the one that fits; `slim` may be empty."""

    wide: Markup
    slim: Markup


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the report of one run, or of several side by side, as one HTML file without outside requests.

    Args:
        folders: Run folders, in the order in which they shall appear; at least one.
        out: The file to write; it appears whole or not at all.

    Raises:
        UserError: A run folder lacks a file, or a file is broken.
        ValueError: No folder is given.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder")
    write_atomic(out, render([read_run(folder) for folder in folders]).encode(errors="replace"))
    if read_manifest(out.parent) is not None:
        list_files(out.parent, [out.name])


def render(runs: Sequence[Run]) -> str:
    """Render the page for runs that were read."""
    one = len(runs) == 1
    title = str(runs[0].experiment["name"]) if one else f"{len(runs)} runs compared"
    together = groups(runs)
    headings = {
        id(run): f"{name}, seed {run.experiment.get('seed', MISSING)}"
        for name, group in zip(names(together), together, strict=True)
        for run in group
    }
    return template("page.html.j2").render(
        title=title,
        runs=[
            _section(run, f"run-{place}", slim=len(runs) <= MOST_SLIM) | {"heading": headings[id(run)]}
            for place, run in enumerate(runs, start=1)
        ],
        groups=[] if one else list(zip(names(together), map(seeds_table, together), strict=True)),
        overview=experiments_table(together) if len(together) > 1 else None,
        methods=list(dict.fromkeys(entry for run in runs for entry in introduction.explained(run))),
    )


@cache
def template(name: str) -> Template:
    """Return one of the templates beside this module."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _figure(draw: Callable[[Run, float], Markup], run: Run, slim: bool) -> Figure | None:
    drawn = Figure(draw(run, WIDE), draw(run, SLIM) if slim else Markup())
    return drawn if drawn.wide else None


def _section(run: Run, anchor: str, slim: bool) -> dict[str, Any]:
    """Gather what the template shows of one run; `slim` sets whether charts have a narrow form too."""
    questions = run.questions(run.fullest)
    first, *others = findings.finding(run.result, questions)
    named = [client_charts.name_of(client) for client in run.clients]
    return {
        "anchor": anchor,
        "facts": facts(run),
        "purpose": introduction.purpose(list(run.scores), run.text_only),
        "introduction": introduction.introduction(run),
        "glossary": introduction.explained(run),
        "finding": first,
        "more_findings": others,
        "scores": score_table(run.result),
        "score_name": title(main_score(run.result)),
        "task_scores": task_tables(run.result),
        "published": published_tables(run.result),
        "gains": gain_table(run.result, named),
        "hidden_clients": max(run.client_count - client_charts.SHOWN, 0),
        "beside": [column.head for column in client_charts.columns(run.clients[: client_charts.SHOWN])],
        "differences": card_rows(run.plan["card"]).rows if at(run.plan, "card") else (),
        **{name: _figure(draw, run, slim) for name, draw in CHARTS.items()},
        "per_client": client_table(run.result, named),
        "costs": cost_table(run.result),
        "validation": validation_text(run),
        "validated": validation_table(run),
        "validated_rounds": curve_table(run),
        "best_round": at(run.result, "validation", "round") == "best",
        **_set_aside(run),
        **_refused(run),
        "provenance": provenance(run),
        "command": f"fedloom run {shlex.quote(f'{run.folder.name}/experiment.json')}",
        "loading": loading(run),
        "withheld": len(charts.slices_shown(run)) > 1,
        "whiskers": findings.shares(run.result) and run.questions(run.fullest) is not None,
        "own": [label(method) for method, scores in run.scores.items() if findings.averaged(scores)],
    }


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the few settings that tell runs apart at a glance."""
    experiment = run.experiment
    scenario, model = at(experiment, "scenario") or {}, at(experiment, "model") or {}
    joined = introduction.assembled(experiment)
    partition = str(at(scenario, "partition"))
    alpha = f", α = {at(scenario, 'alpha')}" if partition == "dirichlet" else ""
    extent = {"missing": "rate", "cross": "image_clients", "hybrid": "p"}.get(str(at(scenario, "pattern")))
    strategy = str(at(experiment, "strategy", "name"))
    known = None if extent is None else at(scenario, extent)
    degree = "" if extent is None or known is None else f", {extent.replace('_', ' ')} = {known}"
    found = [
        ("Data", at(experiment, "data", "name")),
        ("Clients", run.client_count),
        ("Partition", partition.replace("_", " ") + alpha),
        ("Pattern of modalities", f"{at(scenario, 'pattern')}{degree}"),
        ("Scenario mode", at(scenario, "mode") or "corrected"),
        ("Model", f"{model['encoder']} + {model['llm']}" if joined else at(model, "path")),
        (
            "Trained",
            TRAINED.get(strategy, strategy).replace("{rank}", str(at(experiment, "strategy", "rank"))),
        ),
        ("Rounds", at(experiment, "train", "rounds")),
        ("Seed", at(experiment, "seed")),
    ]
    return [(name, MISSING if value is None else str(value)) for name, value in found]


def _set_aside(run: Run) -> dict[str, Any]:
    """Return the records that could not be used: how many, and the first of them with their reasons."""
    entry = (run.of_kind("data") or [{}])[-1]
    found = {name: at(entry, name) for name in ("rejected", "cut")}
    told = {
        name: [str(one) for one in value] if isinstance(value, list) else [] for name, value in found.items()
    }
    return {
        "rejected": len(told["rejected"]),
        "reasons": told["rejected"][:MOST_REJECTED],
        "shortened": len(told["cut"]),
        "cuts": told["cut"][:MOST_REJECTED],
    }


def _refused(run: Run) -> dict[str, Any]:
    """Return the client updates that had no effect, those of whole rounds in one line, and how many had."""
    rows, trained, accepted = [], 0, 0
    for entry in run.rounds:
        if federated(entry["method"]):
            place = (label(entry["method"]), str(entry["round"] + 1))
            unused = [*(at(entry, "refused") or []), *(at(entry, "missing") or [])]
            rows += [(*place, str(at(one, "client")), str(at(one, "reason"))) for one in unused]
            # The record lists no more than the first clients of a large cohort, but counts them all.
            cohort = int(number(entry, "cohort") or len(at(entry, "clients") or []))
            trained += cohort
            if whole := at(entry, "not_applied"):
                rows.append((*place, "all", str(whole)))
            else:
                accepted += cohort - len(unused)
    table = Table(("Method", "Round", "Client", "Reason"), tuple(rows), left=4)
    return {"refused": table, "accepted": accepted, "sent": trained}


SCENARIO_MODES = {
    "corrected": "corrected: drawn by the experiment's seed; no example loses everything unless that is asked for",
    "published": "published: the draws of FedMLLM's code, the same for every seed",
}
SAMPLERS = {
    "corrected": "corrected: the clients of a round are drawn by the experiment's seed",
    "published": "published: the clients of a round are those of FedMLLM's code, the same for every seed",
}

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}


def mode(experiment: Json) -> str:
    """Return whether algorithms were run as their papers say or as published code does it."""
    if at(experiment, "mode") == "published":
        return "published: algorithms with the faults and the figures of FedMLLM's code"
    corrected = "corrected: what the papers say, where their published code does something else"
    arguments = at(experiment, "algorithms")
    names = [name for name, given in arguments.items() if at(given, "published") is True] if arguments else []
    return f"{corrected}; but as published: {', '.join(map(label, names))}" if names else corrected


def client_loop(experiment: Json) -> str:
    """Return how clients train, as far as papers differ in it."""
    train = at(experiment, "train")
    optimizer = str(at(train, "optimizer") or "adamw")
    beta2 = "" if optimizer == "sgd" else f" with β₂ = {at(train, 'beta2') or 0.999}"
    inside = at(train, "local_schedule") or "constant"
    return (
        f"{OPTIMIZERS.get(optimizer, optimizer)}{beta2}; learning rate {at(train, 'schedule') or 'cosine'} over the "
        f"rounds, {inside} inside each; LoRA dropout {number(experiment, 'strategy', 'dropout') or 0:g}"
    )


def _named(names: Mapping[str, str], value: object) -> str:
    return names.get(str(value or "corrected"), str(value))


def provenance(run: Run) -> list[tuple[str, str]]:
    """Return what identifies the run: digests, seed, mode, versions, machine and time."""
    starts: list[Json] = run.of_kind("start")
    first: Mapping[str, Any] = starts[0] if starts else {}
    end = (run.of_kind("end") or [{}])[-1]
    found = [
        ("Experiment digest", run.result.get("digest")),
        ("Plan digest", run.plan.get("digest")),
        ("Seed", run.experiment.get("seed")),
        ("Scenario mode", _named(SCENARIO_MODES, at(run.experiment, "scenario", "mode"))),
        ("Sampler", _named(SAMPLERS, at(run.experiment, "train", "sampler"))),
        ("Mode", mode(run.experiment)),
        ("Client loop", client_loop(run.experiment)),
        *((name, first.get(key)) for key, name in HARDWARE),
        ("Resumed", f"{len(starts) - 1} times" if len(starts) > 1 else None),
        ("Wall-clock seconds", seconds(number(end, "seconds"))),
    ]
    return [(name, str(value)) for name, value in found if value is not None]
