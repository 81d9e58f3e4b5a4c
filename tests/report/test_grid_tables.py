"""`scripts/grid_tables.py`: a collected grid gives the tables that its sweeps give, and gains of clients over several trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client_gains import (
    COUNTS,
    REPEAT,
    ClientGain,
    gain_table,
    gains_of,
    kind_of,
    kind_table,
    p_values,
    pairs_of,
    part_table,
    setting_table,
    size_table,
)
from collect_grid import collect
from fedloom.report.significance import SAME
from fedloom.report.sweeps.comparison_tables import group_by_factor, overall_table
from fedloom.report.sweeps.sweep_results import read_sweep
from fedloom.report.sweeps.sweep_tables import global_tables
from fedloom.report.sweeps.sweep_verdicts import own_table, verdict_table
from fedloom.report.tables import MISSING, Table, label
from grid_tables import all_parts_table, kind_differences, markdown, sweep_of, tables

from .test_collect_grid import CELLS, sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep(tmp_path_factory.mktemp("grid"), CELLS)


@pytest.fixture(scope="module")
def value(folder: Path) -> dict[str, Any]:
    return collect(folder / "none.json", [folder])


def test_the_tables_are_those_of_the_sweep(folder: Path, value: dict[str, Any]) -> None:
    ours, theirs = sweep_of(value), read_sweep(folder)
    assert global_tables(ours) == global_tables(theirs)
    assert own_table(ours) == own_table(theirs) and own_table(ours) is not None
    assert verdict_table(ours) == verdict_table(theirs) and verdict_table(ours) is not None
    paired = [[overall_table(one) for one in group_by_factor(sweep)] for sweep in (ours, theirs)]
    assert paired[0] == paired[1] and paired[0]


def test_another_training_adds_no_client(value: dict[str, Any]) -> None:
    """The gains of a client's trainings are averaged, and the first training has the number 0."""
    again = {
        f"{name}, {REPEAT}=1": {**cell, "axes": cell["axes"] | {REPEAT: 1}}
        for name, cell in value["cells"].items()
    }
    axes = value["axes"] | {REPEAT: [1]}
    once, twice = sweep_of(value), sweep_of({**value, "axes": axes, "cells": value["cells"] | again})
    assert {cell.values[REPEAT] for cell in twice.cells} == {0, 1}
    one, two = (gains_of(grid, "fedavg", "local") for grid in (once, twice))
    assert one and [gain.gains * 2 for gain in one] == [gain.gains for gain in two]
    kept = [row[:-1] for row in gain_table(once, "local").rows]
    assert [row[:-1] for row in gain_table(twice, "local").rows] == kept, "equal trainings change no figure"
    assert [row[-1] for row in gain_table(twice, "local").rows] == ["2"] * len(kept)


def test_rows_of_settings_divide_the_clients(value: dict[str, Any]) -> None:
    grid = sweep_of(value)
    table, gains = setting_table(grid, "fedavg", "local"), gains_of(grid, "fedavg", "local")
    assert [row[0] for row in table.rows] == ["even", "gaps"]
    counts = [[int(count) for count in row[3].split(" / ")] for row in table.rows]
    assert [sum(column) for column in zip(*counts, strict=True)] == [
        sum(gain.mean >= SAME for gain in gains),
        sum(abs(gain.mean) < SAME for gain in gains),
        sum(gain.mean <= -SAME for gain in gains),
    ]
    without = replace(grid, cells=grid.cells[:2])
    assert setting_table(without, "fedavg", "local").rows == table.rows[:1]


def test_kinds_and_sizes_divide_the_clients(value: dict[str, Any]) -> None:
    grid = sweep_of(value)
    by_setting = setting_table(grid, "fedavg", "local")
    (row,) = kind_table(grid, "local").rows
    assert row[1:] == tuple(f"{gain}; {counts}" for _, _, gain, counts, _, _ in by_setting.rows)
    by_size = size_table(value, grid, "fedavg", "local")
    counts = [[int(count) for count in row[2].split(" / ")] for row in by_size.rows]
    assert sum(map(sum, counts)) == len(gains_of(grid, "fedavg", "local"))
    assert sum(one[0] for one in counts) == sum(
        gain.mean >= SAME for gain in gains_of(grid, "fedavg", "local")
    )
    sizes = {count for cell in value["cells"].values() for count in cell["examples"]}
    ranges = [tuple(map(int, row[0].split(" to "))) for row in by_size.rows]
    assert all(sum(start <= size <= end for start, end in ranges) == 1 for size in sizes)


def test_what_a_part_adds_is_the_difference_at_each_client(value: dict[str, Any]) -> None:
    cells = {
        name: {
            **cell,
            "methods": cell["methods"]
            | {
                "fedavg+prior": cell["methods"]["fedavg"]
                | {"clients": [score - 2 for score in cell["methods"]["fedavg"]["clients"]]}
            },
        }
        for name, cell in value["cells"].items()
    }
    clients = sum(len(cell["examples"]) for cell in cells.values())
    table = part_table(sweep_of({**value, "cells": cells}), "local")
    ((part, to, all_of_them, even, gaps, counts, worst),) = table.rows
    assert (part, to, worst, counts) == ("prior", "FedAvg", "−2.0", f"0 / 0 / {clients}")
    assert {one.rstrip("†") for one in (all_of_them, even, gaps)} == {"−2.0"} and table.columns[-2] == COUNTS


def test_pairs_differ_in_one_part() -> None:
    methods = ["local", "local+prior", "fedavg", "fedavg+prior", "fedavg+pool+prior", "fedadam+pool"]
    assert pairs_of(methods) == [
        ("fedavg+prior", "fedavg", "prior"),
        ("fedavg+pool+prior", "fedavg+prior", "pool"),
    ]
    assert [kind_of(setting) for setting in (("missing-30", "x"), ("cross-3:7",), ())] == [
        "missing",
        "cross",
        "all",
    ]


def test_a_grid_of_seeds_alone_has_one_row(value: dict[str, Any]) -> None:
    cells = {
        name: {**cell, "axes": {"seed": cell["axes"]["seed"]}}
        for name, cell in value["cells"].items()
        if cell["axes"]["scenario"] == "even"
    }
    grid = sweep_of({**value, "axes": {"seed": [0, 1]}, "cells": cells})
    (row,) = setting_table(grid, "fedavg", "local").rows
    assert row[0] == "all"
    assert row[1:] == setting_table(sweep_of(value), "fedavg", "local").rows[0][1:]


def test_p_values_by_hand() -> None:
    """A gain of two standard errors has p = .0455, whether they come from questions or from trainings, and of one .3173."""
    alone = [ClientGain((), 0, 0, (0.1,), 0.05**2)]
    assert p_values(alone) == pytest.approx([0.0455], abs=5e-5)
    # Both clients' trainings have a variance of .02, so the mean of two a standard error of .1.
    several = [ClientGain((), 0, 0, (0.1, 0.3), 0.0), ClientGain((), 0, 1, (0.0, 0.2), 0.0)]
    assert p_values(several) == pytest.approx([0.0455, 0.3173], abs=5e-5)
    # Two equal parts of .0001 make a standard error of √.0002.
    both = [ClientGain((), 0, 0, (0.0, 2 * 0.01), 1e-4), ClientGain((), 0, 1, (0.0, 0.02), 1e-4)]
    assert p_values(both) == pytest.approx([0.4795] * 2, abs=5e-5)
    assert p_values([ClientGain((), 0, 0, (0.0,), 0.0)]) == [1.0]


def test_markdown_has_a_row_for_each_row() -> None:
    table = Table(("Method", "Score"), (("FedAvg", "1.0"), ("local", "2.0")), "A note.")
    assert (
        markdown(table)
        == "| Method | Score |\n| --- | ---: |\n| FedAvg | 1.0 |\n| local | 2.0 |\n\nA note.\n"
    )


def with_scores(value: dict[str, Any], scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return a collected grid whose cells have these accuracies, in percent: scenario → method → accuracy; a seed adds its number."""
    cells = {
        name: {
            **cell,
            "methods": {
                method: {"accuracy": percent + cell["axes"]["seed"]}
                for method, percent in scores[cell["axes"]["scenario"]].items()
            },
        }
        for name, cell in value["cells"].items()
    }
    return {**value, "cells": cells}


def test_kinds_are_compared_over_methods_without_parts(value: dict[str, Any]) -> None:
    scores = {
        "even": {"local": 40.0, "fedavg": 60.0, "fedprox": 62.0, "fedavg+prompt": 90.0},
        "gaps": {"local": 30.0, "fedavg": 50.0, "fedprox": 56.0, "fedavg+prompt": 10.0},
    }
    grid = sweep_of(with_scores(value, scores))
    assert kind_differences(grid).columns == ("Against even", "federated methods", "local (mean)")
    even, gaps = kind_differences(grid).rows
    assert even == ("Even", MISSING, MISSING), "the first setting is not compared with itself"
    assert [text.rstrip("†") for text in gaps] == ["Gaps", "−8.0", "−10.0"], "-10 and -6 of the two methods"
    turned = kind_differences(sweep_of(with_scores(value, scores), {"scenario": "gaps"}))
    assert [text.rstrip("†") for text in turned.rows[0]] == ["Even", "+8.0", "+10.0"]


def test_all_parts_together_are_compared_with_none(value: dict[str, Any]) -> None:
    scores = {"local": 40.0, "fedavg": 60.0, "fedavg+prompt": 61.0, "fedavg+prompt+adaptive": 65.0}
    assert all_parts_table(sweep_of(with_scores(value, dict.fromkeys(("even", "gaps"), scores)))) == Table(
        ("Method", "Over the method without parts"), ((label("fedavg+prompt+adaptive"), "+5.0†"),)
    )
    assert all_parts_table(sweep_of(value)) is None


def test_scores_of_different_tasks_are_not_averaged(value: dict[str, Any]) -> None:
    """Gains of a grid with several tasks are tables of one task each; no p-value is made of scores that are no shares."""
    cells = {
        name: {
            **cell,
            "independent_questions": {"test": {task: 50}, "clients": [{task: 50} for _ in cell["examples"]]},
        }
        for name, cell in value["cells"].items()
        for task in ["choice" if cell["axes"]["scenario"] == "even" else "caption"]
    }
    grid = sweep_of({**value, "cells": cells})
    found = dict(tables(value, grid, "fedavg"))
    gains = {title: table for title, table in found.items() if title.startswith("Gains over local")}
    assert list(gains) == ["Gains over local (mean), choice", "Gains over local (mean), caption"]
    assert [row[4] == MISSING for table in gains.values() for row in table.rows] == [False, True]
    counted = [sum(map(int, table.rows[0][2].split(" / "))) for table in gains.values()]
    assert sum(counted) == sum(len(cell["examples"]) for cell in cells.values())


def test_a_single_method_has_a_column_for_each_value_of_the_last_axis(value: dict[str, Any]) -> None:
    scores = {"even": {"fedavg": 60.0}, "gaps": {"fedavg": 50.0}}
    one = with_scores(value, scores)
    cells = {
        f"{name}, {rate}": {
            **cell,
            "axes": {"scenario": cell["axes"]["scenario"], "rate": rate, "seed": cell["axes"]["seed"]},
            "methods": {"fedavg": {"accuracy": cell["methods"]["fedavg"]["accuracy"] + rate}},
        }
        for name, cell in one["cells"].items()
        for rate in (1, 2)
        if (rate, cell["axes"]["scenario"]) != (2, "gaps")
    }
    axes = {"scenario": ["even", "gaps"], "rate": [1, 2], "seed": [0, 1]}
    table = dict(tables(one, sweep_of({**one, "axes": axes, "cells": cells}), None))["Scores"]
    assert table.columns == ("scenario", "1", "2")
    assert [tuple(text.partition("±")[0] for text in row) for row in table.rows] == [
        ("even", "61.5", "62.5"),
        ("gaps", "51.5", MISSING),
    ]
