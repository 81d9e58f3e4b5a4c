"""A folder whose files were damaged or rewritten gives one message with its file, and never ends a command about others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.e2e.test_runs import experiment

from fedloom.runs.follow import progress_of
from fedloom.runs.leaderboard_results import read_results
from fedloom.runs.list_runs import list_runs
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digest
from fedloom.system.manifest import read_manifest, write_manifest
from fedloom.system.progress import Progress

CELL = {"name": "a", "state": "begun", "folder": "cells/a"}
CELLS = {
    "a number": 1,
    "null": None,
    "a list": [],
    "no keys": {},
    **{f"no {key}": {name: text for name, text in CELL.items() if name != key} for key in CELL},
    **{f"{key} that is a number": {**CELL, key: 3} for key in CELL},
}


@pytest.mark.parametrize("case", CELLS)
def test_a_damaged_cell_of_a_sweep_is_named(case: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": [CELL, CELLS[case]]}))
    with pytest.raises(UserError, match=r"sweep\.json: "):
        progress_of(tmp_path)
    (listed,) = list_runs(tmp_path)
    assert listed.state == "interrupted" or "sweep.json: " in listed.figure


@pytest.mark.parametrize("folder", [".", "cells/../"])
def test_a_sweep_that_names_itself_as_its_cell_is_shown_once(folder: str, tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": [{**CELL, "folder": folder}]}))
    assert progress_of(tmp_path)["run"] is None


@pytest.mark.parametrize("number", ["1e400", "null", '"x"', "[]", "{}", "-1e400"])
def test_a_line_of_a_log_with_a_number_that_is_none_is_named(number: str, tmp_path: Path) -> None:
    line = f'{{"kind": "round", "method": "fedavg", "round": {number}}}\n'
    (tmp_path / "record.jsonl").write_text(line)
    with pytest.raises(UserError, match=r"record\.jsonl, line 1, "):
        progress_of(tmp_path)


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_experiment(experiment(tiny_model, methods=["zero-shot"]), folder, Progress(None))
    return folder


@pytest.mark.parametrize(
    "scores", [None, 3, "x", [], {"zero-shot": None}, {"zero-shot": "x"}, {"zero-shot": [1]}]
)
def test_a_run_with_other_scores_than_a_run_writes_is_left_out_of_a_leaderboard(
    scores: object, finished: Path, tmp_path: Path
) -> None:
    for name in ("good", "odd"):
        shutil.copytree(finished, tmp_path / name)
    result = tmp_path / "odd" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "scores": scores}))
    manifest = read_manifest(result.parent)
    assert manifest is not None
    files = {**manifest.files, "result.json": file_digest(result)}
    write_manifest(result.parent, replace(manifest, files=files))
    results, ((folder, reason),) = read_results([tmp_path])
    assert [one.method for one in results] == ["zero-shot"]
    assert folder == result.parent
    assert "result.json: " in reason
