"""Laws of tables: every row is written, text keeps to its width, missing figures stay missing."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.report.compare_runs import experiments_tables, group_by_experiment, mean_deviation, seeds_table
from fedloom.report.run_results import read_run
from fedloom.report.score_tables import score_table
from fedloom.report.tables import (
    MISSING,
    Table,
    client_table,
    label,
    percent,
    size,
)
from fedloom.report.terminal_summary import terminal_table
from fedloom.report.training_work import cost_table
from fedloom.system.terminal import display_width

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=30)


@st.composite
def tables(draw) -> Table:
    width = draw(st.integers(1, 6))
    row = st.lists(CELLS, min_size=width, max_size=width).map(tuple)
    return Table(draw(row), tuple(draw(st.lists(row, max_size=5))), draw(CELLS), draw(st.integers(0, width)))


@given(tables(), st.integers(24, 120))
def test_text_keeps_to_its_width_and_holds_no_control_characters(table, width):
    lines = table.text(width).split("\n")
    assert all(display_width(line) <= width for line in lines)
    assert all(character.isprintable() or character == "\u00a0" for line in lines for character in line)


def test_columns_of_figures_stand_below_each_other_in_every_script():
    names = ("cat", "猫咪", "고양이", "cafe\u0301", "हिन्दी", "एकबहुतलंबाशब्द" * 4, "一个很长的类名" * 4)
    table = Table(("Class", "Score"), tuple((name, "9.5") for name in names))
    lines = table.text(40).splitlines()
    figures = [line for line in lines if line.endswith("9.5")]
    assert len(figures) == len(names)
    assert len({display_width(line) for line in figures}) == 1
    shown = "".join(line.removesuffix("9.5").strip() for line in lines)
    assert all(name in shown for name in names)


@given(tables())
def test_latex_has_one_row_for_each_row(table):
    body = table.latex().split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert body.count(r" \\" + "\n") == len(table.rows)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        Table(("a",), (("b", "c"),))


def test_latex_escapes_its_special_characters():
    table = Table(("50 % & more_of {it}",), ((r"\input{x} # $1 | <b>",),))
    assert r"50 \% \& more\_of \{it\}" in table.latex()
    assert r"\textbackslash{}input\{x\} \# \$1" in table.latex()


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("zero-shot", "zero-shot"),
        ("linear", "linear baseline"),
        ("local", "local (mean)"),
        ("centralized", "centralized"),
        ("fedavg", "FedAvg"),
        ("scaffold", "SCAFFOLD"),
        ("fedavg+prompt+adaptive", "FedAvg + prompt + adaptive regularizer"),
        ("something-new", "something-new"),
    ],
)
def test_labels(method, shown):
    assert label(method) == shown


def test_every_method_has_a_row_in_the_order_of_the_result(run_folder):
    result = read_run(run_folder()).result
    for table in (score_table(result), cost_table(result)):
        assert [row[0] for row in table.rows] == [label(method) for method in result["scores"]]


@given(tables())
def test_csv_has_every_cell_and_no_formula(table):
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert [len(row) for row in rows] == [len(table.columns)] * (len(table.rows) + 1)
    assert not any(re.match(r"[=@]|[-+](?!\d)", cell) for row in rows for cell in row)


def test_csv_figures_are_numbers():
    table = Table(("Method", "Gain"), (("FedAvg", "−5.0"), ("local", MISSING), ("=1+1", "+2.5")))
    assert table.csv() == "Method,Gain\nFedAvg,-5.0\nlocal,\n'=1+1,+2.5\n"


def test_missing_figures_stay_missing():
    result = {"scores": {"fedavg": {"accuracy": 0.713, "auc": None, "macro_f1": float("nan")}, "linear": {}}}
    table = score_table(result)
    assert table.rows[0] == ("FedAvg", "71.3", *[MISSING] * 4)
    assert table.rows[1] == ("linear baseline", *[MISSING] * 5)
    assert "nan" not in table.text(80)


def test_local_shows_its_best_and_worst_client():
    result = {"scores": {"local": {"accuracy": 0.5, "best": 0.75, "worst": 0.25}}}
    assert score_table(result).rows[0][1] == "50.0 (75.0–25.0)"


def test_the_note_has_the_share_of_unreadable_answers():
    scores = {"fedavg": {"accuracy": 0.5, "unparsed": 0.125}, "fedadam": {"accuracy": 0.5, "unparsed": 0.0}}
    note = score_table({"scores": scores}).note
    assert "FedAvg 12.5" in note and "FedAdam" not in note


def test_the_terminal_table_fits_80_columns(run_folder):
    methods = [
        "zero-shot",
        "local",
        "scaffold+prompt+adaptive",
        "a-method-with-a-very-long-name-of-its-own" * 2,
    ]
    text = terminal_table(read_run(run_folder(methods=methods)).result)
    assert max(map(len, text.split("\n"))) <= 80
    assert "\x1b" not in text


@given(st.integers(0, 10**15))
def test_sizes_keep_three_digits_or_more_of_what_they_shorten(count):
    shown, unit = size(count).split("\u00a0")
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(shown.replace(",", "")) * factor == pytest.approx(
        count, abs=0.051 * factor if factor > 1 else 0
    )
    assert float(shown.replace(",", "")) < 1000 or unit == "TB"


@given(st.floats(0, 1))
def test_percentages_are_the_nearest_tenth(value):
    assert float(percent(value)) == pytest.approx(100 * value, abs=0.0501)


def test_the_client_table_has_a_column_for_each_client_and_their_mean_and_worst():
    result = {"scores": {"fedavg": {"clients": [0.5, None, 0.25]}, "linear": {"clients": None}}}
    table = client_table(result, ["Client 0", "Client 1", "2 Fluent"])
    assert table is not None
    assert table.columns == ("Method", "Client 0", "Client 1", "2 Fluent", "Mean", "Worst")
    assert table.rows == (("FedAvg", "50.0", MISSING, "25.0", "37.5", "25.0"),)
    assert client_table({"scores": {"fedavg": {}}}, ["Client 0"]) is None


def test_runs_that_differ_only_by_seed_are_averaged_and_others_are_not(run_folder):
    same = [read_run(run_folder(f"s{seed}", seed=seed)) for seed in (0, 1, 2)]
    other = read_run(run_folder("other", seed=0, experiment={"train": {"rounds": 9}}))
    together = group_by_experiment([same[0], other, *same[1:]])
    assert [len(group) for group in together] == [3, 1]
    table = seeds_table(together[0])
    place = [row[0] for row in table.rows].index("FedAvg")
    accuracies = [run.scores["fedavg"]["accuracy"] for run in same]
    assert table.rows[place][1] == mean_deviation(accuracies)
    assert "±" in table.rows[place][1] and "±" not in "".join(map("".join, seeds_table([other]).rows))
    titled = experiments_tables(together)
    assert [name.split(":")[0] for name, _ in titled] == ["Global test", "Own data"]
    for _, one in titled:
        assert len(one.rows) == 2 and "train.rounds = 9" in one.rows[1][0]


def test_mean_and_deviation_by_hand():
    # Mean of 0.6, 0.7, 0.8 is 0.7; squares of the distances add up to 0.02; divided by two, the root is 0.1.
    assert mean_deviation([0.6, 0.7, None, 0.8]) == "70.0 ± 10.0"
