"""The tables of a sweep: rows are settings, columns are methods, figures are means over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.report.figures import brief
from fedloom.report.paired import Estimate
from fedloom.report.records import at, number
from fedloom.report.sweeps import (
    CellRun,
    SweepRun,
    along,
    difference,
    metric_of,
    over_seeds,
    rows_of,
)
from fedloom.report.tables import MISSING, Table, base, federated, percent, title

BEST = "*"


def shown(found: Estimate | None, sign: str = "") -> str:
    """Write an estimate in percent, without spaces, so that no table breaks it.

    Example:
        >>> shown(Estimate(0.5, 0.012, 3)), shown(Estimate(0.05, None, 1), "+"), shown(None)
        ('50.0±1.2', '+5.0', '—')
    """
    if found is None:
        return MISSING
    mean = f"{100 * found.mean:{sign}.1f}".replace("-", "−")
    return mean + ("" if found.half is None else f"±{percent(found.half)}")


def mean_table(sweep: SweepRun, metric: str | None = None) -> Table:
    """Make the table of a score; of several federated methods, the best one of a row is marked.

    By default it is the score that stands for a cell; where cells have different tasks, a column names it.
    """
    rows, most, rivals = [], 0, sum(map(federated, sweep.methods)) > 1
    named = sweep.mixed and metric is None
    for name, cells in rows_of(sweep).items():
        found = {method: over_seeds(cells, method, metric) for method in sweep.methods}
        means = {method: one.mean for method, one in found.items() if one and federated(method)}
        best = {method for method, mean in means.items() if mean == max(means.values())}
        texts = [shown(one) + (BEST if rivals and method in best else "") for method, one in found.items()]
        seeds = max((one.seeds for one in found.values() if one), default=0)
        score = [title(metric_of(cells) or MISSING)] if named else []
        rows.append((name, *score, *texts, str(seeds)))
        most = max(most, seeds)
    spread = "mean ± half of the 95% t-interval over n seeds" if most > 1 else "one seed, so no interval"
    marked = f" {BEST} best federated method of the row by its mean; where intervals overlap, another may be as good."
    note = f"{'Scores' if named else title(metric or sweep.metric)} in percent, {spread}."
    heads = [*(["Score"] if named else []), *(brief(method) for method in sweep.methods)]
    return Table(
        (_corner(sweep), *heads, "n"), tuple(rows), note + (marked if rivals else ""), left=2 if named else 1
    )


def gain_table(sweep: SweepRun) -> Table | None:
    """Make the table of what federation adds to local training; None without local training."""
    other = next((method for method in sweep.methods if base(method) == "local"), None)
    pairs = [(method, other) for method in sweep.methods if federated(method) and other]
    note = "In percentage points, federated minus local (mean over clients), paired by seed."
    return _differences(sweep, pairs, note)


def modifier_table(sweep: SweepRun) -> Table | None:
    """Make the table of what each modifier adds to the method it modifies; None where nothing is modified."""
    pairs = [(method, base(method)) for method in sweep.methods if base(method) in sweep.methods]
    note = "In percentage points, with minus without, paired by seed."
    return _differences(sweep, [pair for pair in pairs if pair[0] != pair[1]], note)


def _differences(sweep: SweepRun, pairs: Sequence[tuple[str, str]], note: str) -> Table | None:
    if not pairs:
        return None
    rows = tuple(
        (name, *(_gain(cells, method, other) for method, other in pairs))
        for name, cells in rows_of(sweep).items()
    )
    told = f"{note} {BEST} the 95% t-interval over seeds does not hold zero (each taken by itself)."
    return Table((_corner(sweep), *(brief(method) for method, _ in pairs)), rows, told)


def _gain(cells: Sequence[CellRun], method: str, other: str) -> str:
    found = difference(cells, method, other)
    return shown(found, "+") + (BEST if found and found.sure else "")


def published_table(sweep: SweepRun) -> Table | None:
    """Make the table of our figures beside those of others; None where the recipe gives none."""
    scores, metric = at(sweep.published, "scores") or {}, str(at(sweep.published, "metric") or "accuracy")
    methods = list(dict.fromkeys(method for figures in scores.values() for method in figures))
    places = {name: cells for axis in sweep.settings for name, cells in along(sweep, axis).items()}
    rows = []
    for name in (name for name in places if name in scores):
        pairs = []
        for method in methods:
            theirs = number(scores[name], method)
            ours = shown(over_seeds(places[name], method, metric))
            pairs += [ours, MISSING if theirs is None else f"{theirs:.1f}"]
        rows.append((name, *pairs))
    if not rows:
        return None
    columns = [word for method in methods for word in (f"{brief(method)}, ours", "published")]
    note = (
        f"{title(metric)} in percent. Published: {at(sweep.published, 'source')}. Ours come from "
        "the model and data of this sweep; where those differ, compare how scores change, not how high they are."
    )
    return Table((_corner(sweep), *columns), tuple(rows), note)


def _corner(sweep: SweepRun) -> str:
    return ", ".join(axis.rpartition(".")[2] for axis in sweep.settings).capitalize() or "Sweep"


def terminal_tables(sweep: SweepRun, width: int = 80) -> str:
    """Write the table of scores for a terminal, its columns in as many blocks as the width asks for."""
    blocks = blocks_of(mean_table(sweep), width)
    return "\n".join(block.text(width) for block in blocks)


def blocks_of(table: Table, width: int) -> list[Table]:
    """Cut a table between columns so that no figure needs to break; each block repeats the first column."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    needs = [max(*(len(word) for cell in column for word in cell.split()), 1) + 2 for column in columns]
    first = min(max(map(len, columns[0])) + 2, width // 2)
    blocks: list[list[int]] = [[]]
    room = width - first + 2
    for place, need in list(enumerate(needs))[1:]:
        if blocks[-1] and sum(needs[other] for other in blocks[-1]) + need > room:
            blocks.append([])
        blocks[-1].append(place)
    chosen = [
        Table(
            tuple(table.columns[place] for place in (0, *block)),
            tuple(tuple(row[place] for place in (0, *block)) for row in table.rows),
        )
        for block in blocks
    ]
    return [*chosen[:-1], Table(chosen[-1].columns, chosen[-1].rows, table.note)]
