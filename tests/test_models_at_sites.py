"""Models that stay at sites with data of their own: clients' own models, `local`, and their scores and validation parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.federated import run_in_one_process
from tests.test_own_data import HELD, records, write

from fedloom.engine.flower_processes import Security
from fedloom.experiment.experiment import Experiment
from fedloom.report.compare_page import render_comparison
from fedloom.report.run_results import Run, read_run
from fedloom.runs.server_run import begin_message, over_sites
from fedloom.runs.single_run import run_experiment
from fedloom.runs.site_run import SiteOptions, resident_site
from fedloom.scenarios.validation_part import hold_out_at_site
from fedloom.system.errors import UserError
from fedloom.system.progress import Progress
from fedloom.types import DataSet, Example

OWN = ("local", "fedavg+ditto", "fedavg+finetune", "fedavg+keep-last", "fedavg+pfedme")


def experiment_of(
    model: Path, root: Path, methods: tuple[str, ...], validation: float = 0.0, **sections: Any
) -> Experiment:
    value = {
        "methods": methods,
        "data": {"name": "folder", "root": str(root), "validation": validation},
        "train": {"rounds": 2, "batch_size": 2},
        "scenario": {"clients": 3, "partition": "by_group"},
        "engine": {"side_by_side": 1, "workers": 1},
        "model": {"path": str(model), "threads": 1},
        **sections,
    }
    return Experiment.from_json(json.dumps(value))


def sites_in(folder: Path, allow: Mapping[str, str] = {}) -> list[SiteOptions]:
    """Write data of three sites: east has only images, west only texts."""
    found = list[SiteOptions]()
    for site, (kind, count) in HELD.items():
        train, test = records(site, kind, range(count)), records(site, kind, range(50, 54))
        write(folder / f"data-{site}", train, test)
        (folder / site).mkdir()
        if site in allow:
            (folder / site / "allow.yaml").write_text(allow[site])
        data = ("folder", folder / f"data-{site}")
        found.append(SiteOptions(site, folder / site, "127.0.0.1:1", Security(), None, data))
    return found


def numbers(folder: Path) -> dict[str, int]:
    """Return site → number of its client, from the plan of a server's run."""
    plan = json.loads((folder / "plan.json").read_text())
    return {row["group"]: number for number, row in enumerate(plan["clients"])}


def kept(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the memories of clients below a folder: file → tensor → its bytes."""
    found = dict[str, dict[str, bytes]]()
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            found[str(path.relative_to(folder))] = {
                name: tensors.get_tensor(name).numpy().tobytes() for name in tensors.keys()
            }
    return found


@pytest.mark.parametrize(
    ("strategy", "methods"),
    [pytest.param("lora", OWN, marks=pytest.mark.slow), ("share-lora", ("local", "fedavg"))],
)
def test_clients_own_models_stay_at_their_sites_and_are_those_of_pooled_data(
    tiny_model: Path, tmp_path: Path, strategy: str, methods: tuple[str, ...]
) -> None:
    """The pooled folder, divided by site, is trained in one process; what its clients keep, sites keep bit for bit."""
    pooled = [one for site, (kind, count) in HELD.items() for one in records(site, kind, range(count))]
    write(tmp_path / "pooled", pooled, records("north", "both", range(80, 88)))
    experiment = experiment_of(tiny_model, tmp_path / "pooled", methods, strategy={"name": strategy})
    run_experiment(experiment, tmp_path / "here", Progress(None))
    result, told = run_in_one_process(experiment, sites_in(tmp_path), tmp_path / "there", "sites")
    assert not [line for line in told if "refused" in line], told
    for method in methods[1:]:
        here = kept(tmp_path / "here" / "methods" / method)
        there = dict[str, dict[str, bytes]]()
        for site in HELD:
            of_site = kept(next((tmp_path / site / "runs").iterdir()) / method)
            assert of_site, (method, site)
            there |= of_site
        assert {path: kept for path, kept in here.items() if path.startswith("memory/")} == there, method
    assert result["tested"] == "sites"
    for site, number in numbers(tmp_path / "there").items():
        alone = values(tmp_path / f"here/methods/local/client-{number}/round-0002.safetensors", "params")
        memory = (
            next((tmp_path / site / "runs").iterdir()) / f"local/memory/0/{number}/round-0001.safetensors"
        )
        # A server adds changes to its parameters, and a site keeps parameters, so last bits differ.
        torch.testing.assert_close(values(memory, "personal"), alone, atol=1e-6, rtol=1e-5)


def values(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name)


def told_scores(result: Any, method: str) -> dict[str, Any]:
    return result["scores"][method]


def test_no_report_names_a_global_test_set_where_sites_test_models(tiny_model: Path, tmp_path: Path) -> None:
    runs = list[Run]()
    for seed in (0, 1):
        (place := tmp_path / str(seed)).mkdir()
        experiment = experiment_of(
            tiny_model, tmp_path / "nowhere", ("local", "fedavg", "fedavg+ditto"), seed=seed
        )
        run_in_one_process(experiment, sites_in(place), place / "there", "sites")
        runs.append(read_run(place / "there"))
    pages = [(tmp_path / "0/there/report.html").read_text(), render_comparison(runs)]
    for page in pages:
        assert "their own test part" in page or "own test parts" in page
        assert "global test" not in page.lower()


def test_each_site_scores_models_on_its_own_test_part(tiny_model: Path, tmp_path: Path) -> None:
    experiment = experiment_of(tiny_model, tmp_path / "nowhere", ("zero-shot", *OWN[:2]))
    result, _ = run_in_one_process(experiment, sites_in(tmp_path), tmp_path / "there", "sites")
    number = numbers(tmp_path / "there")
    for method in experiment.methods:
        scores = told_scores(result, method)
        own = {site: one["scores"]["accuracy"] for site, one in scores["sites"].items()}
        assert {site: scores["clients"][number[site]] for site in own} == own
        assert scores["accuracy"] == pytest.approx(sum(own.values()) / 3), "each has four test examples"
    for method in OWN[:2]:
        scores = told_scores(result, method)
        assert (scores["best"], scores["worst"]) == (max(scores["clients"]), min(scores["clients"]))
        for site in HELD:
            assert (tmp_path / site / "adapters" / method / "adapter_model.safetensors").exists()
        models = [path for path in (tmp_path / "there").rglob("*") if path.name.startswith("client-")]
        assert models == [], "no model of a client is at the server"
    plan = json.loads((tmp_path / "there" / "plan.json").read_text())
    assert plan["card"]["labels"] is plan["card"]["words"] is None, "the server knows neither"
    assert [row["labels"] for row in plan["clients"]] == [None] * 3
    report = (tmp_path / "there" / "report.html").read_text()
    assert "Jensen-Shannon" not in report
    assert "Mean words" not in report
    asked = [
        json.loads(line)
        for site in HELD
        for line in (tmp_path / site / "left-this-site.jsonl").read_text().splitlines()
    ]
    alone = [part for one in asked if one["method"] == "local" for part in one["parts"]]
    assert len(alone) == 6, "three sites, two rounds"
    assert all(part["values"] == 0 and part["tensors"] == {} and part["extras"] == {} for part in alone)
    evaluated = [one for one in asked if one["asked"] == "evaluate"]
    assert evaluated
    assert all(set(one["values"]) == {"site", "examples", "counts", "scores"} for one in evaluated)
    assert all(one["replies"] == 0 for one in asked)


def test_validation_parts_are_divided_at_the_sites(tiny_model: Path, tmp_path: Path) -> None:
    experiment = experiment_of(
        tiny_model,
        tmp_path / "nowhere",
        ("zero-shot", *OWN[:2]),
        validation=0.4,
        evaluate={"round": "best", "every": 1},
    )
    result, told = run_in_one_process(experiment, sites_in(tmp_path), tmp_path / "there", "sites")
    assert not [line for line in told if "refused" in line], told
    plan = json.loads((tmp_path / "there" / "plan.json").read_text())
    trained = {row["group"]: row["both"] + row["image_only"] + row["text_only"] for row in plan["clients"]}
    groups = numbers(tmp_path / "there")
    held_out = dict(zip(groups, map(len, plan["validation"]["clients"]), strict=True))
    assert all(held_out.values())
    assert {site: trained[site] + held_out[site] for site in HELD} == {s: n for s, (_, n) in HELD.items()}
    for method, scores in result["validation"]["methods"].items():
        weights = list(held_out.values())
        mean = sum(w * s for w, s in zip(weights, scores["clients"], strict=True)) / sum(weights)
        assert scores["score"] == pytest.approx(mean), method
        assert scores["examples"] == sum(weights)


def test_a_site_without_scores_is_left_out_of_the_mean_with_its_reason(
    tiny_model: Path, tmp_path: Path
) -> None:
    """East lets no score leave, and north only the accuracy."""
    sites = sites_in(tmp_path, {"east": "metrics: []\n", "north": "metrics: [accuracy]\n"})
    experiment = experiment_of(tiny_model, tmp_path / "nowhere", ("fedavg",))
    result, _ = run_in_one_process(experiment, sites, tmp_path / "there", "sites")
    scores = told_scores(result, "fedavg")
    assert scores["sites"]["east"]["scores"] == {"tasks": {"choice": {}}}
    number = numbers(tmp_path / "there")
    accuracy = scores["clients"][number["north"]]
    assert scores["sites"]["north"]["scores"] == {
        "accuracy": accuracy,
        "tasks": {"choice": {"accuracy": accuracy}},
    }
    assert scores["clients"][number["east"]] is None
    assert scores["accuracy"] == pytest.approx((accuracy + scores["clients"][number["west"]]) / 2)


@pytest.mark.parametrize(
    ("methods", "scores", "told"),
    [
        (("fedavg", "centralized"), "sites", "centralized trains on the clients' pooled data"),
        (("linear",), "sites", "linear trains on the clients' pooled data"),
        (("local",), "here", "with local clients keep models of their own.*--scores sites"),
        (("fedavg+ditto",), "here", r"with fedavg\+ditto clients keep models of their own.*--scores sites"),
    ],
)
def test_what_needs_pooled_data_or_a_sites_model_is_refused(
    tiny_model: Path, tmp_path: Path, methods: tuple[str, ...], scores: Any, told: str
) -> None:
    write(tmp_path / "mine", records("north", "both", range(6)), records("north", "both", range(80, 88)))
    experiment = experiment_of(tiny_model, tmp_path / "mine", methods)
    with pytest.raises(UserError, match=told):
        run_in_one_process(experiment, sites_in(tmp_path), tmp_path / "there", scores)


@pytest.mark.parametrize("allowed", [False, True])
def test_answers_to_single_examples_stay_unless_the_owner_allows(
    tiny_model: Path, tmp_path: Path, allowed: bool
) -> None:
    sites = sites_in(tmp_path, {"east": f"replies: {str(allowed).lower()}\n"})
    (east,) = [one for one in sites if one.name == "east"]
    experiment = over_sites(experiment_of(tiny_model, tmp_path / "nowhere", ("fedavg",)), 3, "sites")
    begin = begin_message(experiment, own_data=True)
    with resident_site(east, lambda text: None).open(begin) as run:
        assert run.replies == allowed


@pytest.mark.parametrize("source", [0.4, "published"])
def test_a_sites_validation_part_is_its_own(source: float | str) -> None:
    """The draw depends on neither other sites nor the order of records; a part of the owner's is used as it is."""
    train = tuple(
        Example(
            f"{k:03d}",
            f"What is {k}?",
            ("a", "b")[k % 2],
            text=f"number {k}",
            label=k % 2,
            options=("a", "b"),
        )
        for k in range(20)
    )
    data = DataSet("mine", train, train[:1], validation=(Example("v", "?", "a", text="other"),))
    one = hold_out_at_site(data, source, 7, "north")
    if source == "published":
        assert one == data
        return
    assert len(one.validation) == 8
    assert {example.id for example in (*one.train, *one.validation)} == {example.id for example in train}
    assert len(one.train) == 12
    turned = hold_out_at_site(replace(data, train=train[::-1]), source, 7, "north")
    assert {example.id for example in turned.validation} == {example.id for example in one.validation}
    assert hold_out_at_site(data, 0.0, 7, "north") == replace(data, validation=())
