"""The validation set in a report: scores by round, as a chart and as a table."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from fedloom.report.run_page import write_report
from fedloom.report.run_results import read_run
from fedloom.report.tables import label
from fedloom.report.validation_section import curve_table, validation_chart, validation_curves

RunFolder = Callable[..., Path]
METHODS = ("zero-shot", "local", "fedavg", "fedadam", "centralized")


def rings(drawn: str) -> int:
    return sum(element.get("class") == "ring" for element in ElementTree.fromstring(drawn).iter())


def test_curves_are_means_over_models_weighted_by_their_numbers_of_examples(run_folder: RunFolder) -> None:
    folder = run_folder(methods=["local"], names=[0, 1], rounds=2, validation="last")
    file = folder / "record.jsonl"
    kept = [line for line in file.read_text().splitlines() if json.loads(line)["kind"] != "validation"]
    scores = [
        (0, 1, 0.5, 30),
        (1, 1, 0.9, 10),
        (0, 2, 0.1, 30),
        (1, 2, 1.0, 10),
        (0, 2, 0.2, 30),
    ]  # the last again
    kept += [
        json.dumps(
            {"kind": "validation", "method": "local", "client": client, "round": done, "score": score}
            | {"examples": count}
        )
        for client, done, score, count in scores
    ]
    file.write_text("\n".join(kept))
    run = read_run(folder)
    curves = validation_curves(run)
    assert [(done, round(score, 9)) for done, score in curves["local"]] == [(1, 0.6), (2, 0.4)]
    table = curve_table(run)
    assert table is not None
    assert table.rows == (("1", "60.0"), ("2", "40.0"))


def test_each_method_with_rounds_has_a_curve_and_each_other_one_a_level(run_folder: RunFolder) -> None:
    run = read_run(run_folder(methods=METHODS, validation="last"))
    assert list(validation_curves(run)) == [method for method in METHODS if method != "zero-shot"]
    drawn = validation_chart(run, 760)
    for method in METHODS:
        assert label(method).replace(" (mean)", "") in drawn
    assert "Accuracy on the validation set after each round" in drawn


def test_a_ring_marks_the_chosen_round_of_each_method_with_one_model(run_folder: RunFolder) -> None:
    assert rings(validation_chart(read_run(run_folder("last", methods=METHODS, validation="last")), 760)) == 0
    run = read_run(run_folder("best", methods=METHODS, validation="best", seed=3))
    alone = run.result["validation"]["methods"]["local"]["rounds"]
    assert len(set(alone)) > 1  # clients chose rounds of their own
    assert rings(validation_chart(run, 760)) == len(("fedavg", "fedadam", "centralized"))


def test_one_round_is_a_table_and_no_chart(run_folder: RunFolder, tmp_path: Path) -> None:
    folder = run_folder(rounds=1, validation="last")
    assert validation_chart(read_run(folder), 760) == ""
    write_report([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Final validation scores" in page
    assert "Validation score after each round" not in page


def test_the_page_shows_the_chart_in_two_widths_and_its_table(run_folder: RunFolder, tmp_path: Path) -> None:
    for chosen, has_ring in (("best", True), ("last", False)):
        write_report([run_folder(chosen, validation=chosen)], tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert page.count('aria-label="Accuracy on the validation set after each round"') == 2
        assert "Validation scores by round" in page
        assert bool(re.search("A ring marks the chosen round", page)) is has_ring


def test_missing_validation_figures_do_not_stop_the_report(run_folder: RunFolder, tmp_path: Path) -> None:
    folder = run_folder(validation="best")
    result = json.loads((folder / "result.json").read_text())
    for methods in (None, [], {"fedavg": None}, {"fedavg": {"rounds": None, "score": "high"}}):
        result["validation"]["methods"] = methods
        (folder / "result.json").write_text(json.dumps(result))
        write_report([folder], tmp_path / "page.html")
        assert "NaN" not in (tmp_path / "page.html").read_text()
