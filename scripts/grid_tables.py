"""Print the tables of a grid as Markdown, from a file that `collect_grid.py` wrote; the pages of findings quote them.

Run it with `python scripts/grid_tables.py docs/results/NAME.json`; `--page FILE.html` also writes the report of the sweep.
Values of an axis are compared with its first one, or with another one: `--first strategy=both`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import ne
from pathlib import Path
from statistics import fmean
from typing import Any

from client_gains import (
    REPEAT,
    gain_table,
    kind_of,
    kind_table,
    kinds_of,
    part_table,
    setting_of,
    setting_table,
    size_table,
)
from fedloom.report.significance import estimate
from fedloom.report.sweeps.comparison_tables import factor_title, group_by_factor, overall_table, split_tables
from fedloom.report.sweeps.estimate_texts import estimate_text
from fedloom.report.sweeps.sweep_page import render_sweep
from fedloom.report.sweeps.sweep_results import (
    SEED,
    CellRun,
    SweepRun,
    by_seed,
    mean_over_seeds,
    paired_difference,
)
from fedloom.report.sweeps.sweep_tables import global_tables
from fedloom.report.sweeps.sweep_verdicts import own_table, verdict_table, verdicts_by_task
from fedloom.report.tables import Table, is_federated, label
from fedloom.system.json_files import read_json, write_atomic

Json = Mapping[str, Any]


def fractions(value: Any) -> Any:
    """Return scores in percent as fractions."""
    match value:
        case dict():
            return {key: fractions(one) for key, one in value.items()}
        case list():
            return [fractions(one) for one in value]
        case float() | int():
            return value / 100
        case _:
            return value


def result_of(cell: Json) -> dict[str, Any]:
    """Return the parts of a cell's result from which the report's tables are made."""
    scores, tasks = {}, list(cell.get("independent_questions", {}).get("test", {}))
    for method, kept in cell["methods"].items():
        one = fractions(kept)
        if len(tasks) == 1 and "tasks" not in one:
            task = tasks[0]
            one["tasks"] = {task: {key: number for key, number in one.items() if isinstance(number, float)}}
            one["client_tasks"] = [None if score is None else {task: score} for score in one["clients"]]
        scores[method] = one
    kept = {key: cell[key] for key in ("independent_questions", "agreement") if key in cell}
    return {"scores": scores, **kept}


def sweep_of(value: Json, first: Mapping[str, str] | None = None) -> SweepRun:
    """Return a collected grid as a sweep; a cell without a value on an axis has 0 there.

    Args:
        value: What `collect_grid.py` wrote.
        first: Axis → the label that the other labels of the axis are compared with, by default its first one.
    """
    axes = value["axes"] | ({REPEAT: [0, *value["axes"][REPEAT]]} if REPEAT in value["axes"] else {})
    axes |= {axis: sorted(axes[axis], key=partial(ne, chosen)) for axis, chosen in (first or {}).items()}
    cells = tuple(
        CellRun(
            name, dict.fromkeys(axes, 0) | cell["axes"], cell["digest"], "", "done", None, result_of(cell)
        )
        for name, cell in value["cells"].items()
    )
    return SweepRun(value["recipe"], "", False, axes, cells, None)


def kind_differences(sweep: SweepRun) -> Table:
    """Return how scores of each kind of setting differ from those of the sweep's first setting, all else equal.

    Scores are those on the global test set, averaged over the settings of a kind and, of federated methods, over those without
    parts: of a seed first, and then over seeds.
    """
    axis, first = next((axis, labels[0]) for axis, labels in sweep.axes.items() if axis != SEED)
    federated = [name for name in sweep.methods if is_federated(name) and "+" not in name]
    groups = {"federated methods": federated} | {
        label(name): [name] for name in sweep.methods if name == "local"
    }

    def means(cells: Sequence[CellRun], methods: Sequence[str]) -> dict[Any, float]:
        found = [by_seed(cells, method) for method in methods]
        shared = set[Any]().union(*found).intersection(*found)
        return {seed: fmean(one[seed] for one in found) for seed in shared}

    firsts = [cell for cell in sweep.cells if cell.values[axis] == first]
    references = [means(firsts, methods) for methods in groups.values()]
    rows = list[tuple[str, ...]]()
    for kind in kinds_of(sweep):
        cells = [
            cell for cell in sweep.cells if kind_of(setting_of(cell)) == kind and cell.values[axis] != first
        ]
        texts = []
        for methods, theirs in zip(groups.values(), references, strict=True):
            ours = means(cells, methods)
            texts.append(
                estimate_text(estimate(ours[seed] - theirs[seed] for seed in ours if seed in theirs), "+")
            )
        rows.append((kind.capitalize(), *texts))
    return Table((f"Against {first}", *groups), tuple(rows))


def all_parts_table(sweep: SweepRun) -> Table | None:
    """Return what several parts together bring each method that has them, over the method without any, on the global test set."""
    rows = list[tuple[str, ...]]()
    for method in sweep.methods:
        without, *parts = method.split("+")
        if len(parts) > 1 and is_federated(without) and without in sweep.methods:
            rows.append((label(method), estimate_text(paired_difference(sweep.cells, method, without), "+")))
    return Table(("Method", "Over the method without parts"), tuple(rows)) if rows else None


def value_table(sweep: SweepRun) -> Table:
    """Return the scores of a sweep's only method on the global test set, with a column for each value of the last axis."""
    (method,) = sweep.methods
    *others, axis = sweep.settings
    rows: dict[tuple[str, ...], dict[str, list[CellRun]]] = {}
    for cell in sweep.cells:
        about = tuple(str(cell.values[other]) for other in others)
        rows.setdefault(about, {}).setdefault(str(cell.values[axis]), []).append(cell)
    columns = [str(value) for value in sweep.axes[axis]]
    texts = {
        about: [estimate_text(mean_over_seeds(found.get(value, ()), method)) for value in columns]
        for about, found in rows.items()
    }
    return Table(
        (*others, *columns), tuple((*about, *cells) for about, cells in texts.items()), left=len(others)
    )


def markdown(table: Table) -> str:
    """Return a table as Markdown, with its note below."""
    rule = ["---" if column < table.left else "---:" for column in range(len(table.columns))]
    lines = ["| " + " | ".join(row) + " |" for row in (table.columns, rule, *table.rows)]
    return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def one_task_each(sweep: SweepRun) -> list[tuple[str, SweepRun]]:
    """Return the cells of each task as a sweep, with what to add to a title."""
    return [
        (f", {', '.join(tasks)}" if sweep.mixed_tasks else "", part) for tasks, part in sweep.by_task.items()
    ]


def tables(value: Json, sweep: SweepRun, method: str | None) -> Iterator[tuple[str, Table]]:
    """Yield the title and the table of everything that is printed of a collected grid, which is also given as a sweep."""
    if len(sweep.methods) == 1 and len(sweep.settings) > 1:
        yield "Scores", value_table(sweep)
    else:
        yield from global_tables(sweep)
    baselines = [name for name in sweep.methods if name in ("local", "local+finetune")]
    for about, part in one_task_each(sweep):
        for alone in baselines:
            yield f"Gains over {label(alone)}{about}", gain_table(part, alone)
            if not about:
                yield f"Gains over {label(alone)}, by kind of setting", kind_table(part, alone)
            if method is not None:
                yield f"{label(method)} over {label(alone)}{about}", setting_table(part, method, alone)
                yield (
                    f"{label(method)} over {label(alone)}{about}, by size",
                    size_table(value, part, method, alone),
                )
        if baselines:
            yield f"What each part adds{about}", part_table(part, baselines[0])
    for name, found in (("Own data", own_table(sweep)), ("Clients", verdict_table(sweep))):
        if found is not None:
            yield name, found
    yield from verdicts_by_task(sweep)
    if not sweep.mixed_tasks and len(kinds_of(sweep)) > 1:
        yield "Kinds of settings", kind_differences(sweep)
    if (together := all_parts_table(sweep)) is not None and not sweep.mixed_tasks:
        yield "All parts", together
    for compared in group_by_factor(sweep):
        yield factor_title(compared[0].factor), overall_table(compared)
        yield from split_tables(compared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--method", help="method whose gains are printed by setting")
    parser.add_argument(
        "--first",
        action="append",
        default=[],
        metavar="AXIS=LABEL",
        help="what an axis's other labels are compared with",
    )
    parser.add_argument("--page", type=Path, help="HTML file to write")
    options = parser.parse_args()
    value = read_json(options.file)
    sweep = sweep_of(value, dict(one.split("=", 1) for one in options.first))
    for name, table in tables(value, sweep, options.method):
        print(f"## {name}\n\n{markdown(table)}")
    if options.page is not None:
        write_atomic(options.page, render_sweep(sweep).encode())


if __name__ == "__main__":
    main()
