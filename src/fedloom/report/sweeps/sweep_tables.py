"""The tables of a sweep: rows are settings, columns are methods, figures are means over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from fedloom.report.charts import brief
from fedloom.report.federation_gain import fares, worst_client
from fedloom.report.paired_tests import ROUNDING, Estimate, Fares
from fedloom.report.run_results import at, number
from fedloom.report.sweeps.chosen_settings import Choice, choices, chosen
from fedloom.report.sweeps.sweep_results import (
    CellRun,
    SweepRun,
    along,
    difference,
    local_of,
    metric_of,
    over_seeds,
    rows_of,
)
from fedloom.report.tables import (
    MISSING,
    Table,
    base,
    counted,
    federated,
    label,
    percent,
    printable,
    signed,
    title,
)

BEST = "*"
MOST_NAMED = 6  # cells that a note names; result.json has all
ALIKE = "†"
"""Marks an estimate for which all of several seeds gave the same value."""

ALIKE_NOTE = f"{ALIKE} all seeds gave the same value, so the interval over seeds has zero width; that does not make the value exact."


def shown(found: Estimate | None, sign: str = "") -> str:
    """Write an estimate in percent, without spaces, so that no table breaks it.

    An interval without width is not written as ±0.0, which would look exact, but marked.

    Example:
        >>> shown(Estimate(0.5, 0.012, 3)), shown(Estimate(0.05, None, 1), "+"), shown(None)
        ('50.0±1.2', '+5.0', '—')
        >>> shown(Estimate(1.0, 0.0, 3)), shown(Estimate(1.0, 0.0002, 3))
        ('100.0†', '100.0±<0.1')
    """
    if found is None:
        return MISSING
    mean = signed(found.mean) if sign else percent(found.mean)
    if found.half is None:
        return mean
    if found.alike:
        return mean + ALIKE
    return f"{mean}±{percent(found.half) if found.half >= 0.0005 else '<0.1'}"


def explained(note: str, rows: Sequence[Sequence[str]]) -> str:
    """Add to a table's note what `ALIKE` means, where a cell has it."""
    return f"{note} {ALIKE_NOTE}".strip() if any(ALIKE in cell for row in rows for cell in row) else note


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
    spread = (
        "mean ± half of the 95 % confidence interval (Student's t) over n seeds"
        if most > 1
        else "one seed, so no interval"
    )
    marked = f" {BEST} federated method with the highest test score of the row, which is not a selection; where intervals overlap, another may be as good."
    note = f"{'Scores' if named else title(metric or sweep.metric)} in percent, on the global test set; {spread}."
    if rivals:
        note += marked
    heads = [*(["Score"] if named else []), *(brief(method) for method in sweep.methods)]
    return Table((_corner(sweep), *heads, "n"), tuple(rows), explained(note, rows), left=2 if named else 1)


def choice_table(sweep: SweepRun, found: Sequence[Choice]) -> Table | None:
    """Make the table of what was chosen on validation; None where nothing was.

    Args:
        sweep: The sweep with all its values.
        found: Its choices.
    """
    if not found:
        return None
    rows = tuple(
        (
            one.row,
            brief(one.method),
            *(MISSING if one.values is None else str(one.values[axis]) for axis in sweep.choose),
            MISSING if one.validation is None else percent(one.validation),
            shown(one.test),
        )
        for one in found
    )
    lacking = list(dict.fromkeys(name for one in found for name in one.missing))
    note = (
        "Chosen for each method: the value with the highest mean validation score over seeds; of equal ones, the first in the "
        "recipe. Scores in percent; test scores are those at the chosen value and had no part in the choice."
    )
    if lacking:
        more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
        note += f" A value cannot be chosen if one of its cells has no validation score: {'; '.join(lacking[:MOST_NAMED])}{more}."
    others = [axis for axis in sweep.settings if axis not in sweep.choose]
    corner = ", ".join(axis.rpartition(".")[2] for axis in others).capitalize() or "Sweep"
    columns = (corner, "Method", *sweep.choose, "Validation", "Test")
    return Table(columns, rows, explained(note, rows), left=2 + len(sweep.choose))


def gain_table(sweep: SweepRun) -> Table | None:
    """Make the table of what federation adds to local training; None without local training."""
    other = local_of(sweep)
    pairs = [(method, other) for method in sweep.methods if federated(method) and other]
    note = (
        "In percentage points on the global test set: federated minus the mean of the clients' own models, paired by "
        "seed."
    )
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
        (
            name,
            *(cell for pair in pairs for cell in (_gain(cells, *pair), written(fares_in(cells, *pair)))),
        )
        for name, cells in rows_of(sweep).items()
    )
    told = (
        f"{note} Clients: how many fare better / the same / worse, each on data like its own, over all seeds. {BEST} "
        "significant: the 95 % confidence interval over seeds excludes zero (no correction for multiple comparisons)."
    )
    heads = (head for method, _ in pairs for head in (brief(method), "clients"))
    return Table((_corner(sweep), *heads), rows, explained(told, rows))


def fares_in(cells: Sequence[CellRun], method: str, other: str) -> Fares:
    """Count the clients of all cells that a method serves better, as well, and worse than another one."""
    found = Fares()
    for cell in cells:
        if method in cell.scores and other in cell.scores:
            found = found.plus(fares(cell.scores[method], cell.scores[other]))
    return found


def written(found: Fares) -> str:
    """Write how many clients fare better, the same and worse; an em dash where that is unknown."""
    return f"{found.better} / {found.same} / {found.worse}" if found else MISSING


def findings(sweep: SweepRun) -> list[str]:
    """Summarize what federation adds to local training, and each modifier to its method: on all questions, and by client."""
    local = local_of(sweep)
    plain = next((method for method in sweep.methods if federated(method)), None)
    pairs = [(plain, local)] if plain and local else []
    pairs += [
        (method, base(method))
        for method in sweep.methods
        if method != base(method) and base(method) in sweep.methods
    ]
    return [f"{_on_all(sweep, *pair)} {_for_clients(sweep, *pair)}" for pair in pairs]


def _on_all(sweep: SweepRun, method: str, other: str) -> str:
    found = [difference(cells, method, other) for cells in rows_of(sweep).values()]
    known = [one for one in found if one is not None]
    ours, theirs = label(method), _other(other)
    if not known:
        return f"No cell has scores of both {ours} and {theirs}."
    above, below = (sum(sign * one.mean > ROUNDING for one in known) for sign in (1, -1))
    told = (
        f"On the global test set {ours} scores higher than {theirs} in {above} of {counted(len(known), 'setting')} and "
        f"lower in {below}"
    )
    if all(one.half is None for one in known):
        return f"{told}; with one seed there is no test of significance."
    sure = [one.mean > 0 for one in known if one.sure]
    alike = sum(one.alike for one in known)
    none = f"; in {alike} all seeds agree exactly, so their intervals have zero width" if alike else ""
    return (
        f"{told}: significantly higher in {sum(sure)}, significantly lower in {len(sure) - sum(sure)} "
        f"(95 % confidence intervals over seeds{none})."
    )


def _for_clients(sweep: SweepRun, method: str, other: str) -> str:
    found = fares_in(sweep.cells, method, other)
    if not found:
        return "The scores of single clients, on data like their own, were not recorded."
    own = "their own model trained alone" if base(other) == "local" else label(other)
    told = (
        f"On data like their own, {found.better} of {counted(found.known, 'client')} over all cells {'fares' if found.better == 1 else 'fare'} better with "
        f"{label(method)} than with {own}, {found.same} the same and {found.worse} worse"
    )
    lost = [
        (one["gain"], cell.name, one)
        for cell in sweep.cells
        if method in cell.scores
        and other in cell.scores
        and (one := worst_client(cell.scores[method], cell.scores[other]))
    ]
    gain, cell, one = min(lost, key=lambda row: row[:2], default=(0.0, "", {}))
    if gain >= 0:
        return f"{told}."
    figures = (
        f"{percent(one['score'])} instead of {percent(one['alone'])} percent"
        if one["score"] is not None
        else f"{percent(gain)} percent (relative)"
    )
    return f"{told}; client {one['client']} in {cell} loses most: {figures}."


def _other(method: str) -> str:
    return "the clients' own models do on average" if base(method) == "local" else label(method)


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
    ) + _kept_out(sweep)
    return Table((_corner(sweep), *columns), tuple(rows), note)


def _kept_out(sweep: SweepRun) -> str:
    """Describe what was held out of our training for validation; "" where nothing was."""
    done = [cell.result for cell in sweep.cells if cell.result]
    parts = [at(result, "validation", "from") for result in done]
    found = list(dict.fromkeys(part for part in parts if part is not None))
    if not found:
        return ""
    named = [
        "the owners' validation part"
        if part == "published"
        else f"a share of {part} of each client's training examples"
        for part in found
    ]
    where = "some of our runs" if None in parts else "our runs"
    return f" In {where}, {' or '.join(named)} was held out for validation."


def _corner(sweep: SweepRun) -> str:
    return ", ".join(axis.rpartition(".")[2] for axis in sweep.settings).capitalize() or "Sweep"


def terminal_tables(sweep: SweepRun, width: int = 80) -> str:
    """Write the table of scores for a terminal, its columns in as many blocks as the width asks for, and the findings.

    Where values were chosen on validation, the table of choices comes first, and the others have chosen values only.
    """
    picked = choices(sweep)
    judged, table = chosen(sweep, picked), choice_table(sweep, picked)
    blocks = [*([table] if table else []), *blocks_of(mean_table(judged), width)]
    told = [f"{textwrap.fill(printable(sentence), width)}\n" for sentence in findings(judged)]
    return "\n".join([*(block.text(width) for block in blocks), *told])


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
