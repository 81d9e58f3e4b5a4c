"""Write the pages of a finished run: its report, and beside it the answers to single test examples with their images."""

from __future__ import annotations

from pathlib import Path

from fedloom.data import load_data
from fedloom.experiment.experiment import Experiment
from fedloom.report.answer_examples import (
    columns_of,
    comparisons_of,
    missing_reason,
    read_right,
    read_shown,
)
from fedloom.report.answers_page import render_answers
from fedloom.report.run_page import AnswersLink, write_page, write_report
from fedloom.report.run_results import Run, read_run
from fedloom.report.site_scores_table import is_tested_at_sites
from fedloom.runs.run_folder import ANSWERS, EXPERIMENT, REPORT, refuse_file_of_run
from fedloom.system.errors import UserError
from fedloom.system.json_files import read_text, refuse_folder
from fedloom.tasks.predictions import PREDICTIONS, read_predictions
from fedloom.types import DataSet

LARGEST = 1_000_000_000
"""Bytes of predictions above which there is no page of answers, because reading them would take minutes."""


def write_pages(folder: Path, out: Path | None = None, data: DataSet | None = None) -> None:
    """Write the report of a finished run and, where predictions and data are there, its page of answers.

    The page is "answers.html" beside "report.html"; beside another name it begins with that. A report without it says why.

    Args:
        folder: The run folder.
        out: The report's file; None is that of the run.
        data: The run's data; None reads them again. Plug-ins are not imported for this, because a report runs no code of others.

    Raises:
        UserError: A file of the run is missing or broken.
    """
    out = folder / REPORT if out is None else out
    refuse_folder(out)
    page = out.with_name(ANSWERS if out.name == REPORT else f"{out.stem}-{ANSWERS}")
    for file in (out, page):
        refuse_file_of_run(file, folder)
    run = read_run(folder)
    try:
        _write_answers(run, page, out.name, data)
        link = AnswersLink(page.name)
    except UserError as error:
        link = AnswersLink(page.name if page.is_file() else None, str(error))
    write_report([folder], out, link)


def _write_answers(run: Run, page: Path, report: str, data: DataSet | None) -> None:
    """Write the page of answers.

    Raises:
        UserError: There is nothing to show; the message says why.
    """
    columns, file = columns_of(run.result), run.folder / PREDICTIONS
    if is_tested_at_sites(run.result):
        raise UserError("the answers and the test examples are at the sites, where they stay")
    if reason := missing_reason(columns):
        raise UserError(reason)
    if not file.is_file():
        raise UserError(f"{PREDICTIONS} is missing; runs of earlier versions have none")
    if file.stat().st_size > LARGEST:
        raise UserError(f"{PREDICTIONS} has more than {LARGEST:,} bytes")
    comparisons = comparisons_of(read_right(read_predictions(file), columns), columns, run.clients)
    if not any(one.shown for one in comparisons):
        raise UserError("no answer of the compared models differs in being right or wrong")
    shown = read_shown(read_predictions(file), columns, comparisons)
    examples = {one.id: one for one in (data or _load(run)).test}
    write_page(page, render_answers(run, columns, comparisons, shown, examples, report))


def _load(run: Run) -> DataSet:
    """Read the data of a run again.

    Raises:
        UserError: They cannot be read, or plug-ins would have to be imported.
    """
    if run.experiment.get("plugins"):
        raise UserError("the experiment has plug-ins, which a report does not import to read the data again")
    file = run.folder / EXPERIMENT
    experiment = Experiment.from_json(read_text(file), str(file))
    return load_data(experiment.data, experiment.seed, experiment.datasets)
