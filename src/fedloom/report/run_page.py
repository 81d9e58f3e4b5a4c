"""The HTML report of one or several runs: their setup, their results, and how to reproduce them."""

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
from fedloom.report.adapter_loading_code import adapter_loading
from fedloom.report.compare_runs import experiments_table, group_by_experiment, group_names, seeds_table
from fedloom.report.federation_gain import main_score
from fedloom.report.run_results import Json, Run, at, number, read_run
from fedloom.report.score_tables import gain_table, published_tables, score_table, task_tables
from fedloom.report.site_scores_table import is_tested_at_sites, site_scores_table, tested_on
from fedloom.report.split_table import card_table
from fedloom.report.tables import (
    MISSING,
    Table,
    client_table,
    cost_table,
    is_federated,
    label,
    seconds,
    title,
)
from fedloom.report.validation_section import curve_table, validation_chart, validation_table, validation_text
from fedloom.system.json_files import write_atomic
from fedloom.system.manifest import add_to_manifest, read_manifest

WIDE, SLIM = 760, 400  # CSS pixels; the style sheet shows one or the other
MAX_SLIM_RUNS = (
    4  # runs; with more, charts come in one width to keep the page small, and narrow screens scroll
)
MAX_RECORDS = 100  # skipped records that are printed for each run; record.jsonl has all

HARDWARE = (
    ("version", "fedloom"),
    ("python", "Python"),
    ("torch", "PyTorch"),
    ("transformers", "Transformers"),
    ("machine", "Machine"),
    ("threads", "Threads"),
    ("model", "Model digest"),
    ("trained", "Trained parameters"),
    ("started", "Started"),
)

TRAINED = {
    "lora": "LoRA, rank {rank}",
    "both": "LoRA, rank {rank}, and connector",
    "two-stage": "connector, then LoRA, rank {rank}",
    "share-connector": "connector (shared) and LoRA, rank {rank} (not shared)",
    "share-lora": "LoRA, rank {rank} (shared), and connector (not shared)",
}


CHARTS: dict[str, Callable[[Run, float], Markup]] = {
    "curves": charts.learning_curves,
    "validation_curves": validation_chart,
    "slices": charts.slice_bars,
    "dots": charts.client_dots,
    "holdings": client_charts.holdings_chart,
    "losses": partial(client_charts.training_panels, "loss"),
    "norms": partial(client_charts.training_panels, "norm"),
    "times": time_chart.time_bars,
}


@dataclass(frozen=True)
class Figure:
    """A chart in two widths; the style sheet shows the one that fits. `slim` may be empty."""

    wide: Markup
    slim: Markup


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the report of one run, or of several runs side by side, as one HTML file that loads nothing.

    Args:
        folders: Run folders in the order of the report; at least one.
        out: The file to write. It is written atomically.

    Raises:
        UserError: A run folder lacks a file, or a file is broken.
        ValueError: No folder is given.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder")
    write_atomic(out, render([read_run(folder) for folder in folders]).encode(errors="replace"))
    if read_manifest(out.parent) is not None:
        add_to_manifest(out.parent, [out.name])


def render(runs: Sequence[Run]) -> str:
    """Return the HTML page of runs."""
    is_single = len(runs) == 1
    title = str(runs[0].experiment["name"]) if is_single else f"{len(runs)} runs compared"
    groups = group_by_experiment(runs)
    headings = {
        id(run): f"{name}, seed {run.experiment.get('seed', MISSING)}"
        for name, group in zip(group_names(groups), groups, strict=True)
        for run in group
    }
    return load_template("page.html.j2").render(
        title=title,
        runs=[
            _section(run, f"run-{index}", slim=len(runs) <= MAX_SLIM_RUNS) | {"heading": headings[id(run)]}
            for index, run in enumerate(runs, start=1)
        ],
        groups=[] if is_single else list(zip(group_names(groups), map(seeds_table, groups), strict=True)),
        overview=experiments_table(groups) if len(groups) > 1 else None,
        methods=list(dict.fromkeys(entry for run in runs for entry in introduction.run_glossary(run))),
    )


@cache
def load_template(name: str) -> Template:
    """Load one of the templates in this module's folder."""
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
    """Return the template's values for one run; with `slim`, charts have a narrow form too."""
    questions = run.questions(run.fullest_slice)
    first, *others = findings.run_findings(run.result, questions)
    named = [client_charts.name_of(client) for client in run.clients]
    return {
        "anchor": anchor,
        "facts": facts(run),
        "purpose": introduction.purpose(list(run.scores), run.text_only),
        "introduction": introduction.introduction(run),
        "glossary": introduction.run_glossary(run),
        "finding": first,
        "more_findings": others,
        "scores": score_table(run.result),
        "score_name": title(main_score(run.result)),
        "at_sites": site_scores_table(run.result),
        "tested_at_sites": is_tested_at_sites(run.result),
        "tested_on": tested_on(run.result),
        "task_scores": task_tables(run.result),
        "published": published_tables(run.result),
        "gains": gain_table(run.result, named),
        "hidden_clients": max(run.client_count - client_charts.MAX_CLIENTS, 0),
        "beside": [column.head for column in client_charts.columns(run.clients[: client_charts.MAX_CLIENTS])],
        "differences": card_table(run.plan["card"]).rows if at(run.plan, "card") else (),
        **{name: _figure(draw, run, slim) for name, draw in CHARTS.items()},
        "per_client": client_table(run.result, named),
        "costs": cost_table(run.result),
        "validation": validation_text(run),
        "validated": validation_table(run),
        "validated_rounds": curve_table(run),
        "best_round": at(run.result, "validation", "round") == "best",
        **_skipped_records(run),
        **_refused(run),
        "provenance": provenance(run),
        "command": f"fedloom run {shlex.quote(f'{run.folder.name}/experiment.json')}",
        "loading": adapter_loading(run),
        "withheld": len(charts.slices_shown(run)) > 1,
        "whiskers": findings.is_share_of_questions(run.result)
        and run.questions(run.fullest_slice) is not None,
        "own": [
            label(method) for method, scores in run.scores.items() if findings.is_mean_over_clients(scores)
        ],
    }


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the main settings of a run as (name, value)."""
    experiment = run.experiment
    scenario, model = at(experiment, "scenario") or {}, at(experiment, "model") or {}
    assembled = introduction.is_assembled(experiment)
    partition = str(at(scenario, "partition"))
    alpha = f", α = {at(scenario, 'alpha')}" if partition == "dirichlet" else ""
    extent = {"missing": "rate", "cross": "image_clients", "hybrid": "p"}.get(str(at(scenario, "pattern")))
    strategy = str(at(experiment, "strategy", "name"))
    setting = None if extent is None else at(scenario, extent)
    degree = "" if extent is None or setting is None else f", {extent.replace('_', ' ')} = {setting}"
    entries = [
        ("Data", at(experiment, "data", "name")),
        ("Clients", run.client_count),
        ("Partition", partition.replace("_", " ") + alpha),
        ("Pattern of modalities", f"{at(scenario, 'pattern')}{degree}"),
        ("Scenario mode", at(scenario, "mode") or "corrected"),
        ("Model", f"{model['encoder']} + {model['llm']}" if assembled else at(model, "path")),
        (
            "Trained",
            TRAINED.get(strategy, strategy).replace("{rank}", str(at(experiment, "strategy", "rank"))),
        ),
        ("Rounds", at(experiment, "train", "rounds")),
        ("Seed", at(experiment, "seed")),
    ]
    return [(name, MISSING if value is None else str(value)) for name, value in entries]


def _skipped_records(run: Run) -> dict[str, Any]:
    """Return the numbers of skipped records and of truncated texts, and the reasons of the first ones."""
    entry = (run.of_kind("data") or [{}])[-1]
    lists = {name: at(entry, name) for name in ("rejected", "cut")}
    texts = {
        name: [str(item) for item in value] if isinstance(value, list) else []
        for name, value in lists.items()
    }
    return {
        "rejected": len(texts["rejected"]),
        "reasons": texts["rejected"][:MAX_RECORDS],
        "shortened": len(texts["cut"]),
        "cuts": texts["cut"][:MAX_RECORDS],
    }


def _refused(run: Run) -> dict[str, Any]:
    """Return the table of the client updates that were not used, and the numbers of accepted and sent updates.

    An aggregate that was not applied is one row for the whole round.
    """
    rows, trained, accepted = [], 0, 0
    for entry in run.rounds:
        if is_federated(entry["method"]):
            method_and_round = (label(entry["method"]), str(entry["round"] + 1))
            unused = [*(at(entry, "refused") or []), *(at(entry, "missing") or [])]
            rows += [
                (*method_and_round, str(at(update, "client")), str(at(update, "reason"))) for update in unused
            ]
            # The record lists no more than the first clients of a large cohort, but counts them all.
            cohort = int(number(entry, "cohort") or len(at(entry, "clients") or []))
            trained += cohort
            if reason := at(entry, "not_applied"):
                rows.append((*method_and_round, "all", str(reason)))
            else:
                accepted += cohort - len(unused)
    table = Table(("Method", "Round", "Client", "Reason"), tuple(rows), left=4)
    return {"refused": table, "accepted": accepted, "sent": trained}


SCENARIO_MODES = {
    "corrected": "corrected: drawn with the experiment's seed; no example loses both modalities unless the experiment asks for it",
    "published": "published: drawn as in FedMLLM's code, the same for every seed",
}
SAMPLERS = {
    "corrected": "corrected: the clients of a round are drawn with the experiment's seed",
    "published": "published: the clients of a round are those of FedMLLM's code, the same for every seed",
}

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}


def mode_text(experiment: Json) -> str:
    """Describe whether algorithms follow their papers or the published code."""
    if at(experiment, "mode") == "published":
        return "published: algorithms as in FedMLLM's code, with its faults and constants"
    corrected = "corrected: algorithms as in their papers, where the published code differs"
    arguments = at(experiment, "algorithms")
    names = (
        [name for name, values in arguments.items() if at(values, "published") is True] if arguments else []
    )
    return f"{corrected}; but as published: {', '.join(map(label, names))}" if names else corrected


def client_loop_text(experiment: Json) -> str:
    """Describe the settings of local training in which papers differ."""
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
    """Return what identifies a run as (name, value): digests, seed, mode, versions, machine and time."""
    starts: list[Json] = run.of_kind("start")
    first: Mapping[str, Any] = starts[0] if starts else {}
    end = (run.of_kind("end") or [{}])[-1]
    entries = [
        ("Experiment digest", run.result.get("digest")),
        ("Plan digest", run.plan.get("digest")),
        ("Seed", run.experiment.get("seed")),
        ("Scenario mode", _named(SCENARIO_MODES, at(run.experiment, "scenario", "mode"))),
        ("Sampler", _named(SAMPLERS, at(run.experiment, "train", "sampler"))),
        ("Mode", mode_text(run.experiment)),
        ("Client loop", client_loop_text(run.experiment)),
        *((name, first.get(key)) for key, name in HARDWARE),
        ("Resumed", f"{len(starts) - 1} times" if len(starts) > 1 else None),
        ("Wall-clock seconds", seconds(number(end, "seconds"))),
    ]
    return [(name, str(value)) for name, value in entries if value is not None]
