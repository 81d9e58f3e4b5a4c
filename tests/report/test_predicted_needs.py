"""What was predicted beside what was measured, by hand."""

from __future__ import annotations

import json

import pytest

from fedloom.report.predicted_needs import failed_prediction, predicted_table
from fedloom.report.run_page import render
from fedloom.report.run_results import read_run

PLAN = {
    "kind": "plan",
    "peak_bytes": 2_000_000_000,
    "bytes": {"fedavg": {"up": 3_000_000, "down": 1_000_000}},
    "seconds": {"features": 2.0, "training": 10.0, "evaluation": 3.0},
}


def run_with(run_folder, *lines, starts: int = 1):
    folder = run_folder(methods=["zero-shot", "fedavg"], rounds=2)
    file = folder / "record.jsonl"
    kept = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kept = [line for line in kept if line["kind"] != "end"]
    first = [line for line in kept if line["kind"] == "start"] * (starts - 1)
    written = [*kept[:1], *lines, *kept[1:], *first]
    written.append({"kind": "end", "seconds": 40.0, "peak_bytes": 2_500_000_000})
    file.write_text("".join(json.dumps(line) + "\n" for line in written), encoding="utf-8")
    return read_run(folder)


def test_predicted_and_measured_by_hand(run_folder):
    """Two rounds of 3.2 s; evaluations of 0.5 s: two and three slices of FedAvg, and three of zero-shot."""
    run = run_with(run_folder, PLAN, {"kind": "vision", "seconds": 6.0})
    table = predicted_table(run)
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Peak memory"] == ("2.0\u00a0GB", "2.5\u00a0GB")
    assert rows["Features of images, s"] == ("2.0", "6.0")
    assert rows["Training, s"] == ("10", "6.4")
    asked = sum(line["seconds"] for line in run.evaluations)
    assert float(rows["Evaluation, s"][1]) == pytest.approx(asked, abs=0.05)
    assert rows["Wall time, s"] == ("15", "40")
    sent = run.result["bytes"]["fedavg"]
    assert rows["Messages"][0] == "4.0\u00a0MB"
    assert rows["Messages"][1].startswith(f"{(sent['up'] + sent['down']) / 1e6:.1f}")
    assert "Predicted before the run, and measured" in render([run])


def test_a_resumed_run_says_that_its_last_part_was_measured(run_folder):
    table = predicted_table(run_with(run_folder, PLAN, starts=2))
    assert table is not None and "resumed" in table.note


def test_a_prediction_that_failed_says_why(run_folder):
    run = run_with(run_folder, {"kind": "plan", "failed": "no such <device>"})
    assert predicted_table(run) is None
    assert failed_prediction(run) == "What the run would need could not be predicted: no such <device>."
    assert "no such &lt;device&gt;" in render([run])


def test_a_run_without_a_prediction_says_nothing(run_folder):
    run = run_with(run_folder)
    assert predicted_table(run) is None and failed_prediction(run) == ""
