"""The HTML page that compares several runs; each run has a report of its own, to which the page links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedloom.report import client_charts, introduction
from fedloom.report.charts import short_label
from fedloom.report.client_verdicts import own_mean
from fedloom.report.compare_runs import (
    experiments_tables,
    group_by_experiment,
    group_names,
    seeds_table,
    varying_table,
)
from fedloom.report.federation_gain import main_score, tasks_in
from fedloom.report.findings import headline_method, run_findings, short_findings
from fedloom.report.limits import limits
from fedloom.report.overview_charts import Mark, Row, overview, panel_titles
from fedloom.report.run_results import Run, number
from fedloom.report.seed_findings import seeds_findings
from fedloom.report.shared_scores import for_everybody, shared_model
from fedloom.report.significance import estimate
from fedloom.report.tables import MISSING, counted, title
from fedloom.report.templates import SLIM, figure, load_template
from fedloom.report.verdict_tables import verdict_tables

OPENING = 600  # CSS pixels of a chart on the first screen
MAX_FIGURES = 4  # experiments that have a figure


def render_comparison(runs: Sequence[Run], base: Path | None = None) -> str:
    """Return the HTML page that compares several runs.

    Args:
        runs: The runs.
        base: The folder of the page, for links to the runs' own reports; None for no links.
    """
    groups = group_by_experiment(runs)
    names = group_names(groups)
    headings = {
        id(run): f"{name}, seed {run.experiment.get('seed', MISSING)}"
        for name, group in zip(names, groups, strict=True)
        for run in group
    }
    figures = [
        (
            f"{title(main_score(group[0].result))} of each method{_named(name, groups)}",
            figure(partial(_overview, group), OPENING, SLIM),
        )
        for name, group in list(zip(names, groups, strict=True))[:MAX_FIGURES]
    ]
    return load_template("compare.html.j2").render(
        title=_title(runs),
        found=[(name, _found(group)) for name, group in zip(names, groups, strict=True)],
        limits=_limits(groups),
        figures=[(name, drawn) for name, drawn in figures if drawn],
        overview=experiments_tables(groups) if len(groups) > 1 else [],
        groups=list(zip(names, map(seeds_table, groups), strict=True)),
        differences=varying_table(groups) if len(groups) > 1 else None,
        purpose=introduction.purpose(list(runs[0].scores), runs[0].text_only),
        methods=list(dict.fromkeys(entry for run in runs for entry in introduction.run_glossary(run))),
        runs=[_run(run, headings[id(run)], base) for run in runs],
    )


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(str(run.experiment["name"]) for run in runs))
    return " and ".join(names) if len(names) <= 2 else f"{len(runs)} runs compared"


def _named(name: str, groups: Sequence[Sequence[Run]]) -> str:
    return f", {name}" if len(groups) > 1 else ""


def _run(run: Run, heading: str, base: Path | None) -> dict[str, Any]:
    names = client_charts.client_names(run.clients)
    report, link = run.folder / "report.html", ""
    if base is not None and report.is_file():
        link = Path(os.path.relpath(report, base)).as_posix()
    return {
        "heading": heading,
        "link": link,
        "found": short_findings(run.result, names) or run_findings(run.result)[:1],
        "limits": limits(run),
        "verdicts": verdict_tables(run.result, names),
    }


def _found(group: Sequence[Run]) -> list[str]:
    """Describe the scores and verdicts of the headline method, averaged over the runs of an experiment."""
    first = group[0].result
    if len(group) == 1:
        return short_findings(first) or run_findings(first)[:1]
    return seeds_findings([run.result for run in group], headline_method(first))


def _overview(group: Sequence[Run], width: float) -> Markup:
    """Draw the means of each method over the runs of an experiment; nothing for several tasks."""
    if len(tasks_in(group[0].result)) > 1:
        return Markup()
    methods = list(dict.fromkeys(method for run in group for method in run.scores))
    rows = [
        Row(
            short_label(method),
            method,
            _marks(group, method),
            all(shared_model(run.scores[method]) is None for run in group if method in run.scores),
        )
        for method in methods
    ]
    return overview(rows, methods, width, panel_titles(group[0].result))


def _marks(group: Sequence[Run], method: str) -> tuple[Mark | None, Mark | None]:
    scored = [run for run in group if method in run.scores]
    shared = [number(for_everybody(run.scores[method]), main_score(run.result)) for run in scored]
    own = [own_mean(run.scores[method]) for run in scored]
    return _mark(shared), _mark(own)


def _mark(values: Sequence[float | None]) -> Mark | None:
    found = estimate(value for value in values if value is not None)
    if found is None:
        return None
    return Mark(found.mean, *(found.ends or ()))


def _limits(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return what limits the comparison."""
    sentences = []
    single = sum(len(group) == 1 for group in groups)
    if single:
        what = (
            "The experiment has"
            if len(groups) == 1
            else f"{single} of {counted(len(groups), 'experiment')} have"
        )
        sentences.append(f"{what} one seed, so how much scores vary by seed is unknown.")
    tasks = {frozenset(tasks_in(group[0].result)) for group in groups}
    if len(tasks) > 1:
        sentences.append(
            "The experiments have different tasks, whose scores cannot be compared with each other."
        )
    data = {str((run.experiment.get("data") or {}).get("name")) for group in groups for run in group}
    if len(data) > 1:
        sentences.append(f"The experiments have different data ({', '.join(sorted(data))}).")
    return sentences or ["Intervals over seeds do not show how scores vary with other test questions."]
