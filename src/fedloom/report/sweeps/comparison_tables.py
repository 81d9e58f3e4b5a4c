"""The comparisons of a grid, as tables and as a few lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from fedloom.report.charts import brief
from fedloom.report.paired_tests import Paired, reach
from fedloom.report.score_tables import headline_title
from fedloom.report.sweeps.axis_comparisons import Comparison, Factor, comparisons
from fedloom.report.sweeps.paired_scores import Measure
from fedloom.report.sweeps.sweep_results import SweepRun
from fedloom.report.sweeps.sweep_tables import BEST, explained, shown, written
from fedloom.report.tables import MISSING, Table, base, counted, part_label, printable

MOST_LINES = 15  # of a terminal
FEW = 5  # seeds with which only large differences are significant
MOST_NAMED = 6  # cells that a note names; result.json has all

Compared = Sequence[Comparison]
"""All comparisons of one factor."""


def by_factor(sweep: SweepRun) -> list[list[Comparison]]:
    """Compare along every factor of a sweep; factors without a comparison are left out."""
    together: dict[str, list[Comparison]] = {}
    for one in comparisons(sweep):
        together.setdefault(one.factor.name, []).append(one)
    return list(together.values())


def factor_title(factor: Factor) -> str:
    """Name a factor for readers."""
    if factor.kind == "modifier":
        return f"+ {part_label(factor.name.strip('+_'))}"
    return "Methods" if factor.kind == "method" else factor.name


def value_title(factor: Factor, value: str, name: str | None = None) -> str:
    """Name a value of a factor, or of another one (`name`) that its comparisons are split by."""
    return brief(value) if (name or factor.name) == factor.methods else value


def measure_title(measure: Measure) -> str:
    """Name what is measured."""
    return headline_title(*measure)


def overall(compared: Compared) -> list[Comparison]:
    """Return the comparisons over all values of the other factors."""
    return [one for one in compared if one.by is None]


def difference(found: Paired) -> str:
    """Write the mean difference in points, marked where its interval excludes zero."""
    return shown(found.estimate, "+") + (BEST if found.estimate and found.estimate.sure else "")


def overall_table(compared: Compared) -> Table:
    """Make the table of a factor: a row for each value and measure."""
    lines, factor = overall(compared), compared[0].factor
    served = any(one.found.clients for one in lines)
    missing = list(dict.fromkeys(name for one in lines for name in one.found.missing))
    columns = (f"Against {value_title(factor, factor.reference)}", "Difference", "Verdict")
    columns += ("Better / same / worse", *(["Clients"] if served else []))
    columns += ("Seeds", *(["Left out"] if missing else []))
    rows = tuple(
        (
            f"{value_title(factor, one.value)}: {measure_title(one.measure)}",
            difference(one.found),
            one.found.verdict,
            f"{one.found.better} / {one.found.same} / {one.found.worse}",
            *([written(one.found.clients)] if served else []),
            str(one.found.estimate.seeds if one.found.estimate else 0),
            *([str(len(one.found.missing))] if missing else []),
        )
        for one in lines
    )
    note = (
        f"Clients: how many fare better / the same / worse than with {value_title(factor, factor.reference)}, each on data "
        "like its own; a client counts once for each pair."
    )
    return Table(columns, rows, explained(" ".join([note] * served + _left_out(missing)), rows))


def _left_out(missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    named = "; ".join(missing[:MOST_NAMED])
    more = f"; and {counted(len(missing) - MOST_NAMED, 'more cell')}" if len(missing) > MOST_NAMED else ""
    return [f"Pairs were left out because one of their scores is missing in: {named}{more}."]


def split_tables(compared: Compared) -> list[tuple[str, Table]]:
    """Make a table for each other factor: a row for each value of it, a column for each value compared."""
    factor = compared[0].factor
    values = list(dict.fromkeys(one.value for one in compared))
    cells = {(one.by, one.measure, one.value): difference(one.found) for one in compared if one.by}
    measures = list(dict.fromkeys(one.measure for one in compared))
    tables = []
    for other in factor.others:
        keys = dict.fromkeys((by, measure) for by, measure, _ in cells if by and by[0] == other)
        rows = tuple(
            (
                _row(value_title(factor, by[1], other), measure, alone=len(measures) == 1),
                *(cells.get((by, measure, value), MISSING) for value in values),
            )
            for by, measure in keys
        )
        heads = (value_title(factor, value) for value in values)
        if rows:
            name = "method" if other == factor.methods else other
            tables.append((f"by {name}", Table((name.rpartition(".")[2].capitalize(), *heads), rows)))
    return tables


def _row(value: str, measure: Measure, *, alone: bool) -> str:
    return value if alone else f"{value}: {measure_title(measure)}"


def explanation(groups: Sequence[Compared]) -> str:
    """Return what the number of seeds allows to conclude."""
    found = [one.found.estimate for compared in groups for one in compared if one.found.estimate]
    seeds = max((one.seeds for one in found), default=0)
    if seeds < 2:
        return "There is one seed, so there are no intervals: nothing here is significant, and a sign may be chance."
    count = sum(one.half is not None for one in found)
    return (
        f"With {seeds} seeds a 95 % confidence interval reaches {reach(seeds):.1f} times the standard deviation of the "
        f"seeds' differences to either side. {_few(seeds)}“Not significant” does not mean equal. "
        f"Of {counted(count, 'interval')} below, about one in twenty would exclude zero by chance alone."
    )


def _few(seeds: int) -> str:
    return "With so few seeds only large differences are significant. " if seeds <= FEW else ""


def terminal_lines(groups: Sequence[Compared], width: int = 80, most: int = MOST_LINES) -> str:
    """Write the comparisons over everything else in at most so many lines; "" where there are none."""
    entries = [entry for compared in groups for entry in _entries(compared)]
    if not entries:
        return ""
    found = [one.found.estimate for compared in groups for one in compared if one.found.estimate]
    seeds = max((one.seeds for one in found), default=0)
    told = (
        f"{BEST} significant: the 95 % confidence interval over {seeds} seeds excludes zero"
        if seeds > 1
        else "one seed, so no interval"
    )
    head = textwrap.wrap(f"Paired comparisons, in points, all else equal ({told}):", width)
    body = list[str]()
    for depth in range(most, 0, -1):  # lines that an entry may take
        body = [line for entry in entries for line in _cut(entry, width, depth)]
        if len(head) + len(body) <= most:
            return "\n".join([*head, *body])
    room = most - len(head) - 1
    return "\n".join([*head, *body[:room], f"  … {counted(len(body) - room, 'more line')} in the report"])


def _entries(compared: Compared) -> list[str]:
    factor, lines = compared[0].factor, overall(compared)
    against = f" against {value_title(factor, factor.reference)}" if factor.kind != "modifier" else ""
    head = f"{factor_title(factor)}{against}"
    measures = dict.fromkeys(one.measure for one in lines)
    said = {
        measure: ", ".join(
            f"{value_title(factor, one.value)} {difference(one.found)}".removeprefix("with ") + _clients(one)
            for one in lines
            if one.measure == measure
        )
        for measure in measures
    }
    if len(said) == 1:
        return [f"  {head} ({measure_title(measure)}): {text}" for measure, text in said.items()]
    return [f"  {head}", *(f"    {measure_title(measure)}  {text}" for measure, text in said.items())]


def _clients(one: Comparison) -> str:
    """Return how single clients fare, where one of two methods is training alone."""
    found, sides = one.found.clients, (one.value, one.factor.reference)
    if one.factor.kind != "method" or not found or all(base(side) != "local" for side in sides):
        return ""
    return f" (clients on data like their own: {found.better} better, {found.worse} worse)"


def _cut(entry: str, width: int, most: int) -> list[str]:
    """Wrap an entry under its own indent; what takes more lines ends with an ellipsis."""
    indent = " " * (len(entry) - len(entry.lstrip()) + 4)
    return textwrap.wrap(
        printable(entry),
        width,
        subsequent_indent=indent,
        max_lines=most,
        placeholder=" …",
        break_on_hyphens=False,
    )
