"""What the documents say works: Python blocks run, commands parse, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fedloom
from fedloom.cli import app
from fedloom.messages import Update
from fedloom.params import Layout, Params

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(fedloom.__path__, "fedloom.")
    if "__main__" not in module.name
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def public(name: str) -> list[tuple[str, object]]:
    module = importlib.import_module(name)
    found = [(name, module)]
    for key, value in vars(module).items():
        if not key.startswith("_") and getattr(value, "__module__", None) == name and callable(value):
            found.append((f"{name}.{key}", value))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented(name: str) -> None:
    assert [key for key, value in public(name) if not (value.__doc__ or "").strip()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:src|tests|docs|scripts|benchmarks)/[^`\s:*]+)`", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / name).exists() or name == "src/fedloom/algorithms/fedmedian.py", name


def test_every_promise_names_tests_that_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    promises = text.partition("## What it promises")[2].partition("\n## ")[0].split("\n* ")[1:]
    assert len(promises) > 5
    for promise in promises:
        named = re.findall(r"`(tests/[^`]+)`", promise)
        assert named, promise
        for name in named:
            place = ROOT / name
            assert any(
                "def test_" in one.read_text()
                for one in (place.glob("test_*.py") if place.is_dir() else [place])
            )


def test_the_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "README.md", "python")
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs/mine/report.html").exists()


def test_the_readme_commands_exist() -> None:
    """Every `fedloom …` line in a shell block names a command and options that its help knows."""
    lines = [line.strip() for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    commands = [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith("fedloom ")]
    assert commands
    for command in commands:
        _, verb, *rest = re.sub(r">.*", "", command).split()
        words = [verb, *rest[:1]] if verb in ("data", "models") else [verb]  # a group of commands
        shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"}).output
        assert "Usage" in shown, command
        assert all(option in shown for option in rest if option.startswith("--")), command


def test_the_readme_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_algorithm_of_the_guide_works() -> None:
    (block,) = blocks(ROOT / "docs/add-an-algorithm.md", "python")
    names: dict[str, object] = {}
    exec(compile(block, "add-an-algorithm.md", "exec"), names)
    algorithm = names["fedmedian"](lr=1.0)  # type: ignore[operator]
    layout = Layout.of({"w": (2,)})
    state = algorithm.init(Params(layout, torch.tensor([1.0, 2.0])))
    deltas = [[0.1, 0.0], [0.2, -0.1], [1e9, 5.0]]
    updates = [
        Update(client, Params(layout, torch.tensor(delta)), 1.0) for client, delta in enumerate(deltas)
    ]
    after, _ = algorithm.apply(state, updates)
    torch.testing.assert_close(after.params.flat, torch.tensor([1.2, 2.0]))
