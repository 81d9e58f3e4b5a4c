"""Rounds that were not applied and figures that were not finite, on the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fedloom.report.run_page import write_report

WHY = "the aggregate was not applied, since it makes the server's control not finite"


def test_a_round_that_was_not_applied_is_among_the_unused_updates(
    run_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = run_folder()
    file = folder / "record.jsonl"
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round" and line["method"] == "fedavg"]
    rounds[0] |= {"loss": None, "diagnostics": {"delta_norm": None}, "not_applied": WHY}
    for line in rounds:
        line["clients"] = [{**report, "loss": None, "norm": None} for report in line["clients"]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report([folder], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("the aggregate was not applied") == 1
    assert "NaN" not in text
