"""The notebooks in docs/notebooks are whole files of their format, without output, and their cells run in order."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[str]:
    """Return the sources of the cells of one kind, in order."""
    value = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in value["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_one_of_version_4_5_without_output(notebook: Path) -> None:
    value = json.loads(notebook.read_text(encoding="utf-8"))
    assert (value["nbformat"], value["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in value["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", one) for one in ids)
    for cell in value["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            keys |= {"outputs", "execution_count"}
        assert cell.keys() == keys


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(notebook: Path) -> None:
    found = [one for text in cells(notebook, "markdown") for one in re.findall(r"\]\(([^)#]+)\)", text)]
    assert found
    for target in found:
        assert (notebook.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run_in_order(notebook: Path, tmp_path: Path) -> None:
    """In a process of its own, as in a kernel, from one namespace; every cell of code is run."""
    code = cells(notebook, "code")
    (tmp_path / "cells.json").write_text(json.dumps(code))
    runner = (
        "import json\n"
        "names = {'__name__': '__main__'}\n"
        "for number, cell in enumerate(json.load(open('cells.json'))):\n"
        "    exec(compile(cell, f'cell {number}', 'exec'), names)\n"
        "print('all', number + 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", runner],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"all {len(code)}"
