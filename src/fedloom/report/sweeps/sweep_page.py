"""The report of a sweep: one self-contained HTML file, and `result.json` next to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedloom.report.introduction import definition, glossary
from fedloom.report.sweeps.axis_comparisons import comparison_json, comparisons, factors
from fedloom.report.sweeps.chosen_settings import choice_json, choices, with_chosen_values
from fedloom.report.sweeps.comparison_tables import (
    Compared,
    explanation,
    factor_title,
    group_by_factor,
    overall_table,
    split_tables,
    value_title,
)
from fedloom.report.sweeps.difference_charts import paired_chart
from fedloom.report.sweeps.sweep_charts import axis_chart
from fedloom.report.sweeps.sweep_results import SEED, SweepRun, headline, read_sweep
from fedloom.report.sweeps.sweep_summary import sweep_summary
from fedloom.report.sweeps.sweep_tables import (
    choice_table,
    finding_pairs,
    gain_table,
    global_tables,
    mean_table,
    part_table,
    published_table,
)
from fedloom.report.sweeps.sweep_verdicts import (
    own_table,
    sweep_overview,
    sweep_pareto,
    sweep_work,
    verdict_table,
    verdicts_by_task,
    work_table,
)
from fedloom.report.tables import MISSING, Table, counted, title
from fedloom.report.templates import Figure, figure, load_template
from fedloom.system.file_hashes import file_digest
from fedloom.system.json_files import write_atomic, write_json
from fedloom.system.manifest import Manifest, write_manifest
from fedloom.version import __version__

MAX_OPEN_ROWS = 12  # the tables of a factor are open if they have at most so many rows


def write_sweep_report(folder: Path) -> dict[str, Any]:
    """Write `report.html` and `result.json` of a sweep from the results of its cells.

    Args:
        folder: The sweep folder. Cells that are not done are listed and left out of the scores.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: There is no sweep in the folder, or a file is broken.
    """
    sweep = read_sweep(folder)
    picked = choices(sweep)
    result = sweep_summary(sweep) | {
        "comparisons": [comparison_json(item) for item in comparisons(with_chosen_values(sweep, picked))]
    }
    if sweep.choose:
        result |= {"choose": list(sweep.choose), "choices": [choice_json(item) for item in picked]}
    write_atomic(folder / "report.html", render_sweep(sweep).encode(errors="replace"))
    write_json(folder / "result.json", result)
    files = {name: file_digest(folder / name) for name in ("report.html", "result.json")}
    write_manifest(folder, Manifest(__version__, files=files))
    return result


def render_sweep(full_sweep: SweepRun) -> str:
    """Return the HTML page of a sweep; if values were chosen on validation, only those are compared."""
    picked = choices(full_sweep)
    sweep = with_chosen_values(full_sweep, picked)
    done = [cell for cell in full_sweep.cells if cell.state == "done"]
    groups, found = group_by_factor(sweep), finding_pairs(sweep)
    work, equal = sweep_work(full_sweep)
    metric = "Score" if sweep.mixed_tasks else title(sweep.metric)
    return load_template("sweep.html.j2").render(
        title=sweep.name,
        level=2,
        purpose=definition(sweep.text_only),
        facts=_facts(full_sweep, len(done)),
        choices=choice_table(full_sweep, picked),
        found=[
            *(found[0] if found else ["No federated method was compared with training alone."]),
            *([work] if equal else []),
        ],
        findings=[f"{shared} {own}" for shared, own in found[1:]],
        limits=_limits(full_sweep, sweep, groups),
        overview=figure(lambda width: sweep_overview(sweep, width), 600),
        scores=global_tables(sweep),
        both=sweep.has_both,
        own=own_table(sweep),
        verdicts=verdict_table(sweep),
        verdicts_by_task=verdicts_by_task(sweep),
        work=work_table(full_sweep),
        pareto=figure(lambda width: sweep_pareto(sweep, width)),
        metric=metric,
        metrics=[
            (title(name), mean_table(sweep, name)) for name in sweep.metrics[0 if sweep.mixed_tasks else 1 :]
        ],
        gains=gain_table(sweep),
        parts=part_table(sweep),
        paired=[_paired(compared) for compared in groups],
        explanation=explanation(groups),
        unpaired=_unpaired(sweep, groups),
        published=published_table(sweep),
        charts=[(axis, drawn) for axis in _charted(sweep) if (drawn := _chart(sweep, axis))],
        glossary_entries=_glossary(sweep),
        cells=_cells(full_sweep, metric),
        folders=[cell.folder for cell in full_sweep.cells],
    )


def _cells(sweep: SweepRun, metric: str) -> Table:
    rows = [
        (cell.name, cell.state, headline(cell.result) if cell.result else cell.error or MISSING)
        for cell in sweep.cells
    ]
    return Table(("Cell", "State", f"{metric} in percent"), tuple(rows), left=3)


def _glossary(sweep: SweepRun) -> list[tuple[str, str]]:
    """Explain the methods; the linear baseline twice if cells differ in its text features."""
    entries = (
        entry
        for method in sweep.methods
        for texts in sweep.linear_texts or ["words"]
        for entry in glossary([method], sweep.parts, sweep.text_only, texts)
    )
    return list(dict.fromkeys(entries))


def _limits(full_sweep: SweepRun, sweep: SweepRun, groups: Sequence[Compared]) -> list[str]:
    """Return what limits the conclusions of a sweep."""
    work, equal = sweep_work(sweep)
    missing = [cell for cell in full_sweep.cells if cell.state != "done"]
    sentences = [
        f"{counted(len(missing), 'cell')} of {len(full_sweep.cells)} {'is' if len(missing) == 1 else 'are'} not done."
        if missing
        else "",
        explanation(groups) if groups else "",
        "" if equal else work,
        "Intervals over seeds do not show how scores vary with other test questions."
        if SEED in sweep.axes
        else "",
        "This is the quick form of the recipe, with fewer cells, less data or fewer rounds."
        if sweep.quick
        else "",
    ]
    return [sentence for sentence in sentences if sentence]


def _paired(compared: Compared) -> dict[str, Any]:
    """Return the template's values for one factor."""
    splits, factor = split_tables(compared), compared[0].factor
    return {
        "title": factor_title(factor),
        "reference": value_title(factor, factor.reference),
        "table": overall_table(compared),
        "figure": figure(lambda width: paired_chart(compared, width)),
        "splits": splits,
        "open": sum(len(table.rows) for _, table in splits) <= MAX_OPEN_ROWS,
    }


def _unpaired(sweep: SweepRun, groups: Sequence[Compared]) -> list[str]:
    """Return the titles of the factors whose values cannot be compared."""
    names = {compared[0].factor.name for compared in groups}
    return [factor_title(factor) for factor in factors(sweep) if factor.name not in names]


def _charted(sweep: SweepRun) -> list[str | None]:
    """Return the axes that get a chart: none if means over the other axes would mix scores of several tasks."""
    if sweep.mixed_tasks:
        return []
    return [axis for axis in sweep.settings if len(sweep.axes[axis]) > 1] or [None]


def _chart(sweep: SweepRun, axis: str | None) -> Figure | None:
    return figure(lambda width: axis_chart(sweep, axis, width))


def _facts(sweep: SweepRun, done: int) -> list[tuple[str, str]]:
    seeds = sweep.axes.get(SEED)
    entries = [
        ("Form", "quick" if sweep.quick else None),
        ("Cells", f"{done} of {len(sweep.cells)} done" if done < len(sweep.cells) else str(done)),
        *((axis, counted(len(sweep.axes[axis]), "value")) for axis in sweep.settings),
        ("Chosen on validation", ", ".join(sweep.choose)),
        ("Seeds", ", ".join(map(str, seeds)) if seeds else None),
        ("Methods", str(len(sweep.methods))),
        ("Sweep digest", sweep.digest[:16]),
    ]
    return [(name, value) for name, value in entries if value]
