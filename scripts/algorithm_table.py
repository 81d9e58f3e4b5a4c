"""Print the cost of each algorithm and each part: lines of code, and bytes per client and round of a finished run.

    python scripts/algorithm_table.py runs/algorithms-… runs/algorithms-sgd-…

Lines are those of the functions of a page, without docstrings, comments, imports and entries. Bytes are those of the run's log,
divided by the number of clients that took part.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from importlib import resources
from pathlib import Path

from fedloom.algorithms import PLACES


def lines(module: str) -> int:
    """Return the lines of code of the functions of a page."""
    text = resources.files("fedloom.algorithms").joinpath(f"{module}.py").read_text(encoding="utf-8")
    numbers: set[int] = set()
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        code = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        for one in ast.walk(node):
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                code -= set(range(one.lineno, (one.end_lineno or one.lineno) + 1))
        numbers |= code
    rows = text.splitlines()
    return sum(1 for k in numbers if rows[k - 1].strip() and not rows[k - 1].strip().startswith("#"))


def traffic(folder: Path) -> dict[str, tuple[float, float]]:
    """Return the mean bytes down and up per client and round of each method of a run."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for line in (folder / "record.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("kind") == "round" and row.get("cohort"):
            total = sums[row["method"]]
            for k, value in enumerate((row["bytes_down"], row["bytes_up"], row["cohort"])):
                total[k] += value
    return {method: (down / clients, up / clients) for method, (down, up, clients) in sums.items()}


def main(folders: list[str]) -> None:
    """Print both tables as Markdown."""
    print("| name | kind | lines |\n| --- | --- | ---: |")
    for name, place in PLACES.items():
        print(f"| `{name}` | {place.kind} | {lines(place.module)} |")
    print("\n| method | bytes down | bytes up |\n| --- | ---: | ---: |")
    for folder in folders:
        for method, (down, up) in traffic(Path(folder)).items():
            print(f"| `{method}` | {down:,.0f} | {up:,.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
