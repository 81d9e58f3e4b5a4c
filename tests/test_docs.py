"""What the documents say works: Python blocks run, commands parse, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.models.tiny import Drawn
from tests.shares import share
from tests.test_layers import FLOOR_OF
from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration
from typer.testing import CliRunner

import fedloom
from fedloom.cli.run_commands import app
from fedloom.engine.flower_processes import free_port
from fedloom.models.load_model import load_vlm
from fedloom.params import Layout, Params
from fedloom.plugins.plugins import read_plugin
from fedloom.testing import LAWS, check_algorithm
from fedloom.wire.messages import Update

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
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
    members = [(name, module)]
    for key, value in vars(module).items():
        if not key.startswith("_") and getattr(value, "__module__", None) == name and callable(value):
            members.append((f"{name}.{key}", value))
    return members


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
        assert (ROOT / name).exists(), name


def test_contributing_lists_every_package_in_its_layer() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## The packages")[2].partition("\n## ")[0]
    listed, floor = {}, -1
    for number, rooms in re.findall(r"^\| (\d*) ?\| (`.*?) \|", table, re.MULTILINE):
        floor = int(number) if number else floor
        for room in re.findall(r"`([\w/.]+)`", rooms):
            listed[room.removesuffix(".py").strip("/").replace("/", ".")] = floor
    assert listed == FLOOR_OF


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"`([a-z0-9_/]+(?:\.py|/))`", text)
    assert len(names) > 40
    for name in names:
        assert (ROOT / "src/fedloom" / name).exists() or (ROOT / name).exists(), name


def test_every_promise_names_existing_tests() -> None:
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


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"`(tests/[\w/]+(?:\.py)?)", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


def test_slow_tests_are_marked_as_such_in_the_list_of_features() -> None:
    text = (ROOT / "docs/features.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`(†?)", text)
    assert len(named) > 28
    for name, mark in named:
        marks = re.search(
            r"^pytestmark = (\[.*?^\]|.*?$)", (ROOT / name).read_text(encoding="utf-8"), re.M | re.S
        )
        assert mark or marks is None or "mark.slow" not in marks[1], name


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


GUIDES = {
    "add-an-algorithm": "my_algorithm.py",
    "add-a-data-set": "my_data.py",
    "add-a-metric": "my_metric.py",
    "add-a-model-family": "my_family.py",
}


@pytest.fixture
def guide(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> Iterator[tuple[str, Path]]:
    """Save the file of a guide as it says, in a folder that is the working directory and that Python finds."""
    name, file = request.param, GUIDES[request.param]
    page = ROOT / f"docs/{name}.md"
    assert f"`{file}`" in page.read_text(encoding="utf-8")
    (tmp_path / file).write_text(blocks(page, "python")[0])
    if name == "add-a-model-family":
        make_deepseek(tmp_path / "deepseek", tiny_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name, tmp_path / file
    sys.modules.pop(file.removesuffix(".py"), None)


def make_deepseek(folder: Path, tiny: Path) -> None:
    """Save a DeepSeek-VL with random weights, with the tokenizer and the image processor of another tiny model."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = json.loads((tiny / "config.json").read_text())
    parts = {key: config[key] for key in ("vision_config", "text_config")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DeepseekVLForConditionalGeneration(
            DeepseekVLConfig(**parts, image_token_id=config["image_token_index"], tie_word_embeddings=True)
        )
    model.save_pretrained(folder)


@pytest.mark.parametrize("guide", GUIDES, indirect=True)
def test_the_commands_of_the_guides_run(guide: tuple[str, Path]) -> None:
    name, file = guide
    commands = [line for block in blocks(ROOT / f"docs/{name}.md", "bash") for line in block.splitlines()]
    assert any(line.startswith("fedloom run ") for line in commands)
    for command in commands:
        assert command.startswith("fedloom ") and f"--plugin {file.name}" in command
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, (command, result.output)
    (folder,) = (Path.cwd() / "runs").iterdir()
    experiment = json.loads((folder / "experiment.json").read_text())
    assert experiment["plugins"] == [str(file)]
    shown = {
        "my_algorithm.py": "by the median of the clients&#39; changes",
        "my_data.py": "squares",
        "my_metric.py": ">near_miss<",
        "my_family.py": "deepseek",
    }
    assert shown[file.name] in (folder / "report.html").read_text()


@pytest.mark.parametrize("guide", share(GUIDES, every=2), indirect=True)
def test_the_python_of_the_guides_runs(guide: tuple[str, Path]) -> None:
    name, _ = guide
    _, *rest = blocks(ROOT / f"docs/{name}.md", "python")
    assert rest or name == "add-a-model-family"
    for block in rest:
        exec(compile(block, f"{name}.md", "exec"), {})


@pytest.mark.parametrize("guide", ["add-an-algorithm"], indirect=True)
def test_the_algorithm_of_the_guide_keeps_the_laws_it_promises(guide: tuple[str, Path]) -> None:
    entry = read_plugin(guide[1]).algorithms["fedmedian"]
    for clients in (3, 4, 7):
        assert set(check_algorithm(entry, clients).held) == LAWS.keys() - {"weights matter"}
    algorithm = entry.make(lr=1.0)
    layout = Layout.of({"w": (2,)})
    state = algorithm.init(Params(layout, torch.tensor([1.0, 2.0])))
    deltas = [[0.1, 0.0], [0.2, -0.1], [1e9, 5.0]]
    updates = [
        Update(client, Params(layout, torch.tensor(delta)), 1.0) for client, delta in enumerate(deltas)
    ]
    after, _ = algorithm.apply(state, updates)
    torch.testing.assert_close(after.params.flat, torch.tensor([1.2, 2.0]))


@pytest.mark.parametrize("guide", ["add-a-model-family"], indirect=True)
def test_the_family_of_the_guide_gives_the_logits_of_the_stock_model(guide: tuple[str, Path]) -> None:
    vlm = load_vlm("deepseek", families=read_plugin(guide[1]).families)
    image = Drawn("any")
    features = vlm.image_features([image])
    ids = vlm.tokenizer(
        f"What is this? {vlm.family.spell(vlm.model, vlm.tokenizer, tuple(features[0].shape[:-1]))} A",
        return_tensors="pt",
    ).input_ids
    pixels = vlm.processor.image_processor([image.pixels()], return_tensors="pt").pixel_values
    with torch.no_grad():
        embeddings = vlm.model.get_input_embeddings()(ids)
        tokens = list(vlm.connect(torch.stack(features)))
        states = vlm.decoder(**vlm.family.place(vlm.model, ids, embeddings, tokens)).last_hidden_state
        expected = vlm.model(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(vlm.family.head(vlm.model, states), expected)
    assert not torch.allclose(expected, vlm.model(input_ids=ids, pixel_values=0 * pixels).logits)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None,
    reason="Flower is not installed; `pip install 'fedloom[flower]'`",
)
def test_the_tutorial_about_sites_runs_as_it_stands(tmp_path: Path) -> None:
    """Its files are saved and its commands run by a shell, with another port, since its own may be in use."""
    page, commands = ROOT / "docs/tutorial-sites.md", tmp_path / "bin"
    (tmp_path / "make_sites.py").write_text(blocks(page, "python")[0])
    (tmp_path / "sites.yaml").write_text(blocks(page, "yaml")[0])
    commands.mkdir()
    (commands / "fedloom").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedloom "$@"\n')
    (commands / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    port = free_port()
    script = "\n".join(["set -e", *blocks(page, "bash")]).replace(":8470", f":{port}")
    script = script.replace("fedloom server ", f"fedloom server --listen 127.0.0.1:{port} ")
    path = os.pathsep.join([str(commands), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "runs/sites/report.html").read_text()
    assert "Scores at each site" in report, done.stderr
    assert "global test set" not in report
    scores = json.loads((tmp_path / "runs/sites/result.json").read_text())["scores"]
    assert [*scores] == ["zero-shot", "local", "fedavg", "fedavg+ditto"]
    for of_method in scores.values():
        assert {site: one["examples"] for site, one in of_method["sites"].items()} == {
            "east": 20,
            "north": 20,
            "west": 20,
        }
        assert [*of_method["sites"]["east"]["scores"]] == ["accuracy", "tasks"]
        assert len(of_method["sites"]["west"]["scores"]) > 2
    for site in ("north", "east", "west"):
        assert f"What left {site}" in (tmp_path / "sites" / site / "left-this-site.html").read_text()
        assert (tmp_path / "sites" / site / "adapters/fedavg+ditto/adapter_model.safetensors").exists()
    plan = json.loads((tmp_path / "runs/sites/plan.json").read_text())["clients"]
    assert {row["group"]: (row["both"], row["image_only"], row["text_only"]) for row in plan} == {
        "north": (60, 0, 0),
        "east": (0, 60, 0),
        "west": (0, 0, 60),
    }
