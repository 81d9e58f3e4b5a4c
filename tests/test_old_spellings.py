"""Names of version 0.1 still work: modules, keys, methods, models, and files of older runs."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from types import ModuleType

import pytest

import fedloom
from fedloom.config.old_spellings import KEYS, NAMES
from fedloom.config.validation_errors import check_document
from fedloom.config.yaml_document import read_document
from fedloom.experiment import Experiment, load_experiment
from fedloom.experiment.experiment_base import ExperimentBase
from fedloom.models.folder_checks import BUNDLED
from fedloom.models.hub import Source
from fedloom.old_module_names import MODULES
from fedloom.old_module_names import NAMES as RENAMED
from fedloom.report.run_results import read_run
from fedloom.system.errors import UserError


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_gives_its_replacement(old):
    sys.modules.pop(f"fedloom.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"fedloom\.{old} is now fedloom\."):
        module = import_module(f"fedloom.{old}")
    for place in MODULES[old].split():
        new = import_module(f"fedloom.{place}")
        for name, value in vars(new).items():
            if getattr(value, "__module__", None) == new.__name__:
                assert getattr(module, name) is value
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        module.nothing_of_the_kind  # noqa: B018


@pytest.mark.parametrize("old", MODULES)
def test_no_old_module_hides_a_name_of_a_package(old):
    """Importing a module sets it as an attribute of its package."""
    package, _, stem = f"fedloom.{old}".rpartition(".")
    held = vars(import_module(package)).get(stem)
    assert held is None or isinstance(held, ModuleType) or stem in fedloom.__all__  # see the next test


@pytest.mark.parametrize("name", sorted(set(MODULES) & set(fedloom.__all__)))
def test_a_function_can_be_called_after_the_old_module_of_its_name_was_imported(name, monkeypatch):
    monkeypatch.setattr(fedloom, name, lambda value: ("called", value))
    sys.modules.pop(f"fedloom.{name}", None)
    with pytest.warns(DeprecationWarning):
        import_module(f"fedloom.{name}")
    assert getattr(fedloom, name)(3) == ("called", 3)


def test_old_names_inside_modules():
    places = {place for row in MODULES.values() for place in row.split()}
    for old, new in RENAMED.items():
        holders = {place for place in places if new in vars(import_module(f"fedloom.{place}"))}
        modules = [name for name, row in MODULES.items() if set(row.split()) & holders]
        assert modules, f"no old module holds {new}"
        for name in modules:
            assert hasattr(import_module(f"fedloom.{name}"), old)


@pytest.mark.parametrize(("old", "new"), KEYS.items())
def test_an_old_key_is_the_new_one(old, new, tmp_path):
    key, value = next(iter(ExperimentBase.model_fields[new].annotation.model_fields)), 2.5  # type: ignore[union-attr]
    expected = Experiment.model_validate({new: {key: value}})
    assert Experiment.model_validate({old: {key: value}}) == expected
    file = tmp_path / "old.yaml"
    file.write_text(f"{old}:\n  {key}: {value}\n")
    assert load_experiment(str(file)) == expected
    assert load_experiment("smoke", [f"{old}.{key}={value}"]) == load_experiment(
        "smoke", [f"{new}.{key}={value}"]
    )
    with pytest.raises(UserError, match=old):
        Experiment.from_json(json.dumps({old: {key: value}, new: {key: value}}))
    _, (mistake,) = check_document(
        Experiment, read_document(f"name: a\n{old}:\n  {key}: wrong\n", "old.yaml")
    )
    assert mistake.place[1:] == (3, len(f"  {key}: ") + 1), "a mistake stands where the user wrote it"


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_an_old_name_is_the_new_one(old, new):
    if new.startswith("bundled"):
        assert Experiment(model={"path": old}).model.path == new
        assert Source("model.path", old, network=False).files.folder == BUNDLED[new]
        assert import_module("fedloom.models.load").SHIPPED[old] == BUNDLED[new]
    else:
        experiment = Experiment(methods=["fedavg", old, f"{old}+prompt"])
        assert experiment.methods == ("fedavg", new, f"{new}+prompt")


def test_files_of_older_runs_are_read_with_new_names(tmp_path):
    (tmp_path / "experiment.json").write_text(
        json.dumps({"name": "old", "methods": ["centralised", "fedavg"], "model": {"path": "shipped"}})
    )
    (tmp_path / "plan.json").write_text(json.dumps({"clients": [{"id": 0, "labels": {"shipped": 3}}]}))
    scores = {"centralised": {"slices": {}}, "fedavg": {"slices": {}}}
    (tmp_path / "result.json").write_text(json.dumps({"main": "fedavg", "scores": scores}))
    line = {"kind": "round", "method": "centralised", "client": None, "round": 1}
    (tmp_path / "record.jsonl").write_text(json.dumps(line) + "\n")
    run = read_run(tmp_path)
    assert list(run.scores) == ["centralized", "fedavg"] == run.experiment["methods"]
    assert run.rounds[0]["method"] == "centralized" and run.experiment["model"]["path"] == "bundled"
    assert run.clients[0]["labels"] == {"shipped": 3}, "what comes from data keeps its name"
