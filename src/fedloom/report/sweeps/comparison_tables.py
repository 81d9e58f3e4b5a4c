"""Tables of a sweep's paired comparisons, and a short form for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from fedloom.report.charts import short_label
from fedloom.report.score_tables import headline_title
from fedloom.report.significance import interval_half_width
from fedloom.report.sweeps.axis_comparisons import Comparison, Factor, comparisons
from fedloom.report.sweeps.estimate_texts import ALIKE, SIGNIFICANT, add_legend, counts_text, estimate_text
from fedloom.report.sweeps.observations import Measure
from fedloom.report.sweeps.sweep_results import SweepRun
from fedloom.report.tables import MISSING, Table, counted, part_label, printable

MAX_LINES = 15  # of a terminal
FEW = 5  # seeds with which only large differences are significant
MAX_NAMED = 6  # cells that a note names; result.json has all

SHARED_HEADS = ("Global test", "Verdict", "Pairs")
OWN_HEADS = ("Own data", "Verdict, own", "Pairs, own")

Compared = Sequence[Comparison]
"""All comparisons of one factor."""


def group_by_factor(sweep: SweepRun) -> list[list[Comparison]]:
    """Return the comparisons of a sweep, grouped by factor; factors without comparisons are left out."""
    by_factor: dict[str, list[Comparison]] = {}
    for comparison in comparisons(sweep):
        by_factor.setdefault(comparison.factor.name, []).append(comparison)
    return list(by_factor.values())


def factor_title(factor: Factor) -> str:
    """Return the display name of a factor."""
    if factor.kind == "part":
        return f"+ {part_label(factor.name.strip('+_'))}"
    return "Methods" if factor.kind == "method" else factor.name


def value_title(factor: Factor, value: str, name: str | None = None) -> str:
    """Return the display name of a value of a factor, or of the factor `name` that its comparisons are split by."""
    return short_label(value) if (name or factor.name) == factor.method_factor else value


def measure_title(measure: Measure) -> str:
    """Return the display name of a measure."""
    return f"{headline_title(measure.task, measure.metric)}, {'own data' if measure.own else 'global test'}"


def overall(compared: Compared) -> list[Comparison]:
    """Return the comparisons over all values of the other factors."""
    return [comparison for comparison in compared if comparison.by is None]


def difference_text(comparison: Comparison) -> str:
    """Write the mean difference in percentage points, marked if it is significant."""
    return estimate_text(comparison.result.estimate, "+") + (SIGNIFICANT if comparison.significant else "")


def overall_table(compared: Compared) -> Table:
    """Return the table of a factor: a row for each value and score, with shared models and clients' own data side by side."""
    rows_compared, factor = overall(compared), compared[0].factor
    found = {(one.value, one.measure): one for one in rows_compared}
    kinds = [own for own in (False, True) if any(one.measure.own == own for one in rows_compared)]
    with_clients = any(one.result.clients for one in rows_compared)
    missing = list(dict.fromkeys(name for one in rows_compared for name in one.result.missing))
    columns = [f"Against {value_title(factor, factor.reference)}"]
    columns += [name for own in kinds for name in (OWN_HEADS if own else SHARED_HEADS)]
    columns += [*(["Clients"] if with_clients else []), "Seeds", *(["Left out"] if missing else [])]
    rows = list[tuple[str, ...]]()
    for value, task, metric in dict.fromkeys(
        (one.value, one.measure.task, one.measure.metric) for one in rows_compared
    ):
        sides = [found.get((value, Measure(task, metric, own))) for own in kinds]
        known = [side for side in sides if side is not None]
        seeds = max(side.result.estimate.seeds if side.result.estimate else 0 for side in known)
        left_out = max(len(side.result.missing) for side in known)
        rows.append(
            (
                f"{value_title(factor, value)}: {headline_title(task, metric)}",
                *(cell for side in sides for cell in _side(side)),
                *([counts_text(known[-1].result.clients)] if with_clients else []),
                str(seeds),
                *([str(left_out)] if missing else []),
            )
        )
    reference = value_title(factor, factor.reference)
    reference = "without it" if factor.kind == "part" else f"with {reference}"
    note = (
        f"Clients: how many are better off / equally well off / worse off than {reference}, "
        "each on data like its own; a client counts once for each pair."
    )
    notes = [note] * with_clients + _left_out(missing)
    return Table(tuple(columns), tuple(rows), add_legend(" ".join(notes), rows))


def _side(comparison: Comparison | None) -> tuple[str, str, str]:
    """Write a difference, its verdict and the numbers of its pairs."""
    if comparison is None:
        return MISSING, MISSING, MISSING
    result = comparison.result
    return (
        difference_text(comparison),
        comparison.verdict,
        f"{result.better} / {result.same} / {result.worse}",
    )


def _left_out(missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    named = "; ".join(missing[:MAX_NAMED])
    more = f"; and {counted(len(missing) - MAX_NAMED, 'more cell')}" if len(missing) > MAX_NAMED else ""
    return [f"Pairs were left out because one of their scores is missing in: {named}{more}."]


def split_tables(compared: Compared) -> list[tuple[str, Table]]:
    """Return a table for each other factor: a row for each of its values, a column for each value compared."""
    factor = compared[0].factor
    values = list(dict.fromkeys(comparison.value for comparison in compared))
    cells = {
        (comparison.by, comparison.measure, comparison.value): difference_text(comparison)
        for comparison in compared
        if comparison.by
    }
    measures = list(dict.fromkeys(comparison.measure for comparison in compared))
    tables = []
    for other in factor.others:
        present = dict.fromkeys((by, measure) for by, measure, _ in cells if by and by[0] == other)
        order = dict.fromkeys(by for by, _ in present)
        keys = [(by, measure) for by in order for measure in measures if (by, measure) in present]
        rows = tuple(
            (
                _row(value_title(factor, by[1], other), measure, alone=len(measures) == 1),
                *(cells.get((by, measure, value), MISSING) for value in values),
            )
            for by, measure in keys
        )
        heads = (value_title(factor, value) for value in values)
        if rows:
            name = "method" if other == factor.method_factor else other
            tables.append((f"by {name}", Table((name.rpartition(".")[2].capitalize(), *heads), rows)))
    return tables


def _row(value: str, measure: Measure, *, alone: bool) -> str:
    return value if alone else f"{value}: {measure_title(measure)}"


def explanation(groups: Sequence[Compared]) -> str:
    """Explain what can be concluded from the number of seeds."""
    estimates = [
        comparison.result.estimate
        for compared in groups
        for comparison in compared
        if comparison.result.estimate
    ]
    seeds = max((estimate.seeds for estimate in estimates), default=0)
    if seeds < 2:
        return "There is one seed, so there are no intervals: no difference can be called significant, and its sign may be due to chance."
    count = sum(estimate.half is not None for estimate in estimates)
    return (
        f"With {seeds} seeds a 95 % confidence interval extends {interval_half_width(seeds):.1f} times the standard deviation of "
        f"the seeds' differences to either side. {_few(seeds)}“Not significant” does not mean equal. "
        f"Of {counted(count, 'interval')} below, about one in twenty would exclude zero by chance alone; therefore verdicts and the "
        f"mark {SIGNIFICANT} follow from t-tests (of differences marked {ALIKE}, from exact sign tests) with Holm's correction over the differences of a table (5 %)."
    )


def _few(seeds: int) -> str:
    return "With so few seeds only large differences are significant. " if seeds <= FEW else ""


def terminal_lines(groups: Sequence[Compared], width: int = 80, most: int = MAX_LINES) -> str:
    """Write the overall comparisons in at most `most` lines; "" if there are none."""
    entries = [entry for compared in groups for entry in _entries(compared)]
    if not entries:
        return ""
    estimates = [
        comparison.result.estimate
        for compared in groups
        for comparison in compared
        if comparison.result.estimate
    ]
    seeds = max((estimate.seeds for estimate in estimates), default=0)
    legend = (
        f"{SIGNIFICANT} significant over {seeds} seeds, Holm's correction, 5 %"
        if seeds > 1
        else "one seed, so no interval"
    )
    head = textwrap.wrap(f"Paired comparisons, in points, all else equal ({legend}):", width)
    body = list[str]()
    for depth in range(most, 0, -1):  # lines that an entry may take
        body = [line for entry in entries for line in _cut(entry, width, depth)]
        if len(head) + len(body) <= most:
            return "\n".join([*head, *body])
    room = most - len(head) - 1
    return "\n".join([*head, *body[:room], f"  … {counted(len(body) - room, 'more line')} in the report"])


def _entries(compared: Compared) -> list[str]:
    factor, lines = compared[0].factor, overall(compared)
    against = f" against {value_title(factor, factor.reference)}" if factor.kind != "part" else ""
    head = f"{factor_title(factor)}{against}"
    measures = dict.fromkeys(comparison.measure for comparison in lines)
    texts = {
        measure: ", ".join(
            f"{value_title(factor, comparison.value)} {difference_text(comparison)}".removeprefix("with ")
            + _clients(comparison)
            for comparison in lines
            if comparison.measure == measure
        )
        for measure in measures
    }
    if len(texts) == 1:
        return [f"  {head} ({measure_title(measure)}): {text}" for measure, text in texts.items()]
    return [f"  {head}", *(f"    {measure_title(measure)}  {text}" for measure, text in texts.items())]


def _clients(comparison: Comparison) -> str:
    """Write the numbers of clients that are better and worse off, on data like their own; "" if they are unknown."""
    counts = comparison.result.clients
    return (
        f" ({counts.better} of {counted(counts.known, 'client')} better off, {counts.worse} worse)"
        if counts
        else ""
    )


def _cut(entry: str, width: int, most: int) -> list[str]:
    """Wrap an entry with a hanging indent to at most `most` lines; a cut entry ends with an ellipsis."""
    indent = " " * (len(entry) - len(entry.lstrip()) + 4)
    return textwrap.wrap(
        printable(entry),
        width,
        subsequent_indent=indent,
        max_lines=most,
        placeholder=" …",
        break_on_hyphens=False,
    )
