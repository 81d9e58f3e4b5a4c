"""What a terminal shows of a sweep: scores, verdicts on the methods, and findings."""

from __future__ import annotations

import textwrap

from fedloom.report.sweeps.chosen_settings import choices, with_chosen_values
from fedloom.report.sweeps.sweep_results import SweepRun
from fedloom.report.sweeps.sweep_tables import choice_table, global_tables, sweep_findings
from fedloom.report.sweeps.sweep_verdicts import own_table, sweep_work, verdict_table
from fedloom.report.tables import Table, printable


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
    sentences = [*sweep_findings(reduced), sweep_work(sweep)[0]]
    pieces += [f"{textwrap.fill(printable(sentence), width)}\n" for sentence in sentences if sentence]
    return "\n".join(pieces)


def split_columns(table: Table, width: int) -> list[Table]:
    """Split a table into blocks of columns that fit the width; each block repeats the first column."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    needs = [max(*(len(word) for cell in column for word in cell.split()), 1) + 2 for column in columns]
    first = min(max(map(len, columns[0])) + 2, width // 2)
    blocks: list[list[int]] = [[]]
    room = width - first + 2
    for index, need in list(enumerate(needs))[1:]:
        if blocks[-1] and sum(needs[other] for other in blocks[-1]) + need > room:
            blocks.append([])
        blocks[-1].append(index)
    tables = [
        Table(
            tuple(table.columns[index] for index in (0, *block)),
            tuple(tuple(row[index] for index in (0, *block)) for row in table.rows),
        )
        for block in blocks
    ]
    return [*tables[:-1], Table(tables[-1].columns, tables[-1].rows, table.note)]
