"""The docs site is whole, current, and built without a network; what is installed from a wheel works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

import draw_result
import make_config_reference
import stage_docs
from fedloom.config.allow_schema import Allow
from fedloom.config.validation_errors import key_descriptions, schema_of
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.recipes import recipes
from fedloom.version import __version__

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "mkdocs.yml"


def leaves(nav: Any) -> Iterator[str]:
    """Yield the pages of a navigation in order."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav if isinstance(nav, list) else nav.values():
            yield from leaves(entry)


def test_every_page_has_one_place_in_the_navigation() -> None:
    listed = list(leaves(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["nav"]))
    pages = [
        str(stage_docs.place_of(page)) for page in stage_docs.pages() if page.suffix in (".md", ".ipynb")
    ]
    assert sorted(listed) == sorted(pages), "add the page to nav in mkdocs.yml"


def test_notebooks_become_pages() -> None:
    cells = [("markdown", ["# One\n", "two"]), ("code", ["x = 1\n", "x"]), ("markdown", ["three"])]
    notebook = {"cells": [{"cell_type": kind, "source": source} for kind, source in cells]}
    page = stage_docs.notebook_page(json.dumps(notebook), PurePosixPath("docs/notebooks/one.ipynb"))
    head, note, *rest = page.split("\n\n")
    assert head == "# One\ntwo" and "docs/notebooks/one.ipynb" in note
    assert "\n\n".join(rest) == "```python\nx = 1\nx\n```\n\nthree\n"
    assert stage_docs.place_of(PurePosixPath("docs/notebooks/one.ipynb")) == PurePosixPath("notebooks/one.md")


def test_every_decision_is_listed() -> None:
    text = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs/decisions").glob("0*.md"):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert f"* [{title}]({page.name})" in text


def test_links_that_leave_docs_are_rewritten() -> None:
    def rewritten(text: str, page: str) -> str:
        return stage_docs.rewrite(text, PurePosixPath(page))

    assert rewritten("[a](../../CONTRIBUTING.md#rules)", "docs/decisions/0001-shape.md") == (
        "[a](../contributing.md#rules)"
    )
    assert rewritten("[a](docs/runs.md) [b](docs/decisions)", "CONTRIBUTING.md") == (
        "[a](runs.md) [b](decisions/README.md)"
    )
    assert rewritten("[a](https://x.org/y) [b](#c) [d](sites.md)", "docs/runs.md") == (
        "[a](https://x.org/y) [b](#c) [d](sites.md)"
    )
    assert rewritten("```bash notest (why)\n", "docs/runs.md") == "```bash\n"
    with pytest.raises(ValueError, match=r"pyproject\.toml is not on the site"):
        rewritten("[a](../pyproject.toml)", "docs/runs.md")


def test_links_lead_somewhere_on_the_site(tmp_path: Path) -> None:
    stage_docs.stage(tmp_path)
    for page in tmp_path.rglob("*.md"):
        for _, target, _ in stage_docs.LINK.findall(page.read_text(encoding="utf-8")):
            if not re.match("[a-z]+:", target):
                assert (page.parent / target).is_file(), (page.name, target)


def test_the_site_is_built_offline_without_warnings(tmp_path: Path) -> None:
    """In strict mode any warning ends the build; no page loads anything from another host."""
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    stage_docs.stage(tmp_path / "build/docs")
    shutil.copyfile(CONFIG, tmp_path / "mkdocs.yml")
    stage_docs.stage_sources(tmp_path / "build/src")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "build/site"
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"(https?:[^\"]*)", page.read_text()
        )
        assert loaded == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", sheet.read_text()), sheet.name
    assert "check_algorithm" in (site / "reference/api-algorithms.html").read_text()
    python = (site / "reference/api.html").read_text()
    assert "leaderboard" in python and python.count('id="fedloom.experiment.experiment.Experiment"') == 1
    assert '<span class="gp">&gt;&gt;&gt; </span>' in python  # doctests are code, not quotations
    assert (site / "figures/round.svg").exists()


def test_the_reference_of_keys_is_current() -> None:
    found = make_config_reference.PAGE.read_text(encoding="utf-8")
    assert found == make_config_reference.reference(), "run python scripts/make_config_reference.py"


def test_the_reference_has_a_row_for_every_key() -> None:
    text = make_config_reference.reference()
    for model in (Experiment, Allow):
        for path, about in key_descriptions(schema_of(model)):
            if not make_config_reference.is_section(model, path):
                (row,) = (
                    line for line in text.splitlines() if line.startswith(f"| `{'.'.join(map(str, path))}` |")
                )
                cells = re.split(r" (?<!\\)\| ", row.strip("| "))
                assert len(cells) == len(make_config_reference.COLUMNS)
                assert all(cells)
                assert cells[-1].replace(r"\|", "|") == about


def test_a_figure_needs_nothing_from_elsewhere() -> None:
    for figure in (ROOT / "docs/figures").glob("*.svg"):
        text = figure.read_text(encoding="utf-8")
        assert "<title" in text and "<desc" in text  # what screen readers read
        assert not re.search(r"(?:href|src)=\"http|@import|<script", text)


def test_bars_are_as_long_as_accuracies_are_high() -> None:
    slices = {"both": {"accuracy": 1.0}, "image": {"accuracy": 0.25}, "text": {"accuracy": 0.5}}
    rows = draw_result.accuracies({"scores": {"fedavg": {"slices": slices}, "zero-shot": {"slices": slices}}})
    assert rows["FedAvg"] == {"both": 100.0, "image": 25.0, "text": 50.0}
    bars = re.findall(rf'width="([\d.]+)" height="{draw_result.BAR}"', draw_result.draw(rows))
    assert [float(bar) / draw_result.WIDE for bar in bars] == [1.0, 0.25, 0.5] * 2


def test_the_picture_of_the_quickstart_has_the_numbers_of_the_readme() -> None:
    """After README's table is measured again, draw it with scripts/draw_result.py."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| method | image and keywords |")[2].partition("\n\n")[0]
    measured = [re.findall(r"\| ([\d.]+)(?= \|)", row)[:3] for row in table.splitlines()[2:]]
    figure = (ROOT / "docs/figures/quickstart.svg").read_text(encoding="utf-8")
    drawn = re.findall(
        r"both ([\d.]+), image only ([\d.]+), text only ([\d.]+)", figure.replace("image and text", "both")
    )
    assert len(measured) > 3
    assert list(map(tuple, measured)) == drawn


def test_the_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {__version__} ({citation['date-released']})" in changes


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    """Build it, install it alone beside the packages of this environment, and run it in another folder."""
    pytest.importorskip("hatchling", reason="the extra `dev` is not installed")

    def call(*command: str | Path, cwd: Path = tmp_path) -> str:
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", cwd=ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    place = tmp_path / "env"
    venv.create(place, with_pip=False)
    python = place / "bin/python"
    (own,) = place.glob("lib/python*/site-packages")
    # A .pth file adds these folders without reading theirs, so an editable installation of fedloom is not seen.
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (own / "others.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python]
    call(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    where = call(python, "-c", "import fedloom; print(fedloom.__file__)")
    assert Path(where.strip()).is_relative_to(own)
    fedloom = place / "bin/fedloom"
    assert __version__ in call(fedloom, "--version")
    listed = call(fedloom, "list", "recipes")
    assert all(name in listed for name in recipes())
    call(fedloom, "run", "smoke", "--out", "run")
    for name in ("result.json", "report.html", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).exists()
    call(fedloom, "verify", "run")
