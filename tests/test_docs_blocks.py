"""Every block of code in the documents runs, or is checked against what it is about, or says why not."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main
from click import Command, Context, Group
from tests.shares import share
from typer.testing import CliRunner

import fedloom
from fedloom.cli.options import backend_change
from fedloom.cli.run_commands import app
from fedloom.config.allow_schema import Allow
from fedloom.config.validation_errors import check_document, schema_at, schema_of
from fedloom.config.yaml_document import read_document, without_keys
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.grid import load_grid
from fedloom.experiment.recipes import SWEEP_KEYS, is_grid, load_experiment, recipes

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(
    r"^```(?P<language>\w+)(?: notest(?: \((?P<reason>[^\n]+)\))?)?\n(?P<code>.*?)^```", re.M | re.S
)

RUN_BY_OTHERS = {
    "README.md": "tests/test_docs.py",
    "add-a-data-set.md": "tests/test_docs.py",
    "add-a-metric.md": "tests/test_docs.py",
    "add-a-model-family.md": "tests/test_docs.py",
    "add-an-algorithm.md": "tests/test_docs.py",
    "tutorial.md": "test_the_tutorial_runs_as_it_stands, below",
    "tutorial-sites.md": "tests/test_docs.py",
    "use-a-run.md": "tests/test_use_a_run.py",
    "own-loop.md": "tests/test_own_loop.py",
}
"""Page → the test that runs its Python; that of all other pages runs here."""

CLI = typer.main.get_command(app)


class Block(NamedTuple):
    """A block of code on a page; `skipped` is the reason for which it does not run, or None."""

    page: Path
    line: int
    language: str
    code: str
    skipped: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        first = match[0].partition("\n")[0]
        skipped = (match["reason"] or "no reason is given") if " notest" in first else None
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["language"], match["code"], skipped))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages: str) -> list[object]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language in languages]


def or_skip(block: Block) -> None:
    """Skip a block that cannot run here; pytest lists the reasons and how often each applies."""
    if block.skipped is not None:
        pytest.skip(f"block of code: {block.skipped}")


def test_every_fence_is_read() -> None:
    """No block is overlooked because its first line is written in another way."""
    for page in PAGES:
        fences = re.findall(r"^```\S+.*$", page.read_text(encoding="utf-8"), re.M)
        assert len(fences) == len(blocks_of(page)), page
    assert {block.language for block in BLOCKS} <= {"bash", "python", "yaml", "json", "text"}


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the `fedloom …` commands of a block as words, with the variables that its page sets."""
    page = block.page.read_text(encoding="utf-8")
    values = dict(re.findall(r"^([A-Z]+)=(\"[^\"]*\"|'[^']*'|\S+)", page, re.M))
    for line in block.code.replace("\\\n", " ").splitlines():
        if line.strip().startswith("fedloom "):
            for name in sorted(values, key=len, reverse=True):
                line = line.replace(f"${name}", " ".join(shlex.split(values[name])))
            _, *words = shlex.split(line, comments=True)
            end = next((place for place, word in enumerate(words) if word in (">", "|", "&", "&&")), None)
            yield words[:end]


def parse(words: list[str]) -> Context:
    """Parse a command as the command line does, without running it; click raises if it is wrong."""
    command: Command = CLI
    context = Context(CLI, info_name="fedloom")
    while isinstance(command, Group):
        name, *words = words
        inner = command.get_command(context, name)
        assert inner is not None, f"there is no command {name}"
        command = inner
        context = Context(command, info_name=name, parent=context)
    return command.make_context(command.name or "", list(words), parent=context.parent)


@pytest.mark.parametrize("block", of("bash"))
def test_commands_are_ones_that_fedloom_has(block: Block) -> None:
    """Commands, options, recipes and keys that a page names exist, also where running them would take long."""
    or_skip(block)
    schema = schema_of(Experiment)
    for words in commands_of(block):
        if words == ["--version"]:
            continue
        given = parse(words).params
        if words[0] in ("run", "sweep", "resume", "server"):
            for change in given.get("changes") or ():
                key = change.partition("=")[0].removeprefix("grid.")
                assert schema_at(schema, tuple(key.split("."))) or key in ("data", "scenario"), change


def commands_to_try() -> Iterator[tuple[Block, list[str]]]:
    for block in BLOCKS:
        if block.language == "bash" and block.skipped is None:
            yield from ((block, words) for words in commands_of(block))


def commands_with_bundled_recipes() -> Iterator[object]:
    seen = set[object]()
    for block, words in commands_to_try():
        if words[0] in ("run", "sweep", "server", "plan", "validate", "show"):
            given = parse(words).params
            if not given["recipe"].endswith((".yaml", ".json")) and not given.get("plugins"):
                changes = (*(given.get("changes") or ()), *backend_change(given.get("backend")))
                case = given["recipe"], changes, bool(given.get("quick"))
                if case not in seen:
                    yield pytest.param(*case, id=f"{block.place} {case[0]}")
                seen.add(case)


@pytest.mark.parametrize(("recipe", "changes", "quick"), commands_with_bundled_recipes())
def test_recipes_exist_and_accept_the_changes(recipe: str, changes: Sequence[str], quick: bool) -> None:
    """What takes too long to run here is valid, in every cell of a sweep."""
    assert recipe in recipes()
    if quick or is_grid(recipe, changes):
        assert load_grid(recipe, changes, quick=quick).cells
    else:
        load_experiment(recipe, changes)


def quick_commands() -> Iterator[object]:
    """Yield the commands that take seconds and need nothing of the reader's."""
    for block, words in commands_to_try():
        needs = {"--plugin", "--root", "--server", "--data", "clear"} & set(words)
        if words[0] in ("list", "split", "doctor", "cache") and not needs:
            yield pytest.param(words, id=f"{block.place} {words[0]}")


@pytest.mark.parametrize("words", quick_commands())
def test_quick_commands_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("block", of("yaml"))
def test_recipes_have_no_mistakes(block: Block) -> None:
    or_skip(block)
    document = read_document(block.code, block.place)
    keys = set(document.value)
    model = Allow if keys <= set(Allow.model_fields) else Experiment
    assert check_document(model, without_keys(document, SWEEP_KEYS))[1] == []


@pytest.mark.parametrize("block", of("json"))
def test_json_can_be_read(block: Block) -> None:
    or_skip(block)
    read_document(block.code, block.place)


@pytest.mark.parametrize("block", of("python"))
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    or_skip(block)
    code = compile(block.code, block.place, "exec")
    if block.page.name not in RUN_BY_OTHERS:
        monkeypatch.chdir(tmp_path)
        exec(code, {})


@pytest.mark.parametrize("rounds", share([1, 3], every=2))
def test_the_tutorial_runs_as_it_stands(rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save its files under the names it gives, run its commands and its Python in order, and find what it says.

    Its recipe has three rounds, and in the fast suite one.
    """
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/tutorial.md"
    text, names = page.read_text(encoding="utf-8"), {}
    shown = {}
    for block in blocks_of(page):
        if block.skipped is not None:
            continue
        before = "\n".join(text.splitlines()[: block.line - 1]).rstrip()
        saved = re.search(r"[Ss]ave (?:it|this recipe) as `([\w.]+)`:$", before)
        if saved:
            (tmp_path / saved[1]).write_text(block.code.replace("rounds: 3", f"rounds: {rounds}"))
        elif block.language == "python":
            exec(compile(block.code, block.place, "exec"), names)
        else:
            assert block.language == "bash"
            for line in block.code.splitlines():
                shown[line] = run_line(line)
    assert f"rounds: {rounds}\n" in (tmp_path / "lamps.yaml").read_text()
    (check,) = (output for line, output in shown.items() if "data check" in line)
    assert "108" in check and "36" in check  # 144 records, a quarter of them for testing
    (asked,) = (output for line, output in shown.items() if "fedloom ask" in line)
    assert names["reply"].answer == asked.split()[0]
    scores = fedloom.run(fedloom.load_experiment("lamps.yaml"), "runs/lamps", quiet=True)["scores"]
    assert [*scores] == ["zero-shot", "local", "fedavg", "centralized"]
    for folder in ("runs/lamps/adapter", "lamps-adapter"):
        assert (tmp_path / folder / "adapter_model.safetensors").exists()
        assert (tmp_path / folder / "prompt.json").exists()
    assert (tmp_path / "runs/lamps/report.html").exists()
    assert any("lora" in name for name, _ in names["model"].named_parameters())


def run_line(line: str) -> str:
    """Run one line of the tutorial in this process, and return what it prints."""
    program, *words = shlex.split(line)
    if program == "python":
        runpy.run_path(words[0], run_name="__main__")
        return ""
    assert program == "fedloom", line
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (line, done.output)
    return done.stdout
