"""The HTML report of a run: what was found, what limits it, the results, the setup, and how to reproduce it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedloom.report import (
    charts,
    client_charts,
    findings,
    introduction,
    overview_charts,
    pareto_chart,
    time_chart,
)
from fedloom.report.adapter_loading_code import adapter_loading
from fedloom.report.client_verdicts import verdict_on
from fedloom.report.compare_page import render_comparison
from fedloom.report.federation_gain import main_score
from fedloom.report.limits import limits
from fedloom.report.predicted_needs import failed_prediction, predicted_table
from fedloom.report.privacy_table import privacy_tables
from fedloom.report.run_results import Run, at, number, read_run
from fedloom.report.run_settings import facts, provenance
from fedloom.report.score_tables import published_tables, score_table, task_tables
from fedloom.report.shared_scores import has_own_models, shared_model
from fedloom.report.site_scores_table import is_tested_at_sites, site_scores_table, tested_on
from fedloom.report.split_table import card_table
from fedloom.report.tables import Table, client_table, counted, is_federated, label, title
from fedloom.report.templates import SLIM, figure, load_template
from fedloom.report.training_work import cost_table, is_equal_work, work_by_method, work_sentence
from fedloom.report.validation_section import curve_table, validation_chart, validation_table, validation_text
from fedloom.report.verdict_tables import client_gain_tables, verdict_tables
from fedloom.system.json_files import write_atomic
from fedloom.system.manifest import add_to_manifest, own_manifest
from fedloom.system.terminal import shell_word

OPENING = 600  # CSS pixels of a chart on the first screen
MAX_BARS = 15  # clients whose gains are drawn on the first screen
MAX_RECORDS = 100  # skipped records that are printed for each run; record.jsonl has all

CHARTS: dict[str, Callable[[Run, float], Markup]] = {
    "curves": charts.learning_curves,
    "validation_curves": validation_chart,
    "slices": charts.slice_bars,
    "dots": charts.client_dots,
    "holdings": client_charts.holdings_chart,
    "losses": partial(client_charts.training_panels, "loss"),
    "norms": partial(client_charts.training_panels, "norm"),
    "times": time_chart.time_bars,
    "pareto": pareto_chart.run_pareto,
}


@dataclass(frozen=True)
class AnswersLink:
    """What a report says about its page of answers.

    Attributes:
        href: The page's name beside the report; None if there is none.
        reason: Why it is not there, or could not be written anew, without a full stop; "" if it could.
    """

    href: str | None
    reason: str = ""


def write_report(folders: Sequence[Path], out: Path, answers: AnswersLink | None = None) -> None:
    """Write the report of one run, or the comparison of several, as one HTML file that loads nothing.

    Args:
        folders: Run folders in the order of the report; at least one.
        out: The file to write. It is written atomically.
        answers: The page of answers of a single run; None says nothing about it.

    Raises:
        UserError: A run folder lacks a file, or a file is broken.
        ValueError: No folder is given.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder")
    write_page(out, render([read_run(folder) for folder in folders], out.parent, answers))


def write_page(out: Path, page: str) -> None:
    """Write a page atomically, and list it in the manifest of its folder if that has one."""
    write_atomic(out, page.encode(errors="replace"))
    if own_manifest(out.parent) is not None:
        add_to_manifest(out.parent, [out.name])


def render(runs: Sequence[Run], base: Path | None = None, answers: AnswersLink | None = None) -> str:
    """Return the HTML page of one run, or of the comparison of several.

    Args:
        runs: At least one run.
        base: The folder of the page, from which a comparison links to the report of each run; None for no links.
        answers: See `write_report`.
    """
    if len(runs) > 1:
        return render_comparison(runs, base)
    return load_template("page.html.j2").render(
        title=str(runs[0].experiment["name"]), run=_section(runs[0]), answers=answers
    )


def _section(run: Run) -> dict[str, Any]:
    """Return the template's values for a run."""
    questions = run.questions(run.fullest_slice)
    named = client_charts.client_names(run.clients)
    work = work_by_method(run.rounds, number(run.experiment, "train", "batch_size"))
    limiting = limits(run)
    sentences, method = (
        findings.run_findings(run.result, questions, named),
        findings.headline_method(run.result),
    )
    found = findings.short_findings(run.result, named) or sentences[:1]
    equal = [work_sentence(work, method)] if is_equal_work(work, method) else []
    details = [sentence.replace(found[-1], "").strip() for sentence in sentences]
    return {
        "kicker": _kicker(run),
        "found": [*found, *equal],
        "limits": limiting,
        "findings": [sentence for sentence in details if sentence and sentence not in limiting],
        "facts": facts(run),
        "purpose": introduction.purpose(list(run.scores), run.text_only),
        "introduction": introduction.introduction(run),
        "glossary": introduction.run_glossary(run),
        **_opening(run, named),
        "scores": score_table(run.result),
        "score_name": title(main_score(run.result)),
        "at_sites": site_scores_table(run.result),
        "tested_at_sites": is_tested_at_sites(run.result),
        "tested_on": tested_on(run.result),
        "task_scores": task_tables(run.result),
        "published": published_tables(run.result),
        "verdicts": verdict_tables(run.result, named),
        "gains": client_gain_tables(run.result, named[: client_charts.MAX_CLIENTS]),
        "hidden_clients": max(run.client_count - client_charts.MAX_CLIENTS, 0),
        "beside": [column.head for column in client_charts.columns(run.clients[: client_charts.MAX_CLIENTS])],
        "differences": card_table(run.plan["card"]).rows if at(run.plan, "card") else (),
        **{name: figure(partial(draw, run)) for name, draw in CHARTS.items()},
        "per_client": client_table(run.result, named),
        "costs": cost_table(run.result, work),
        "needs": predicted_table(run),
        "unpredicted": failed_prediction(run),
        "privacy": privacy_tables(run.result, named),
        "validation": validation_text(run),
        "validated": validation_table(run),
        "validated_rounds": curve_table(run),
        "best_round": at(run.result, "validation", "round") == "best",
        **_skipped_records(run),
        **_refused(run),
        "provenance": provenance(run),
        "command": f"fedloom run {shell_word(f'{run.folder.name}/experiment.json')}",
        "loading": adapter_loading(run),
        "withheld": len(charts.slices_shown(run)) > 1,
        "whiskers": findings.is_share_of_questions(run.result)
        and run.questions(run.fullest_slice) is not None,
        "own": [label(method) for method, scores in run.scores.items() if has_own_models(scores)],
        "hollow": any(shared_model(scores) is None for scores in run.scores.values()),
    }


def _opening(run: Run, named: Sequence[str]) -> dict[str, Any]:
    """Return the template's values for the figures of the first screen."""
    method = findings.headline_method(run.result)
    verdict = verdict_on(run.result, method) if method else None
    bars = None
    if verdict is not None and len(verdict.gains) <= MAX_BARS:
        bars = partial(overview_charts.gain_chart, verdict, named, list(run.scores))
    return {
        "overview": figure(partial(overview_charts.run_overview, run), OPENING, SLIM),
        "overview_bands": any(
            mark is not None and mark.low is not None
            for name in run.scores
            for mark in overview_charts.run_marks(run, name)
        ),
        "gain_bars": figure(bars, OPENING, SLIM) if bars else None,
        "gain_of": label(method) if method else "",
    }


def _kicker(run: Run) -> str:
    """Name data, clients, rounds and seed in a line."""
    rounds = number(run.experiment, "train", "rounds")
    entries = [
        at(run.experiment, "data", "name"),
        counted(run.client_count, "client"),
        None if rounds is None else counted(int(rounds), "round"),
        f"seed {at(run.experiment, 'seed')}",
    ]
    return " · ".join(str(entry) for entry in entries if entry is not None)


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
