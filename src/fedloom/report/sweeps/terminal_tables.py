"""What a terminal shows of a sweep: scores, verdicts on the methods, and findings."""

from __future__ import annotations

import textwrap

from fedloom.report.sweeps.chosen_settings import choices, with_chosen_values
from fedloom.report.sweeps.sweep_results import SweepRun
from fedloom.report.sweeps.sweep_tables import choice_table, global_tables, sweep_findings
from fedloom.report.sweeps.sweep_verdicts import GAIN, own_table, sweep_work, verdict_table, verdicts_by_task
from fedloom.report.tables import Table, counted, printable, split_columns

MOST_FINDINGS = 3
"""Comparisons of two methods that are described in sentences; the report has all of them."""


def terminal_tables(sweep: SweepRun, width: int = 80) -> str:
    """Write the tables of scores, in blocks that fit the width, the verdicts and the findings for a terminal.

    If values were chosen on validation, the table of choices comes first and the others are restricted to chosen values.
    """
    picked = choices(sweep)
    reduced, choice = with_chosen_values(sweep, picked), choice_table(sweep, picked)
    pieces = [] if choice is None else [choice.text(width)]
    for name, table in global_tables(reduced):
        pieces += [f"{name}:\n"] if name else []
        pieces += _blocks(table, width)
    if (own := own_table(reduced)) is not None:
        pieces.append("Own data, own model:\n" if reduced.has_both else "On data like each client's own:\n")
        pieces += _blocks(own, width)
    if (verdicts := verdict_table(reduced)) is not None:
        pieces += ["Clients, against training alone:\n", *_blocks(verdicts, width)]
    for task, table in verdicts_by_task(reduced):
        pieces += [f"Clients, against training alone ({task}):\n", *_blocks(_without_scores(table), width)]
    findings = sweep_findings(reduced)
    more = len(findings) - MOST_FINDINGS
    rest = f"The report describes {counted(more, 'more comparison')} of two methods." if more > 0 else ""
    sentences = [*findings[:MOST_FINDINGS], rest, sweep_work(sweep)[0]]
    pieces += [f"{textwrap.fill(printable(sentence), width)}\n" for sentence in sentences if sentence]
    return "\n".join(pieces)


def _without_scores(verdicts: Table) -> Table:
    """Return a table of verdicts without the scores, which other tables show, and without its note."""
    kept = [0, *range(verdicts.columns.index(GAIN), len(verdicts.columns))]
    columns, *rows = (tuple(row[column] for column in kept) for row in (verdicts.columns, *verdicts.rows))
    return Table(columns, tuple(rows))


def _blocks(table: Table, width: int) -> list[str]:
    """Write a table in blocks of columns that fit the width."""
    return [block.text(width) for block in split_columns(table, width)]
