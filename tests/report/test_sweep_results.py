"""Tables, charts and the page of a sweep: correct means and intervals, and nothing is left out silently."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.report.significance import T_975, Estimate, estimate
from fedloom.report.sweeps.estimate_texts import BEST
from fedloom.report.sweeps.sweep_charts import axis_chart, shape_of
from fedloom.report.sweeps.sweep_page import render_sweep, write_sweep_report
from fedloom.report.sweeps.sweep_results import (
    cells_by_setting,
    cells_by_value,
    headline,
    mean_over_seeds,
    paired_difference,
    read_sweep,
)
from fedloom.report.sweeps.sweep_tables import (
    gain_table,
    mean_table,
    part_table,
    published_table,
    sweep_findings,
)
from fedloom.report.sweeps.terminal_tables import terminal_tables
from fedloom.report.tables import MISSING, split_columns
from fedloom.system.errors import UserError

AXES = {"scenario": ["even", "gaps"], "train.lr": [0.1, 0.2], "seed": [0, 1, 2]}
Score = Callable[[Mapping[str, Any], str], float | None]


def make_sweep(
    folder: Path, axes: Mapping[str, list[Any]], methods: list[str], score: Score, **more: Any
) -> Path:
    """Write a sweep whose scores are a function of a cell's values and the method; None fails the cell."""
    cells: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = [{}]
    for axis, labels in axes.items():
        points = [{**point, axis: label} for point in points for label in labels]
    for place, values in enumerate(points):
        accuracies = {method: score(values, method) for method in methods}
        row = {
            "name": f"cell {place}",
            "values": values,
            "digest": f"{place:064x}",
            "folder": f"cells/{place}",
        }
        if None in accuracies.values():
            cells.append({**row, "state": "failed", "error": "a <reason>"})
            continue
        cells.append({**row, "state": "done"})
        scores = {
            method: {"accuracy": value, "auc": 0.9, "macro_f1": 0.5} for method, value in accuracies.items()
        }
        result = {"scores": scores, "main": methods[0], "seconds": {}, "bytes": {}}
        (folder / f"cells/{place}").mkdir(parents=True)
        (folder / f"cells/{place}/result.json").write_text(json.dumps(result))
    head = {"name": "made-up", "digest": "ab" * 32, "quick": False, "axes": dict(axes), "published": None}
    (folder / "sweep.json").write_text(json.dumps({**head, "cells": cells, **more}))
    return folder


LEVELS = {"zero-shot": 0.3, "local": 0.4, "fedavg": 0.6, "fedavg+prompt": 0.65, "fedadam": 0.5}


def level(values: Mapping[str, Any], method: str) -> float:
    return LEVELS[method] + 0.01 * values["seed"] - 0.1 * (values["scenario"] == "gaps")


def test_t_points_are_those_of_students_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom, point in enumerate(T_975, start=1):
        assert point == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=31))
def test_intervals_are_those_of_scipy(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    result = estimate(values)
    assert result is not None and result.half is not None
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert (result.mean, result.seeds) == (pytest.approx(fmean(values)), len(values))
    assert result.half == pytest.approx(half, rel=1e-3, abs=1e-12)


def test_an_interval_by_hand() -> None:
    """Of 1, 2, 3: s = 1, so the half-width is 4.303 / √3 = 2.484; one value has none, and no value nothing."""
    result = estimate([1.0, 2.0, 3.0])
    assert result == Estimate(2.0, pytest.approx(2.484, abs=1e-3), 3)
    assert estimate([0.7]) == Estimate(0.7, None, 1)
    assert estimate([]) is None


def test_cells_are_averaged_over_other_axes_first_and_then_over_seeds(tmp_path: Path) -> None:
    def score(values: Mapping[str, Any], method: str) -> float:
        return 0.1 * values["seed"] + values["train.lr"]

    sweep = read_sweep(make_sweep(tmp_path, AXES, ["fedavg"], score))
    assert list(cells_by_setting(sweep)) == ["even, 0.1", "even, 0.2", "gaps, 0.1", "gaps, 0.2"]
    assert list(cells_by_value(sweep, "scenario")) == ["even", "gaps"]
    result = mean_over_seeds(cells_by_value(sweep, "scenario")["even"], "fedavg", "accuracy")
    assert result is not None
    assert (result.mean, result.seeds) == (pytest.approx(0.25), 3)  # 12 cells are 3 seeds, not 12
    assert result.half == pytest.approx(T_975[1] * 0.1 / 3**0.5)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """Seeds differ by 10 points, but the methods by exactly 5 for each seed, so the interval has no width."""

    def score(values: Mapping[str, Any], method: str) -> float:
        return 0.1 * values["seed"] + (0.05 if method == "fedavg" else 0)

    sweep = read_sweep(make_sweep(tmp_path, {"seed": [0, 1, 2]}, ["local", "fedavg"], score))
    result = paired_difference(sweep.cells, "fedavg", "local", "accuracy")
    assert result is not None
    assert result.mean == pytest.approx(0.05)
    assert result.half == pytest.approx(0, abs=1e-12)
    assert result.seeds == 3


def test_the_best_federated_method_of_each_row_is_marked(tmp_path: Path) -> None:
    sweep = read_sweep(
        make_sweep(tmp_path, AXES, [*LEVELS, "centralized"], lambda v, m: level(v, m) if m in LEVELS else 0.9)
    )
    table = mean_table(sweep)
    assert table.rows
    for row in table.rows:
        marked = [column for column, cell in zip(table.columns, row, strict=True) if cell.endswith(BEST)]
        assert marked == ["FedAvg + prompt"]
        assert row[-1] == "3"


def test_gains_of_methods_and_parts_are_differences_of_the_means(tmp_path: Path) -> None:
    sweep = read_sweep(make_sweep(tmp_path, AXES, list(LEVELS), level))
    gains, added = gain_table(sweep), part_table(sweep)
    assert gains is not None and added is not None
    assert gains.columns[1:4] == ("FedAvg", "own", "clients") and gains.columns[4::3] == (
        "FedAvg + prompt",
        "FedAdam",
    )
    assert {row[1::3] for row in gains.rows} == {("+20.0†", "+25.0†", "+10.0†")}
    assert {row[1:] for row in added.rows} == {("+5.0†", MISSING, MISSING)}
    without = read_sweep(make_sweep(tmp_path / "b", {"seed": [0]}, ["fedavg", "fedadam"], lambda v, m: 0.5))
    assert gain_table(without) is None
    assert part_table(without) is None
    assert sweep_findings(without) == []


def test_a_failed_cell_is_named_and_its_seed_left_out(tmp_path: Path) -> None:
    def score(values: Mapping[str, Any], method: str) -> float | None:
        return None if (values["scenario"], values["seed"]) == ("gaps", 1) else level(values, method)

    axes = {"scenario": ["even", "gaps"], "seed": [0, 1, 2]}
    folder = make_sweep(tmp_path, axes, list(LEVELS), score)
    assert [row[-1] for row in mean_table(read_sweep(folder)).rows] == ["3", "2"]
    page = render_sweep(read_sweep(folder))
    assert "a &lt;reason&gt;" in page
    assert "5 of 6 done" in page
    result = write_sweep_report(folder)
    assert result == json.loads((folder / "result.json").read_text())
    assert [cell["state"] for cell in result["cells"]].count("failed") == 1


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    axes = {"scenario": ["even", "gaps"], "seed": [0]}
    sweep = read_sweep(make_sweep(tmp_path, axes, list(LEVELS), level))
    table = mean_table(sweep)
    assert "±" not in "".join(cell for row in table.rows for cell in row)
    assert "one seed, so no interval" in table.note
    sentences = sweep_findings(sweep)
    assert sentences and all(
        "with one seed there is no test of significance" in sentence for sentence in sentences
    )


def test_a_sweep_without_any_score_still_has_a_page(tmp_path: Path) -> None:
    sweep = read_sweep(make_sweep(tmp_path, {"seed": [0, 1]}, ["fedavg"], lambda values, method: None))
    assert "0 of 2 done" in render_sweep(sweep)
    assert axis_chart(sweep, None, 760) == ""


def test_published_figures_stand_beside_ours(tmp_path: Path) -> None:
    published = {
        "source": "a <paper>",
        "metric": "auc",
        "scores": {"gaps": {"fedavg": 76.82, "fedyogi": 70.0}, "even": {"fedavg": 71.0}},
    }
    sweep = read_sweep(make_sweep(tmp_path, AXES, list(LEVELS), level, published=published))
    table = published_table(sweep)
    assert table is not None
    assert table.columns == ("Scenario, lr", "FedAvg, ours", "published", "FedYogi, ours", "published")
    assert table.rows == (
        ("even", "90.0†", "71.0", MISSING, MISSING),
        ("gaps", "90.0†", "76.8", MISSING, "70.0"),
    )
    assert "a &lt;paper&gt;" in render_sweep(sweep)
    assert "validation" not in table.note


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            [0.1] * 12,
            "In our runs, a share of 0.1 of each client's training examples was held out for validation",
        ),
        (["published"] * 12, "In our runs, the owners' validation set was held out for validation"),
        ([None] + [0.1] * 11, "In some of our runs, a share of 0.1 of each client's"),
    ],
)
def test_the_note_on_published_figures_mentions_held_out_validation_examples(
    parts: list[Any], sentence: str, tmp_path: Path
) -> None:
    published = {"source": "a paper", "metric": "auc", "scores": {"gaps": {"fedavg": 76.82}}}
    make_sweep(tmp_path, AXES, list(LEVELS), level, published=published)
    for place, part in enumerate(parts):
        file = tmp_path / f"cells/{place}/result.json"
        result = json.loads(file.read_text())
        file.write_text(json.dumps(result if part is None else {**result, "validation": {"from": part}}))
    table = published_table(read_sweep(tmp_path))
    assert table is not None
    assert sentence in table.note


def test_the_line_of_a_cell_marks_a_method_that_was_picked_by_its_test_score() -> None:
    def line(**scores: float) -> str:
        return headline({"main": "fedavg", "scores": {one: {"accuracy": two} for one, two in scores.items()}})

    assert line(fedavg=0.6, fedadam=0.7) == "fedavg 60.0, highest on the test set: fedadam 70.0"
    assert line(local=0.8, fedavg=0.6, fedadam=0.5) == "local 80.0, fedavg 60.0"
    assert line(local=0.8) == "local 80.0"


@given(
    st.lists(
        st.sampled_from(["fedavg", "fedadam", "fedyogi+prompt+adaptive", "local", "zero-shot", "x" * 30]),
        min_size=1,
        unique=True,
    ),
    st.integers(1, 45),
)
def test_terminal_tables_fit_and_break_no_figure(methods: list[str], size: int) -> None:
    from fedloom.report.sweeps.sweep_results import CellRun, SweepRun

    label = "name " * (size // 5) + "x"
    cells = tuple(
        CellRun("c", {"how": label, "seed": seed}, "", "", "done", None, {"scores": {m: {"accuracy": 0.5 + seed / 10} for m in methods}})
        for seed in (0, 1)
    )  # fmt: skip
    sweep = SweepRun("s", "", False, {"how": [label], "seed": [0, 1]}, cells, None)
    text = terminal_tables(sweep)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("55.0±63.5") == len(methods)
    blocks = split_columns(mean_table(sweep), 80)
    assert [name for block in blocks for name in block.columns[1:]] == list(mean_table(sweep).columns[1:])


class Page(HTMLParser):
    """Collects what a page would load, and its links."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in {"script", "img", "link", "iframe", "object"} or "src" in attributes:
            self.loads.append(tag)
        if tag == "a":
            self.links.append(attributes["href"] or "")
        if tag not in {"meta", "line", "rect", "circle", "path", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, AXES, list(LEVELS), level)
    write_sweep_report(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert len([link for link in page.links if not link.startswith("data:")]) == 12
    assert all((folder / link).parent.is_dir() for link in page.links if not link.startswith("data:"))
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    for axis in ("scenario", "train.lr"):
        assert f"Accuracy by {axis}" in text
    again = render_sweep(read_sweep(folder))
    assert again == text


@pytest.mark.parametrize("blind", [False, True])
def test_a_sweep_of_language_models_mentions_text_only(tmp_path: Path, blind: bool) -> None:
    methods = ["zero-shot", "linear", "fedavg"]
    folder = make_sweep(tmp_path, {"seed": [0, 1]}, methods, lambda values, method: 0.5)
    for cell in sorted((folder / "cells").iterdir()):
        start = {"kind": "start", **({"images": False} if blind else {})}
        (cell / "record.jsonl").write_text(json.dumps(start) + "\n")
    text = render_sweep(read_sweep(folder))
    assert ("A language model reads text and answers" in text) is blind
    assert ("vision-language model" in text) is not blind
    assert ("classifier on word counts" in text) is blind
    assert ("edges, colors" in text) is not blind


@pytest.mark.parametrize("texts", [["words"], ["minilm"], ["words", "minilm"]])
def test_the_glossary_has_the_text_features_of_all_linear_baselines(tmp_path: Path, texts: list[str]) -> None:
    axes = {"evaluate.linear_text": texts, "seed": [0, 1]}
    folder = make_sweep(tmp_path, axes, ["linear", "fedavg"], lambda values, method: 0.5)
    for place, cell in enumerate(sorted((folder / "cells").iterdir())):
        experiment = {"evaluate": {"linear_text": texts[place // 2]}}
        (cell / "experiment.json").write_text(json.dumps(experiment))
    text = render_sweep(read_sweep(folder))
    assert ("edges, colors and word counts" in text) is ("words" in texts)
    assert ("sentence embeddings of the text" in text) is ("minilm" in texts)
    assert text.count("Federated averaging: clients train") == 1


def test_a_chart_marks_every_method_at_every_value(tmp_path: Path) -> None:
    sweep = read_sweep(make_sweep(tmp_path, AXES, list(LEVELS), level))
    for width in (760, 400):
        drawn = str(axis_chart(sweep, "scenario", width))
        assert drawn.count(", n = 3</title>") == 2 * len(LEVELS)
        assert drawn.count('class="whisker"') == 2 * len(LEVELS)


def test_methods_of_one_color_differ_in_shape() -> None:
    methods = [f"fed{place}" for place in range(21)]
    for place in range(7):
        assert len({shape_of(methods[place + more], methods) for more in (0, 7, 14)}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a sweep folder"),
        ("{", "not JSON"),
        ('{"axes": {}, "cells": 1}', '"cells" is missing or is not a list'),
        ('{"axes": {}, "cells": [{"state": 1}]}', '"state" is missing or is not text'),
        ('{"axes": {"seed": 3}, "cells": []}', '"seed" is missing or is not a list'),
    ],
)
def test_a_broken_sweep_gives_a_clear_message(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_sweep(tmp_path)


def test_a_sweep_without_accuracy_has_another_main_score(tmp_path: Path) -> None:
    def swap(file: Path) -> None:
        value = json.loads(file.read_text())
        for scores in value["scores"].values():
            scores |= {"cider": 1 + scores.pop("accuracy"), "tasks": {"caption": {"cider": 1.25}}}
        file.write_text(json.dumps(value))

    folder = make_sweep(tmp_path, {"seed": [0, 1]}, ["local", "fedavg"], lambda values, method: 0.25)
    for file in folder.glob("cells/*/result.json"):
        swap(file)
    sweep = read_sweep(folder)
    assert sweep.metrics == ["cider", "auc", "macro_f1"]
    assert mean_table(sweep).rows == (("made-up", "125.0†", "125.0†", "2"),)
    assert "CIDEr in percent" in mean_table(sweep).note
    assert write_sweep_report(folder)["metric"] == "cider"


def test_a_cell_whose_result_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, {"seed": [0, 1]}, ["fedavg"], lambda values, method: 0.5)
    file = folder / "cells/1/result.json"
    for text in ('{"scores": {"fedavg": 3}}', '{"scores": []}', "{", None):
        file.unlink() if text is None else file.write_text(text)
        with pytest.raises(UserError, match=re.escape(str(file))):
            read_sweep(folder)


def test_a_sweep_counts_clients_that_are_worse_off_beside_the_score_of_the_shared_model(
    tmp_path: Path,
) -> None:
    """FedAvg is 20 points ahead on the global test set, and each of three clients is better off alone."""
    folder = make_sweep(
        tmp_path, {"how": ["a", "b"], "seed": [0, 1, 2]}, ["local", "fedavg"], lambda v, m: 0.5
    )
    for place, file in enumerate(sorted(folder.glob("cells/*/result.json"))):
        value = json.loads(file.read_text())
        for method, (score, own) in {"local": (0.5, 0.9), "fedavg": (0.7 + place / 100, 0.6)}.items():
            scores = {"accuracy": score, "tasks": {"choice": {"accuracy": score}}}
            value["scores"][method] = {**scores, "client_tasks": [{"choice": own}] * 3}
        file.write_text(json.dumps(value))
    result, sweep = write_sweep_report(folder), read_sweep(folder)
    (sentence,) = sweep_findings(sweep)
    assert "FedAvg scores higher than the clients' own models do on average in 2 of 2 settings" in sentence
    assert (
        "0 of 18 clients over all cells are better off with FedAvg" in sentence and "18 worse off" in sentence
    )
    assert "60.0 instead of 90.0 percent" in sentence
    gains = gain_table(sweep)
    assert gains is not None and [row[2:] for row in gains.rows] == [("−30.0†", "0 / 0 / 9")] * 2
    for text in (terminal_tables(sweep), (folder / "report.html").read_text(encoding="utf-8")):
        assert "0 of 18 clients" in " ".join(text.split())
    assert [row["clients"]["fedavg"]["worse"] for row in result["rows"]] == [9, 9]
    methods = [one for one in result["comparisons"] if one["factor"] == "method" and one["by"] is None]
    local = {one["on"]: one for one in methods}
    assert local["global test"]["mean"] < 0 < local["own data"]["mean"]
    assert local["own data"]["clients"] == {"better": 18, "same": 0, "worse": 0, "unknown": 0}
    axis = [one for one in result["comparisons"] if one["factor"] == "how"]
    assert [one["clients"] for one in axis] == [None] * len(
        axis
    )  # clients of one setting need not be those of another


def test_every_table_can_be_saved(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, AXES, ["zero-shot", "local", "fedavg", "fedavg+prompt"], level)
    page = render_sweep(read_sweep(folder))
    tables = page.count("<table")
    assert tables > 3
    assert page.count('href="data:text/csv') == page.count('href="data:text/x-tex') == tables


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_terminal_shows_three_findings_and_the_page_all(tmp_path: Path, parts: int) -> None:
    methods = ["local", "fedavg", *[f"fedavg+part{number}" for number in range(1, parts + 1)]]
    folder = make_sweep(tmp_path, {"seed": [0, 1]}, methods, lambda _, method: 0.1 * methods.index(method))
    sweep = read_sweep(folder)
    findings = [" ".join(sentence.split()) for sentence in sweep_findings(sweep)]
    text, page = " ".join(terminal_tables(sweep).split()), html.unescape(render_sweep(sweep))
    assert len(findings) == 1 + parts and all(sentence in " ".join(page.split()) for sentence in findings[1:])
    assert [sentence in text for sentence in findings] == [place < 3 for place in range(1 + parts)]
    assert ("more comparison" in text) == (parts > 2)
