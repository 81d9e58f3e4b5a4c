"""What a terminal shows of a finished run: scores, verdicts on the methods, and a summary."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from fedloom.report.findings import headline_method, short_summary
from fedloom.report.run_results import Json
from fedloom.report.score_tables import score_table
from fedloom.report.site_scores_table import site_scores_table
from fedloom.report.tables import printable, split_columns
from fedloom.report.training_work import NO_WORK, Work, work_sentence
from fedloom.report.verdict_tables import terminal_note, terminal_verdicts

MOST_COLUMNS = 9
"""Columns of scores that fit beside each other; more are written in blocks."""


def terminal_table(result: Json, work: Mapping[str, Work] = NO_WORK) -> str:
    """Write final scores, verdicts on the methods and a summary for a terminal of 80 columns, without color.

    Args:
        result: The content of result.json.
        work: Method → its work, to say whether methods did equal work.
    """
    scores, at_sites = score_table(result), site_scores_table(result)
    blocks = split_columns(scores, 80) if len(scores.columns) > MOST_COLUMNS else [scores]
    pieces = [table.text(80) for table in (*blocks, at_sites) if table]
    tables = terminal_verdicts(result)
    for title, table in tables:
        head = "Clients on data like their own" + (f": {title}" if len(tables) > 1 else "")
        pieces.append(f"{head}\n{table.text(80)}")
    if tables:
        pieces.append(f"{textwrap.fill(terminal_note(result), 80)}\n")
    sentences = [short_summary(result), work_sentence(work, headline_method(result))]
    pieces += [f"{textwrap.fill(printable(sentence), 80)}\n" for sentence in sentences if sentence]
    return "\n".join(pieces)
