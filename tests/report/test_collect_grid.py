"""`scripts/collect_grid.py`: the pieces of a grid, collected in any calls, are the grid collected at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from collect_grid import collect, main
from fedloom.run_log import RunLog
from fedloom.system.manifest import Manifest, add_to_manifest, files_in, write_manifest

from .conftest import make_run

CELLS = ("even_seed-0", "even_seed-1", "gaps_seed-0", "gaps_seed-1")
METHODS = ("local", "fedavg")


def cell_of(name: str, digest: str, state: str = "done") -> dict[str, Any]:
    scenario, _, seed = name.partition("_seed-")
    values = {"scenario": scenario, "seed": int(seed)}
    return {"name": name, "values": values, "digest": digest, "folder": f"cells/{name}", "state": state}


def sweep(
    folder: Path, names: Sequence[str], digest: str = "ab" * 32, unfinished: Sequence[str] = ()
) -> Path:
    """Write a sweep with some cells of the grid; a cell has the same result in every sweep that has it."""
    cells = [cell_of(name, digest, "begun" if name in unfinished else "done") for name in names]
    for cell in cells:
        if cell["state"] == "done":
            run = make_run(folder / cell["folder"], seed=CELLS.index(cell["name"]), methods=METHODS, rounds=2)
            lines = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
            (run / "record.jsonl").unlink()
            log = RunLog(run / "record.jsonl")
            for line in lines:  # with checksums, which a run with a manifest has
                log.append(line.pop("kind"), line)
            (run / "machine.json").write_text(json.dumps({"machine": {"processor": "a processor"}}))
            (run / "report.html").touch()
            write_manifest(run, Manifest("0.2.0"))
            add_to_manifest(run, files_in(run))
    axes = {"scenario": ["even", "gaps"], "seed": [0, 1]}
    head = {"name": "made-up", "digest": digest, "quick": False, "axes": axes, "published": None}
    (folder / "sweep.json").write_text(json.dumps({**head, "cells": cells}))
    return folder


def collect_into(file: Path, folders: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(sys, "argv", ["collect_grid.py", str(file), *map(str, folders)])
    main()
    return file.read_bytes()


def test_pieces_in_two_calls_are_the_grid_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [sweep(tmp_path / "b", CELLS[2:]), sweep(tmp_path / "a", CELLS[:2])]
    _, twice = (collect_into(tmp_path / "pieces.json", [piece], monkeypatch) for piece in pieces)
    once = collect_into(tmp_path / "both.json", pieces, monkeypatch)
    whole = collect_into(tmp_path / "whole.json", [sweep(tmp_path / "all", CELLS)], monkeypatch)
    assert twice == once == whole
    assert collect_into(tmp_path / "whole.json", pieces, monkeypatch) == whole, "what is there already stays"
    assert list(json.loads(whole)["cells"]) == list(CELLS)


def test_what_is_kept_of_a_cell_is_what_its_run_says(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", CELLS[:1])
    value = collect(tmp_path / "new.json", [folder])
    run = folder / "cells" / CELLS[0]
    scores = json.loads((run / "result.json").read_text())["scores"]
    cell = value["cells"][CELLS[0]]
    assert cell["axes"] == {"scenario": "even", "seed": 0} and cell["processor"] == "a processor"
    assert cell["examples"] == [one["size"] for one in json.loads((run / "plan.json").read_text())["clients"]]
    assert set(cell["methods"]) == set(value["labels"]) == set(METHODS)
    for method, kept in cell["methods"].items():
        assert kept["accuracy"] == pytest.approx(100 * scores[method]["accuracy"], abs=0.005)
        assert kept["slices"]["text"]["auc"] == pytest.approx(
            100 * scores[method]["slices"]["text"]["auc"], abs=0.005
        )
        assert kept["clients"] == pytest.approx([100 * one for one in scores[method]["clients"]], abs=0.005)


def test_a_cell_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "grid.json"
    before = collect_into(file, [sweep(tmp_path / "one", CELLS)], monkeypatch)
    other = sweep(tmp_path / "other", CELLS[1:2], digest="cd" * 32)
    with pytest.raises(SystemExit) as raised:
        collect_into(file, [other], monkeypatch)
    assert str(raised.value) == f"{file} holds even_seed-1 with other settings than {other}"
    assert file.read_bytes() == before


def test_a_cell_that_is_not_finished_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "sweep", CELLS, unfinished=[CELLS[2]])
    value = collect(tmp_path / "grid.json", [folder])
    assert list(value["cells"]) == [name for name in CELLS if name != CELLS[2]]
    assert capsys.readouterr().err == f"{folder}: {CELLS[2]} is not finished (begun)\n"
