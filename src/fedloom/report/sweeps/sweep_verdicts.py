"""Verdicts on the methods of a sweep: scores on clients' own data beside those on the global test set, and who gains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import hypot
from statistics import fmean
from typing import NamedTuple

from markupsafe import Markup

from fedloom.report.charts import short_label
from fedloom.report.client_verdicts import Gain, bottom_fifth, own_mean, verdict_on
from fedloom.report.overview_charts import Mark, Row, overview
from fedloom.report.pareto_chart import pareto_chart
from fedloom.report.score_tables import headline_title
from fedloom.report.shared_scores import (
    ABOUT,
    OWN_DATA,
    OWN_MODELS,
    SHARED_MODEL,
    for_everybody,
    own_models,
    shared_model,
)
from fedloom.report.significance import SAME, ClientCounts, Estimate, estimate
from fedloom.report.sweeps.estimate_texts import add_legend, corner, counts_text, estimate_text
from fedloom.report.sweeps.sweep_results import (
    SEED,
    CellRun,
    Models,
    SweepRun,
    baselines_in,
    cells_by_setting,
    count_clients_in_cells,
    local_of,
    mean_over_seeds,
)
from fedloom.report.tables import MISSING, Table, bytes_sent, is_federated, percent, signed, title
from fedloom.report.training_work import Work, is_equal_work, work_cells, work_sentence
from fedloom.report.verdict_tables import baseline_note

GAIN = "Mean gain"
"""Heading of the first column of a table of verdicts that is about gains; those before it are about scores."""


class SweepVerdict(NamedTuple):
    """The clients of several cells with a method, each against the model that it trained alone.

    Attributes:
        own: Mean score on clients' own data, over the cells of a seed and then over seeds.
        gain: Mean gain in the same way.
        questions: Half of the 95 % interval of a cell's mean gain that accounts for the questions, averaged over cells; None
            if it is unknown.
        gains: The gain of every client of every cell, with the name of the cell.
        counts: Clients that are better off, the same and worse off.
    """

    own: Estimate | None
    gain: Estimate | None
    questions: float | None
    gains: tuple[tuple[Gain, str], ...]
    counts: ClientCounts

    @property
    def bottom_fifth(self) -> float | None:
        """The mean gain of the fifth of all clients that gain least."""
        return bottom_fifth([gain.points for gain, _ in self.gains]) if self.gains else None

    @property
    def both_levels(self) -> float | None:
        """Half of the 95 % interval of the mean gain that accounts for seeds and questions; None if either is unknown.

        All seeds and cells are taken to have the same questions, so that the part of the questions does not shrink with the
        number of seeds.
        """
        if self.gain is None or self.gain.half is None or self.questions is None:
            return None
        return hypot(self.gain.half, self.questions)

    @property
    def worst(self) -> tuple[Gain, str] | None:
        """The client that gains least, and its cell."""
        return min(self.gains, key=lambda pair: (pair[0].points, pair[1]), default=None)


def sweep_verdict(cells: Sequence[CellRun], method: str, alone: str | None) -> SweepVerdict:
    """Return the verdict on a method over cells; cells of several tasks have counts only.

    Args:
        cells: The cells.
        method: The method.
        alone: The method by which clients train alone; None if there is none.
    """
    done = [cell for cell in cells if cell.result is not None and method in cell.scores]
    own = [(cell, own_mean(cell.scores[method])) for cell in done if cell.metric == done[0].metric]
    found = [
        (cell, verdict)
        for cell in done
        if cell.result is not None
        and method != alone
        and (verdict := verdict_on(cell.result, method)) is not None
    ]
    counts = count_clients_in_cells(cells, method, alone) if alone not in (None, method) else ClientCounts()
    gains = tuple((gain, cell.name) for cell, verdict in found for gain in verdict.gains)
    means = [(cell, verdict.mean) for cell, verdict in found]
    ends = [verdict.interval for _, verdict in found if verdict.interval is not None]
    questions = fmean((high - low) / 2 for low, high in ends) if ends else None
    return SweepVerdict(_over_seeds(own), _over_seeds(means), questions, gains, counts)


def _over_seeds(values: Iterable[tuple[CellRun, float | None]]) -> Estimate | None:
    by_seed: dict[object, list[float]] = {}
    for cell, value in values:
        if value is not None:
            by_seed.setdefault(str(cell.values.get(SEED)), []).append(value)
    return estimate(fmean(group) for group in by_seed.values())


def own_table(sweep: SweepRun) -> Table | None:
    """Return the table of the methods' mean scores on clients' own data by setting; None if there are none."""
    rows = []
    for name, cells in cells_by_setting(sweep).items():
        estimates = [sweep_verdict(cells, method, None).own for method in sweep.methods]
        seeds = max((value.seeds for value in estimates if value), default=0)
        rows.append((name, *map(estimate_text, estimates), str(seeds)))
    if all(cell == MISSING for row in rows for cell in row[1:-1]):
        return None
    note = (
        "In percent, on data like each client's own: mean over clients, of the client's own model where it has one; over seeds as "
        "in the table of the global test set."
    )
    columns = (corner(sweep), *map(short_label, sweep.methods), "n")
    return Table(columns, tuple(rows), add_legend(note, rows))


def verdict_table(sweep: SweepRun) -> Table | None:
    """Return the table of the verdicts on the methods over all cells; None without local training.

    If cells have different tasks, it has the numbers of clients only, and `verdicts_by_task` the rest.
    """
    alone = local_of(sweep)
    if alone is None or not any(count_clients_in_cells(sweep.cells, name, alone) for name in sweep.methods):
        return None
    baselines = baselines_in(sweep)
    found = {
        method: sweep_verdict(sweep.cells, method, other or alone) for method, other in baselines.items()
    }
    counted = (
        "Clients: how many are better off / equally well off / worse off than with the model that each trained alone, on data like its "
        f"own; equally means that scores differ by less than {100 * SAME:g} points.{baseline_note(baselines, alone)}"
    )
    if sweep.mixed_tasks:
        rows = tuple((short_label(method), _counts(verdict)) for method, verdict in found.items())
        return Table(("Method", "Clients"), rows, f"Over all cells and seeds. {counted}")
    levels = any(verdict.both_levels is not None for verdict in found.values())
    rows = tuple(_verdict_row(sweep, method, verdict, levels) for method, verdict in found.items())
    note = (
        "Over all cells and seeds, in percent; gains in points over the model that each client trained alone, on data like its own. "
        f"Bottom fifth: mean gain of the fifth of clients that gain least. {counted}"
    )
    if levels:
        note += (
            " Both levels: half of the 95 % confidence interval of the mean gain that accounts for seeds and questions, as if "
            "all seeds had the same questions; ± accounts for seeds alone."
        )
    scores = (SHARED_MODEL, OWN_MODELS, OWN_DATA) if sweep.has_both else ("Global test", "Own data")
    if sweep.has_both:
        note += f" {ABOUT}"
    heads = ("Method", *scores, GAIN, *(["Both levels"] if levels else []))
    heads += ("Bottom fifth", "Worst client", "Clients")
    return Table(heads, rows, add_legend(note, rows))


def verdicts_by_task(sweep: SweepRun) -> list[tuple[str, Table]]:
    """Return the name of each task and the table of the verdicts on the methods in its cells; none if all have the same tasks.

    The last table explains the columns of all.
    """
    parts = sweep.by_task if sweep.mixed_tasks else {}
    tables = ((_task_title(tasks, part), verdict_table(part)) for tasks, part in parts.items())
    found = [(name, table) for name, table in tables if table is not None]
    return [(name, replace(table, note=add_legend("", table.rows))) for name, table in found[:-1]] + found[
        -1:
    ]


def _task_title(tasks: Sequence[str], sweep: SweepRun) -> str:
    return headline_title(tasks[0], sweep.metric) if len(tasks) == 1 else ", ".join(tasks)


def _verdict_row(sweep: SweepRun, method: str, verdict: SweepVerdict, levels: bool) -> tuple[str, ...]:
    kinds: list[Models] = [shared_model, own_models] if sweep.has_both else [for_everybody]
    everybody = [mean_over_seeds(sweep.cells, method, of=models) for models in kinds]
    worst = verdict.worst
    return (
        short_label(method),
        *map(estimate_text, everybody),
        estimate_text(verdict.own),
        estimate_text(verdict.gain, "+"),
        *([MISSING if (half := verdict.both_levels) is None else f"±{percent(half)}"] if levels else []),
        MISSING if verdict.bottom_fifth is None else signed(verdict.bottom_fifth),
        MISSING if worst is None else signed(worst[0].points),
        _counts(verdict),
    )


def _counts(verdict: SweepVerdict) -> str:
    return counts_text(verdict.counts).replace(" ", "")


def sweep_overview(sweep: SweepRun, width: float) -> Markup:
    """Draw each method's mean score on the global test set and on clients' own data; nothing if tasks differ."""
    if sweep.mixed_tasks:
        return Markup()
    rows = [
        Row(
            short_label(method),
            method,
            _marks(sweep, method),
            all(shared_model(cell.scores[method]) is None for cell in sweep.cells if method in cell.scores),
        )
        for method in sweep.methods
    ]
    return overview(rows, sweep.methods, width)


def _marks(sweep: SweepRun, method: str) -> tuple[Mark | None, Mark | None]:
    own = sweep_verdict(sweep.cells, method, None).own
    return _mark(mean_over_seeds(sweep.cells, method)), _mark(own)


def _mark(value: Estimate | None) -> Mark | None:
    if value is None:
        return None
    return Mark(value.mean, *(value.ends or ()))


def sweep_pareto(sweep: SweepRun, width: float) -> Markup:
    """Draw the methods' mean scores against the bytes that they sent in a cell on average; nothing if tasks differ."""
    if sweep.mixed_tasks:
        return Markup()
    points, levels = dict[str, tuple[float, float]](), dict[str, float]()
    for method in sweep.methods:
        value = mean_over_seeds(sweep.cells, method)
        counts = [
            bytes_sent(cell.result, method) for cell in sweep.cells if cell.result and method in cell.scores
        ]
        if value is None or not counts or any(count is None for count in counts):
            continue
        if sent := fmean(count for count in counts if count is not None):
            points[method] = (sent, value.mean)
        else:
            levels[method] = value.mean
    return pareto_chart(points, levels, sweep.methods, width, f"{title(sweep.metric)}, %")


def work_of_sweep(sweep: SweepRun) -> dict[str, Work]:
    """Add up the work of each method over the cells."""
    total: dict[str, Work] = {}
    for cell in sweep.cells:
        for method, work in cell.work.items():
            total[method] = total.get(method, Work()).plus(work)
    return total


def work_table(sweep: SweepRun) -> Table | None:
    """Return the table of the work of each method over all cells; None if it was not recorded."""
    work = work_of_sweep(sweep)
    if not work:
        return None
    rows = tuple((short_label(method), *work_cells(work, method)) for method in sweep.methods)
    note = "Client-rounds: rounds that clients trained, added over clients and cells. Examples: each as often as it was trained on."
    return Table(("Method", "Client-rounds", "Steps", "Examples"), rows, note)


def sweep_work(sweep: SweepRun) -> tuple[str, bool]:
    """Compare the work of the first federated method with that of training alone and on pooled data.

    Returns:
        A sentence, "" if the work is unknown, and whether it is equal.
    """
    method, work = next((name for name in sweep.methods if is_federated(name)), None), work_of_sweep(sweep)
    return work_sentence(work, method), is_equal_work(work, method)
