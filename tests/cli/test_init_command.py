"""`fedloom init` writes a recipe that is valid, and the schema in its header describes every recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.config.validation_errors import key_descriptions
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.recipe_schema import recipe_schema, schema_path
from fedloom.experiment.recipes import SWEEP_KEYS, load_experiment, recipes


def call(*words: str):
    return CliRunner().invoke(app, list(words))


def test_the_installed_schema_is_current() -> None:
    """`python scripts/make_schema.py` writes it."""
    assert json.loads(schema_path().read_text(encoding="utf-8")) == recipe_schema()


def test_the_schema_has_every_key_of_experiments_and_grids() -> None:
    keys = {path for path, _ in key_descriptions(recipe_schema())}
    assert keys >= {path for path, _ in key_descriptions(Experiment.model_json_schema())}
    assert keys >= {(key,) for key in SWEEP_KEYS}


@pytest.mark.parametrize("name", recipes())
def test_every_bundled_recipe_satisfies_the_schema(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    value = yaml.safe_load(recipes()[name].read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(recipe_schema()).validate(value)


def test_the_schema_refuses_what_validation_refuses() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(recipe_schema())
    for wrong in ({"train": {"round": 3}}, {"train": {"lr": 0}}, {"grid": 3}, {"sede": 1}):
        assert not validator.is_valid(wrong), wrong


def records(folder: Path, groups: int) -> Path:
    folder.mkdir()
    lines = [
        {"question": "Which?", "text": f"number {k}", "answer": "ab"[k % 2], "group": f"site {k % groups}"}
        for k in range(24)
    ]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def test_a_recipe_for_own_data_is_valid_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = records(tmp_path / "mine", groups=2)
    result = call("init", "mine.yaml", "--data", str(folder))
    assert result.exit_code == 0, result.stderr
    first = Path("mine.yaml").read_text().partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={schema_path().as_uri()}"
    experiment = load_experiment("mine.yaml")
    assert (experiment.scenario.clients, experiment.scenario.partition) == (2, "by_group")
    assert experiment.data.root == str(folder)
    assert call("validate", "mine.yaml").exit_code == 0
    again = call("init", "mine.yaml", "--data", str(folder))
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize("kind", ["records", "images by class"])
def test_answers_are_no_groups_and_an_invalid_record_is_counted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    if kind == "records":
        file = records(folder, groups=1) / "data.jsonl"
        lines = [{**json.loads(line), "group": None} for line in file.read_text().splitlines()]
        file.write_text("\n".join(map(json.dumps, [*lines, {"question": "Which?"}])))
    else:
        for number in range(24):
            image = folder / "ab"[number % 2] / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(image)
        (folder / "a" / "24.png").write_bytes(b"GIF89a")
    result = call("init", "mine.yaml", "--data", str(folder))
    assert result.exit_code == 0, result.stderr
    assert ", 1 invalid (" in " ".join(result.output.split())
    experiment = load_experiment("mine.yaml")
    assert (experiment.scenario.clients, experiment.scenario.partition) == (3, "iid")
    assert "the records have no groups" in Path("mine.yaml").read_text()


def test_without_data_the_recipe_is_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init").exit_code == 0
    assert load_experiment("recipe.yaml", ["data.root=somewhere"]).scenario.partition == "iid"
    text = Path("recipe.yaml").read_text()
    grid = "\n".join(
        line.removeprefix("# ") for line in text.splitlines() if line.startswith(("# grid:", "#   "))
    )
    assert yaml.safe_load(grid)["grid"]["seed"] == [0, 1, 2]


def test_a_folder_without_records_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = call("init", "--data", "empty")
    assert result.exit_code == 2
    assert not Path("recipe.yaml").exists()


def test_a_path_that_no_recipe_can_hold_is_refused_in_one_message(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    folder.mkdir()
    result = call("init", str(tmp_path / "new.yaml"), "--data", str(folder))
    assert result.exit_code == 2
    assert r"r\xff is not UTF-8 text; rename the folder" in result.output
    assert not (tmp_path / "new.yaml").exists()
