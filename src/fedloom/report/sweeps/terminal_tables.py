"""What a terminal shows of a sweep: scores, verdicts on the methods, and findings."""

from __future__ import annotations

import textwrap

from fedloom.report.sweeps.chosen_settings import choices, with_chosen_values
from fedloom.report.sweeps.sweep_results import SweepRun
from fedloom.report.sweeps.sweep_tables import choice_table, global_tables, sweep_findings
from fedloom.report.sweeps.sweep_verdicts import own_table, sweep_work, verdict_table
from fedloom.report.tables import counted, printable, split_columns

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
        pieces += [block.text(width) for block in split_columns(table, width)]
    if (own := own_table(reduced)) is not None:
        pieces.append("Own data, own model:\n" if reduced.has_both else "On data like each client's own:\n")
        pieces += [block.text(width) for block in split_columns(own, width)]
    if (verdicts := verdict_table(reduced)) is not None:
        pieces.append(f"Clients, against training alone:\n{verdicts.text(width)}")
    findings = sweep_findings(reduced)
    more = len(findings) - MOST_FINDINGS
    rest = f"The report describes {counted(more, 'more comparison')} of two methods." if more > 0 else ""
    sentences = [*findings[:MOST_FINDINGS], rest, sweep_work(sweep)[0]]
    pieces += [f"{textwrap.fill(printable(sentence), width)}\n" for sentence in sentences if sentence]
    return "\n".join(pieces)
