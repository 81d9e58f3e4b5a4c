"""Sites bring their own data: the server learns counts, the bytes are those of pooled data, and all that leaves is listed."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.federated import FederatedRun

from fedloom.config.allow_schema import Allow, read_allow
from fedloom.config.schema import Scenario
from fedloom.engine.flower_processes import Security
from fedloom.experiment.experiment import Experiment
from fedloom.params import Layout, Params, Part
from fedloom.runs.left_this_site import DepartureLog, noise_at_site
from fedloom.runs.site_permissions import require_allowed, require_reportable
from fedloom.runs.site_run import SiteOptions, read_experiment
from fedloom.runs.site_scores import combine_site_scores
from fedloom.scenarios.declared_examples import (
    blank_examples,
    clients_by_site,
    counts_of,
    plan_with_all_examples,
)
from fedloom.scenarios.plan import build_plan
from fedloom.system.errors import UserError
from fedloom.tasks.predictions import read_predictions
from fedloom.tasks.score_answers import Answers, concatenate, score
from fedloom.types import Example
from fedloom.wire.compression import CODECS
from fedloom.wire.messages import Assignment, Update, in_codec
from fedloom.wire.site_messages import SiteMessage

HELD = {"east": ("image", 5), "north": ("both", 6), "west": ("text", 4)}
OPTIONS = ["red", "blue"]
SECRET = "canary"


def records(site: str, kind: str, numbers: range) -> list[dict[str, object]]:
    found = list[dict[str, object]]()
    for k in numbers:
        one = {"id": f"{site}/{k:07d}", "question": "Which colour?", "options": OPTIONS, "group": site}
        one["answer"] = OPTIONS[k % 2]
        if kind != "image":
            one["text"] = f"It is {('warm', 'cold')[k % 2]}, {SECRET} {k} of {site}."
        if kind != "text":
            one["image"] = f"images/{site}-{k}.png"
        found.append(one)
    return found


def write(folder: Path, train: list[dict[str, object]], test: list[dict[str, object]]) -> Path:
    (folder / "images").mkdir(parents=True)
    for name, some in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
        for one in some:
            if "image" in one:
                k = int(str(one["id"]).split("/")[1])
                color = (220, k * 3 % 255, 30) if k % 2 == 0 else (30, k * 3 % 255, 220)
                Image.new("RGB", (24, 24), color).save(folder / str(one["image"]))
    return folder


def experiment_of(data: Path, model: Path, file: Path) -> Path:
    value = {
        "methods": ["fedavg"],
        "data": {"name": "folder", "root": str(data)},
        "train": {"rounds": 2, "batch_size": 2},
        "scenario": {"clients": 3, "partition": "by_group"},
        "engine": {"side_by_side": 1, "workers": 1},
        "model": {"path": str(model), "threads": 1},
    }
    file.write_text(json.dumps(value))
    return file


@pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None,
    reason="Flower is not installed; `pip install 'fedloom[flower]'`",
)
@pytest.mark.slow
@pytest.mark.parametrize("scores", ["here", "sites"])
def test_sites_with_data_of_their_own_give_the_bytes_of_pooled_data(
    tiny_model: Path, tmp_path: Path, scores: str
) -> None:
    """One site has only images and one only texts. The pooled folder, divided by site, is trained in one process."""
    pooled = [one for site, (kind, count) in HELD.items() for one in records(site, kind, range(count))]
    server = write(tmp_path / "pooled", pooled, records("north", "both", range(80, 88)))
    for site, (kind, count) in HELD.items():
        write(
            tmp_path / f"data-{site}", records(site, kind, range(count)), records(site, kind, range(50, 54))
        )
    file = experiment_of(server, tiny_model, tmp_path / "experiment.json")
    here = [sys.executable, "-m", "fedloom", "run", str(file), "--out", str(tmp_path / "here"), "--quiet"]
    subprocess.run(here, check=True, capture_output=True)
    own = {site: ["--data", str(tmp_path / f"data-{site}")] for site in HELD}
    if scores == "sites":  # then the server needs no data at all
        experiment_of(tmp_path / "nowhere", tiny_model, file)
    with FederatedRun(tmp_path, file, own, ["--sites", "3", "--scores", scores]) as run:
        assert run.wait() == [0] * 4, run.told()
    there = tmp_path / "there"
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "here" / adapter).read_bytes() == (there / adapter).read_bytes()
    assert {
        row["group"]: (row["both"], row["image_only"], row["text_only"])
        for row in json.loads((there / "plan.json").read_text())["clients"]
    } == {"east": (0, 5, 0), "north": (6, 0, 0), "west": (0, 0, 4)}
    sites = json.loads((there / "result.json").read_text())["scores"]["fedavg"]["sites"]
    assert {site: one["examples"] for site, one in sites.items()} == dict.fromkeys(HELD, 4)
    assert all(0 <= one["scores"]["accuracy"] <= 1 for one in sites.values())
    for site in HELD:
        (answers,) = (tmp_path / site).rglob("fedavg/predictions.jsonl")
        assert {row.example for row in read_predictions(answers)} == {
            f"{site}/{k:07d}" for k in range(50, 54)
        }
        left = [
            json.loads(line) for line in (tmp_path / site / "left-this-site.jsonl").read_text().splitlines()
        ]
        trained = [one for one in left if one["asked"] == "train"]
        assert [one["round"] for one in trained] == [0, 1]
        assert all(part["tensors"] and part["values"] > 0 for one in trained for part in one["parts"])
        assert all(one["replies"] == 0 for one in left)
        assert f"What left {site}" in (tmp_path / site / "left-this-site.html").read_text()
    if scores == "sites":
        whole = json.loads((there / "result.json").read_text())["scores"]["fedavg"]
        right = sum(one["examples"] * one["scores"]["accuracy"] for one in sites.values())
        assert whole["accuracy"] == pytest.approx(right / 12)
        assert (there / "report.html").exists()
    texts = [path for path in there.rglob("*") if path.is_file() and b"of west" in path.read_bytes()]
    assert [path.name for path in texts] == [], "nothing that a site's examples say is at the server"
    at_server = {row.example for row in read_predictions(there / "predictions.jsonl")}
    assert at_server == ({f"north/{k:07d}" for k in range(80, 88)} if scores == "here" else set())
    log = (there / "record.jsonl").read_text()
    sums = json.loads((there / "result.json").read_text())["bytes"]["fedavg"]["up"]
    parts = [
        part["bytes"]
        for site in HELD
        for line in (tmp_path / site / "left-this-site.jsonl").read_text().splitlines()
        if json.loads(line)["asked"] == "train"
        for part in json.loads(line)["parts"]
    ]
    assert sum(parts) == sums, "what sites list is what the server counts"
    assert '"kind": "site joined"' in log


def test_the_plan_of_blank_examples_is_that_of_the_real_ones() -> None:
    """By site, whatever sites are called and whatever they hold."""
    held = {"zeta": "both", "alpha": "text", "mid": "image"}
    real = [
        Example(
            f"{site}/{k:07d}",
            "?",
            "!",
            None,
            "so" if kind != "image" else None,
            group=site,
            options=("!", "?"),
        )
        for site, kind in held.items()
        for k in range(3 + len(site))
    ]
    counts = {site: counts_of([one for one in real if one.group == site]) for site in held}
    declared = [one for site in sorted(held) for one in blank_examples(site, counts[site])]
    scenario = Scenario(clients=3, partition="by_group")
    there, here = (build_plan(some, scenario, 5) for some in (declared, real))
    assert clients_by_site(there, declared) == clients_by_site(here, real)
    assert [len(one) for one in there.clients] == [len(one) for one in here.clients]


def test_scores_of_sites_are_weighted_by_numbers_of_examples() -> None:
    """One right of one, one of three, and a site that is silent: two of four are right."""

    def told(examples: int, accuracy: float, **more: float) -> dict[str, Any]:
        return {
            "examples": examples,
            "scores": {"accuracy": accuracy, "tasks": {"choice": {"accuracy": accuracy, **more}}},
        }

    sites = {"a": told(1, 1.0, auc=0.25), "b": told(3, 1 / 3), "c": {"reason": "it is away"}}
    found = combine_site_scores(sites, ["b", "c", "a"])
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["tasks"]["choice"] == {"accuracy": pytest.approx(0.5), "auc": 0.25}
    assert found["clients"] == [pytest.approx(1 / 3), None, 1.0]
    assert found["sites"]["c"] == {"reason": "it is away"}
    with pytest.raises(UserError, match=r"no site sent scores \(c: it is away"):
        combine_site_scores({"c": {"reason": "it is away"}}, ["c"])


def test_scores_of_sites_with_several_tasks_are_those_of_all_their_examples() -> None:
    """However examples of two tasks are divided, means over sites are those of one test set; one site has no example of one task."""
    held = {"a": "ccccccv", "b": "vvcv", "c": "vv"}
    right, examples, answers = itertools.cycle([1, 1, 0]), dict[str, list[Example]](), dict[str, Answers]()
    for site, kinds in held.items():
        examples[site] = [
            Example(f"{site}{k}", "?", "yes", text="so", label=0, options=("yes", "no"))
            if kind == "c"
            else Example(f"{site}{k}", "?", "yes", text="so", task="vqa")
            for k, kind in enumerate(kinds)
        ]
        given = tuple(
            (0 if kind == "c" else "yes") if next(right) else (1 if kind == "c" else "no") for kind in kinds
        )
        answers[site] = Answers(given, (None,) * len(kinds), (None,) * len(kinds))
    told = {
        site: {
            "examples": len(own),
            "counts": dict(Counter(one.task for one in own)),
            "scores": score(own, answers[site]),
        }
        for site, own in examples.items()
    }
    found = combine_site_scores(told, list(held))
    whole = score([one for own in examples.values() for one in own], concatenate(list(answers.values())))
    assert set(found["tasks"]) == set(whole["tasks"]) and len(whole["tasks"]) == 2
    for task, scores in whole["tasks"].items():
        assert found["tasks"][task]["accuracy"] == pytest.approx(scores["accuracy"])
    assert found["accuracy"] == pytest.approx(whole["accuracy"])


def test_a_site_holds_its_examples_whatever_its_clients_number() -> None:
    examples = [Example(str(k), "?", "!", text="so" if k % 2 else None) for k in (2, 0, 1)]
    plan = plan_with_all_examples(examples, 4)
    assert len(plan.clients) == 4
    for share in plan.clients:
        assert [examples[place].id for place in share.indices] == ["0", "1", "2"]
        assert share.text.all()
        assert not share.image.any()


def test_what_an_owner_does_not_allow_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "allow.yaml"
    file.write_text("rounds: 3\nsmallest_batch: 4\ntensors: ['llm/*']\nmetrics: [accuracy]\n")
    allow = read_allow(file)
    assert allow == Allow(rounds=3, smallest_batch=4, tensors=("llm/*",), metrics=("accuracy",))
    require_allowed(allow, Experiment(train={"rounds": 3, "batch_size": 4}))
    with pytest.raises(UserError, match="allows 3 rounds, and the run has 4"):
        require_allowed(allow, Experiment(train={"rounds": 4, "batch_size": 4}))
    with pytest.raises(
        UserError, match=r"batches of 4 examples and more, and the run has train.batch_size 3"
    ):
        require_allowed(allow, Experiment(train={"rounds": 3, "batch_size": 3}))
    layout = Layout.of({"connector/w": (2,), "llm/a": (3,)})
    params = Params.zeros(layout)
    within = Assignment("fedavg", 0, 0, 0, params, up=Part(5, ((2, 5),)))
    require_reportable(allow, [within], layout)
    for beyond in (None, Part(5, ((1, 3),))):
        with pytest.raises(UserError, match="does not allow connector/w"):
            require_reportable(allow, [within, Assignment("fedavg", 0, 0, 1, params, up=beyond)], layout)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("round: 3\n", r"allow\.yaml:1.*round"),
        ("rounds: 0\n", "rounds"),
        ("- a\n", "allow.yaml"),
        ("a: [\n", "allow"),
    ],
)
def test_mistakes_of_an_owner_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "allow.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        read_allow(tmp_path / "allow.yaml")


def test_all_that_left_is_listed(tmp_path: Path) -> None:
    """Tensors by name and shape, bytes, and the digest of the very bytes; names are escaped on the page."""
    layout = Layout.of({"connector/w": (2,), "llm/a": (3,)})
    update = Update(
        3, Params.zeros(layout), 7.0, {"drift": torch.ones(2)}, {"loss": 0.5}, Part(5, ((2, 5),))
    ).to_bytes()
    answer = SiteMessage("answered", {"site": "<b>", "round": 2}, (update,))
    departures = DepartureLog(tmp_path, "<b>")
    request = SiteMessage("train", {"method": "fedavg", "round": 2})
    departures.add(request, answer, layout, {"fedavg": {"noisy": {"sigma": 1.5}}})
    departures.write_page()
    line = json.loads((tmp_path / "left-this-site.jsonl").read_text())
    assert (line["round"], line["asked"], line["bytes"]) == (2, "train", len(answer.to_bytes()))
    assert line["sha256"] == hashlib.sha256(answer.to_bytes()).hexdigest()
    assert line["noise"] == {"noisy": {"sigma": 1.5}}
    (part,) = line["parts"]
    assert (part["client"], part["bytes"]) == (3, len(update))
    assert (part["tensors"], part["values"], part["extras"]) == ({"llm/a": [3]}, 3, {"drift": [2]})
    assert part["figures"] == {"weight": 7.0, "loss": 0.5}
    assert part["codec"] == "fp32"
    page = (tmp_path / "left-this-site.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "llm/a" in page
    assert "noise of noisy: sigma 1.5" in page


def test_the_list_names_the_noise_that_clients_add_and_no_other() -> None:
    """DP-SGD adds noise at the client, with its defaults where the experiment sets none; DP-FedAvg adds it at the server."""
    experiment = Experiment(
        methods=("fedavg", "fedavg+dp", "fedavg+dp-sgd"),
        train={"clip": None},
        algorithms={"dp-sgd": {"noise": 0.5}, "dp": {"noise": 2.0}},
    )
    assert noise_at_site(experiment) == {
        "fedavg+dp-sgd": {"dp-sgd": {"noise": 0.5, "bound": 1.0, "delta": 1e-5}}
    }


@pytest.mark.parametrize("asked", ["evaluate", "measure", "begin"])
def test_only_updates_carry_noise(tmp_path: Path, asked: str) -> None:
    log = DepartureLog(tmp_path, "north")
    request = SiteMessage(asked, {"method": "fedavg", "round": 0})
    log.add(request, SiteMessage("answered", {}), None, {"fedavg": {"noisy": {"sigma": 1.5}}})
    assert json.loads((tmp_path / "left-this-site.jsonl").read_text())["noise"] == {}


@pytest.mark.parametrize("codec", CODECS)
def test_the_list_names_the_codec_of_what_left(tmp_path: Path, codec: str) -> None:
    layout = Layout.of({"llm/a": (40,)})
    flat, coded = in_codec(torch.linspace(-1, 1, 40), None, codec)
    update = Update(0, Params(layout, flat), 1.0, coded=coded).to_bytes()
    log = DepartureLog(tmp_path, "north")
    log.add(SiteMessage("train", {"round": 0}), SiteMessage("answered", {}, (update,)), layout, {})
    log.write_page()
    (part,) = json.loads((tmp_path / "left-this-site.jsonl").read_text())["parts"]
    assert (part["codec"], part["bytes"]) == (codec, len(update))
    assert f"in {codec};" in (tmp_path / "left-this-site.html").read_text()


def begun(experiment: Experiment, **head: Any) -> dict[str, Any]:
    return {"experiment": experiment.to_json(), "digest": experiment.digest, **head}


def test_a_server_cannot_choose_what_code_a_site_loads(tmp_path: Path) -> None:
    """Not even a file that lies at the site: it would be run when the experiment is read."""
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    value = json.loads(Experiment().to_json()) | {"plugins": [str(trap)]}
    options = SiteOptions("north", tmp_path, "127.0.0.1:1", Security(), (0,))
    head = {"experiment": json.dumps(value), "digest": Experiment().digest}
    with pytest.raises(UserError, match="has 1 plug-ins, and this site 0"):
        read_experiment(options, head)
    assert not (tmp_path / "ran").exists()


def test_a_server_cannot_make_a_site_download_anything(tmp_path: Path) -> None:
    experiment = Experiment.from_json(json.dumps({"model": {"path": "some/model", "network": True}}))
    options = SiteOptions("north", tmp_path, "127.0.0.1:1", Security(), (0,), model="/models/mine")
    found = read_experiment(options, begun(experiment))
    assert (found.model.network, found.model.path) == (False, "/models/mine")
    assert found.train == experiment.train


def test_an_experiment_with_another_digest_than_stated_is_refused(tmp_path: Path) -> None:
    options = SiteOptions("north", tmp_path, "127.0.0.1:1", Security(), (0,))
    with pytest.raises(UserError, match="differs from the stated one"):
        read_experiment(options, begun(Experiment(), digest=Experiment(seed=1).digest))
