"""Collect the scores of sweeps into one JSON file, such as those in docs/results; a grid may be run in pieces, each a sweep of its own.

Run it with `python scripts/collect_grid.py docs/results/NAME.json runs/piece-1 runs/piece-2`. Cells that the file already holds stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedloom.report.sweeps.sweep_results import CellRun, read_sweep
from fedloom.report.tables import label
from fedloom.run_log import read_lines
from fedloom.runs.finished_run import load_run
from fedloom.runs.run_folder import MACHINE, RECORD
from fedloom.system.errors import UserError
from fedloom.system.json_files import read_json, write_atomic

NO_SCORES = ("tasks", "slices", "clients", "client_tasks", "shared", "own_shares", "agreement")
UNCERTAINTY = ("independent_questions", "agreement")
"""What a result says besides scores that intervals and p-values of clients are computed from; see `fedloom.report.client_verdicts`."""


def percent(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers among scores in percent, and those of slices, clients and the shared model below their names."""
    numbers = {
        name: round(100 * value, 3)
        for name, value in scores.items()
        if name not in NO_SCORES and isinstance(value, float) and not name.endswith("_published")
    }
    slices = {name: percent(part) for name, part in scores.get("slices", {}).items()}
    tasks = {name: percent(part) for name, part in scores.get("tasks", {}).items()}
    shared = percent(scores["shared"]) if scores.get("shared") else {}
    clients = [None if one is None else round(100 * one, 3) for one in scores.get("clients", [])]
    parts = {"slices": slices if len(slices) > 1 else {}, "tasks": tasks if len(tasks) > 1 else {}}
    parts |= {"clients": clients, "shared": shared}
    return numbers | {name: part for name, part in parts.items() if part}


def rounded(value: Any) -> Any:
    """Return a JSON value with its numbers rounded to four digits."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: rounded(one) for key, one in value.items()}
        case list():
            return [rounded(one) for one in value]
        case _:
            return value


def collected(folder: Path, cell: CellRun) -> dict[str, Any]:
    """Return what the file keeps of a cell that is done."""
    place = folder / cell.folder
    start = next(line for _, line in read_lines(place / RECORD, checked=False) if line["kind"] == "start")
    return {
        "axes": dict(cell.values),
        "digest": cell.digest,
        "version": start["version"],
        "started": start["started"],
        "processor": read_json(place / MACHINE)["machine"]["processor"],
        "examples": [client.examples for client in load_run(place).clients],
        "methods": {method: percent(scores) for method, scores in cell.scores.items()},
    } | {key: rounded(cell.result[key]) for key in UNCERTAINTY if cell.result and key in cell.result}


def collect(file: Path, folders: list[Path]) -> dict[str, Any]:
    """Return the file's content with the cells of sweeps added.

    Raises:
        UserError: A cell is there already with other settings.
    """
    value: dict[str, Any] = (
        read_json(file) if file.is_file() else {"unit": "percent", "labels": {}, "axes": {}, "cells": {}}
    )
    for folder in folders:
        sweep = read_sweep(folder)
        value["recipe"] = sweep.name
        for axis, names in sweep.axes.items():
            value["axes"][axis] = list(dict.fromkeys([*value["axes"].get(axis, ()), *names]))
        for cell in sweep.cells:
            if cell.result is None:
                print(f"{folder}: {cell.name} is not finished ({cell.state})", file=sys.stderr)
                continue
            new = collected(folder, cell)
            if (old := value["cells"].get(cell.name)) is not None and old["digest"] != new["digest"]:
                raise UserError(f"{file} holds {cell.name} with other settings than {folder}")
            value["cells"].setdefault(cell.name, new)
            value["labels"] |= {method: label(method) for method in new["methods"]}
    value["cells"] = dict(sorted(value["cells"].items()))
    return value


def main() -> None:
    file, *folders = (Path(word) for word in sys.argv[1:])
    try:
        value = collect(file, folders)
    except UserError as error:
        raise SystemExit(str(error)) from None
    cells = ",\n".join(f"{json.dumps(name)}: {json.dumps(cell)}" for name, cell in value.pop("cells").items())
    head = json.dumps(value, indent=0)[:-2]
    write_atomic(file, f'{head},\n"cells": {{\n{cells}\n}}}}\n'.encode())


if __name__ == "__main__":
    main()
