"""Whole runs on a tiny random model: same bytes twice, after kills, and whatever modalities there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from tests.adapter_files import import_adapter
from tests.clients import EXCHANGING
from tests.killed_process import killed_at
from tests.shares import share

from fedloom.algorithms import ENTRIES
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import PUBLISHED_SETTINGS
from fedloom.experiment.recipes import load_experiment, recipes, sweep_keys
from fedloom.models.load_model import load_vlm
from fedloom.params import Params
from fedloom.runs.single_run import resume_run, run_experiment
from fedloom.scenarios import published_cohort
from fedloom.system.errors import UserError
from fedloom.system.processes import can_fork
from fedloom.system.progress import make_progress
from fedloom.tuning.adapters import prepare
from fedloom.tuning.strategies import LoRA, stage
from fedloom.tuning.svd_start import svd_start


def experiment(tiny_model: Path, **changes: object) -> Experiment:
    values: dict[str, object] = {
        "name": "e2e",
        "data": {"name": "emoji", "limit": 18, "test_share": 0.03},
        "scenario": {"clients": 3, "partition": "iid", "pattern": "hybrid"},
        "model": {"path": str(tiny_model), "threads": 1},
        "strategy": {"name": "both", "rank": 2},
        "train": {"rounds": 3, "batch_size": 4},
        "methods": ["scaffold", "fedadam+prompt+adaptive"],
        "algorithms": {"adaptive": {"skip": 1}},
        "evaluate": {"every": 0},
    }
    return Experiment.from_json(json.dumps({**values, **changes}))


def watched(tiny_model: Path, **changes: object) -> Experiment:
    """Return an experiment of every phase that can be followed: features, a base model, training and scores of each round."""
    values = {
        "methods": ["zero-shot", "fedavg"],
        "algorithms": {},
        "evaluate": {"every": 1},
        "engine": {"cache": False},  # in which other tests may have left the features
    }
    return experiment(tiny_model, **{**values, **changes})


def run(value: Experiment, folder: Path) -> dict[str, object]:
    return run_experiment(value, folder, make_progress(quiet=True))


def adapter(folder: Path) -> bytes:
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


def timeless(result: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in result.items() if key != "seconds"}


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(experiment(tiny_model), folder)
    return folder


def test_the_same_experiment_gives_the_same_bytes(
    tiny_model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    again = run(experiment(tiny_model), tmp_path / "again")
    assert adapter(tmp_path / "again") == adapter(undisturbed)
    assert timeless(again) == timeless(json.loads((undisturbed / "result.json").read_text()))


def test_a_repeat_has_the_same_data_and_clients_and_another_training(
    tiny_model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    train = {"rounds": 3, "batch_size": 4}
    values = [experiment(tiny_model, train={**train, "repeat": number}) for number in (0, 1, 2)]
    assert values[0].digest == experiment(tiny_model).digest  # the key is newer than older runs
    assert len({value.digest for value in values}) == 3
    for number in (1, 2):
        run(values[number], tmp_path / str(number))
    folders = [undisturbed, tmp_path / "1", tmp_path / "2"]
    plans = [json.loads((folder / "plan.json").read_text()) for folder in folders]
    assert plans[0]["scenario"] == plans[1]["scenario"] == plans[2]["scenario"]
    assert plans[0]["digest"] == plans[1]["digest"] == plans[2]["digest"]
    starts = [json.loads((folder / "result.json").read_text())["independent_questions"] for folder in folders]
    assert starts[0] == starts[1] == starts[2]
    assert len({adapter(folder) for folder in folders}) == 3


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
def test_several_processes_give_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    one, several = (
        run(experiment(tiny_model, engine={"workers": count, "side_by_side": 1}), tmp_path / str(count))
        for count in (1, 2)
    )
    assert adapter(tmp_path / "2") == adapter(tmp_path / "1")
    assert timeless(several) == timeless(one)


def test_more_processes_than_the_system_can_copy_are_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedloom.engine.machine_choices.can_fork", lambda: False)
    with pytest.raises(UserError, match=r"engine\.workers: .* set it to 1"):
        run(experiment(tiny_model, engine={"workers": 2}), tmp_path / "run")


def test_another_seed_gives_other_bytes(tiny_model: Path, undisturbed: Path, tmp_path: Path) -> None:
    run(experiment(tiny_model, seed=1), tmp_path / "other")
    assert adapter(tmp_path / "other") != adapter(undisturbed)


# The run renames some twenty files into place; these points fall before, between and after its commits.
@pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")
@pytest.mark.parametrize(
    "point, when",
    share([(4, "before"), (2, "after"), (5, "after"), (14, "after"), (9, "before")], every=3),
)
def test_a_run_killed_at_any_commit_ends_with_the_same_bytes(
    point: int, when: str, tiny_model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    value, folder = experiment(tiny_model), tmp_path / "run"
    assert killed_at(lambda: run(value, folder), lambda call, _: call == point, after=when == "after")
    assert not (folder / "result.json").exists()
    result = resume_run(folder, make_progress(quiet=True))
    assert adapter(folder) == adapter(undisturbed)
    assert timeless(result) == timeless(json.loads((undisturbed / "result.json").read_text()))


def test_resuming_a_finished_run_returns_its_result(undisturbed: Path) -> None:
    before = adapter(undisturbed)
    result = resume_run(undisturbed, make_progress(quiet=True))
    assert result == json.loads((undisturbed / "result.json").read_text())
    assert adapter(undisturbed) == before


@pytest.mark.parametrize("pattern", share(["missing", "aligned", "cross", "hybrid"], every=2))
def test_every_pattern_of_modalities_trains(pattern: str, tiny_model: Path, tmp_path: Path) -> None:
    scenario = {"clients": 3, "partition": "by_group", "pattern": pattern, "image_clients": 1}
    value = experiment(
        tiny_model, scenario=scenario, methods=["fedavg"], train={"rounds": 1, "batch_size": 4}
    )
    result = run(value, tmp_path / "run")
    assert set(result["scores"]["fedavg"]["slices"]) == {"both", "image", "text"}
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert sum(client["size"] for client in plan["clients"]) == 18


@pytest.mark.parametrize("pattern", ["missing", "cross"])
def test_published_splits_and_cohorts_train_and_the_report_names_them(
    pattern: str, tiny_model: Path, tmp_path: Path
) -> None:
    scenario = {"mode": "published", "clients": 3, "pattern": pattern, "rate": 0.6}
    train = {"rounds": 2, "batch_size": 4, "cohort": 2, "sampler": "published"}
    value = experiment(tiny_model, seed=7, scenario=scenario, methods=["fedavg", "linear"], train=train)
    run(value, tmp_path / "run")
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert (plan["card"]["modalities"]["examples"]["none"] > 0) == (pattern == "missing")
    lines = [json.loads(line) for line in (tmp_path / "run/record.jsonl").read_text().splitlines()]
    rounds = [[row["client"] for row in line["clients"]] for line in lines if line["kind"] == "round"]
    assert rounds == [list(published_cohort(round, 3, 2)) for round in range(2)]
    page = (tmp_path / "run/report.html").read_text()
    assert "published: drawn as in FedMLLM" in page and "published: the clients of a round" in page


@pytest.mark.parametrize("task", share(["all", "classification", "vqa", "captioning", "grounding"], every=5))
def test_every_task_of_the_drawn_scenes_runs(task: str, tiny_model: Path, tmp_path: Path) -> None:
    value = experiment(
        tiny_model, data={"name": "shapes", "limit": 12, "task": task, "test_share": 0.3},
        methods=["zero-shot", "local", "fedavg", "centralized"], train={"rounds": 1},
    )  # fmt: skip
    result = run(value, tmp_path / "run")
    for scores in result["scores"].values():
        assert 0 <= scores["accuracy"] <= 1
        assert 0 <= scores["unparsed"] <= 1
    assert result["scores"]["local"]["worst"] <= result["scores"]["local"]["best"]
    assert (tmp_path / "run/report.html").stat().st_size < 2_500_000


@pytest.mark.parametrize("name", ["medical", "nature"])
def test_published_data_sets_run(
    name: str, trees: ModuleType, encoded: Callable[..., bytes], tiny_model: Path, tmp_path: Path
) -> None:
    """Questions without any evidence, captions, boxes and answers by kind, each client with a task of its own."""
    data = {"name": name, "root": str(trees.write(name, tmp_path / "data", encoded))}
    value = experiment(
        tiny_model, data=data, methods=["zero-shot", "fedavg"], train={"rounds": 1},
        scenario={"clients": 2, "partition": "by_group", "pattern": "aligned"},
    )  # fmt: skip
    result = run(value, tmp_path / "run")
    assert set(result["scores"]) == {"zero-shot", "fedavg"}
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert sum(client["size"] for client in plan["clients"]) == {"medical": 12, "nature": 11}[name]


def own_folder(folder: Path, rows: list[dict[str, object]]) -> None:
    folder.mkdir()
    for number in range(len(rows)):
        Image.new("RGB", (20 + number, 30), (10 * number, 99, 50)).save(folder / f"{number}.png")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_own_data_runs_and_bad_records_are_reported(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {
            "image": f"{n}.png",
            "text": f"note {n}",
            "question": "Which?",
            "answer": "ab"[n % 2],
            "group": "s" * (n % 3),
        }
        for n in range(16)
    ]
    rows[3]["image"] = "../outside.png"
    own_folder(tmp_path / "own", rows)
    data = {"name": "folder", "root": str(tmp_path / "own"), "max_rejected": 0.1}
    methods = ["zero-shot", "linear", "fedavg"]
    value = experiment(tiny_model, data=data, methods=methods, train={"rounds": 1, "batch_size": 4})
    result = run(value, tmp_path / "run")
    assert set(result["scores"]) == set(methods)
    told = next(json.loads(line) for line in (tmp_path / "run/record.jsonl").open() if '"data"' in line)
    assert told["train"] + told["test"] == 15
    assert len(told["rejected"]) == 1
    assert "line 4" in told["rejected"][0]
    assert "outside.png" in (tmp_path / "run/report.html").read_text()
    strict = experiment(tiny_model, data={**data, "max_rejected": 0.01}, methods=methods)
    with pytest.raises(UserError, match=r"data\.max_rejected.*\n.*line 4"):
        run(strict, tmp_path / "strict")


@pytest.mark.parametrize("too_long", ["skip", "cut"])
def test_what_the_model_cannot_take_is_named_everywhere(
    too_long: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text too long for the model: in the output, the record and the report; everybody else is trained on."""
    rows = [
        {"image": f"{n}.png", "text": f"note {n}", "question": "Which?", "answer": "ab"[n % 2]}
        for n in range(16)
    ]
    rows[5]["text"] = "very long " * 3000
    own_folder(tmp_path / "own", rows)
    data = {"name": "folder", "root": str(tmp_path / "own"), "max_rejected": 0.1, "too_long": too_long}
    value = experiment(tiny_model, data=data, methods=["fedavg"], train={"rounds": 1, "batch_size": 4})
    run_experiment(value, tmp_path / "run", make_progress(quiet=False))
    told = next(json.loads(line) for line in (tmp_path / "run/record.jsonl").open() if '"data"' in line)
    assert told["train"] + told["test"] == (15 if too_long == "skip" else 16)
    (line,) = told["rejected" if too_long == "skip" else "cut"]
    assert line.startswith("data.jsonl, line 6: ") and "too long" in line
    assert "data.jsonl, line 6" in capsys.readouterr().err
    assert "data.jsonl, line 6" in (tmp_path / "run/report.html").read_text()


def test_linear_is_refused_before_training_where_there_are_no_options(
    tiny_model: Path, tmp_path: Path
) -> None:
    data = {"name": "shapes", "task": "captioning", "limit": 8}
    with pytest.raises(UserError, match=r"methods: linear .*no options"):
        run(experiment(tiny_model, data=data, methods=["fedavg", "linear"]), tmp_path / "run")
    assert not (tmp_path / "run/methods").exists()


@pytest.mark.parametrize("name", EXCHANGING)
def test_every_algorithm_trains_the_model(name: str, tiny_model: Path, tmp_path: Path) -> None:
    value = experiment(tiny_model, methods=[name], train={"rounds": 2, "batch_size": 4, "optimizer": "sgd"})
    result = run(value, tmp_path / "run")
    assert result["bytes"][name]["up"] > 0
    rounds = [json.loads(line) for line in (tmp_path / "run/record.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rounds if row["kind"] == "round"] == [0, 1]


def test_generated_letters_are_scored_too(tiny_model: Path, tmp_path: Path) -> None:
    value = experiment(
        tiny_model, methods=["zero-shot"], evaluate={"answer": "letter", "scoring": "generate"}
    )
    scores = run(value, tmp_path / "run")["scores"]["zero-shot"]
    assert scores["auc"] is None
    assert 0 <= scores["unparsed"] <= 1


NOBODY = """
import os, socket, sys
from pathlib import Path

def refuse(*arguments, **named):
    os.write(2, b"a run asked the network for something")
    os._exit(9)

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from fedloom.experiment.experiment import Experiment
from fedloom.system.progress import Progress
from fedloom.runs.single_run import run_experiment
run_experiment(Experiment.from_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Progress(None))
"""


@pytest.mark.parametrize("path", ["tiny", "some-owner/some-model"])
def test_a_run_uses_no_network(path: str, tiny_model: Path, tmp_path: Path) -> None:
    """In a process whose libraries have not been told to stay offline."""
    model = {"path": str(tiny_model) if path == "tiny" else path, "threads": 1}
    value = experiment(tiny_model, methods=["fedavg"], train={"rounds": 1}, model=model)
    (tmp_path / "mine.json").write_text(value.to_json())
    words = [sys.executable, "-c", NOBODY, str(tmp_path / "mine.json"), str(tmp_path / "run")]
    online = {key: one for key, one in os.environ.items() if not key.endswith("_OFFLINE")}
    done = subprocess.run(words, env=online, capture_output=True, text=True, check=False)
    assert "asked the network" not in done.stderr
    assert (done.returncode == 0) == (path == "tiny"), done.stderr
    assert path == "tiny" or "model.network" in done.stderr


@pytest.mark.parametrize("name", [name for name in recipes() if not sweep_keys(name)])
def test_every_recipe_resolves(name: str) -> None:
    overrides = ["data.root=."] if name == "own-data" else []
    value = load_experiment(name, overrides)
    assert Experiment.from_json(value.to_json()) == value


def test_a_prompt_is_the_same_as_a_modifier_and_as_a_setting(tiny_model: Path, tmp_path: Path) -> None:
    train = {"train": {"rounds": 1}}
    modified = {"methods": ["fedavg+prompt"], "algorithms": {"prompt": {"variant": "strict"}}}
    run(experiment(tiny_model, **train, **modified), tmp_path / "modifier")
    evaluate = {"prompt": "strict", "every": 0}
    run(experiment(tiny_model, **train, methods=["fedavg"], evaluate=evaluate), tmp_path / "setting")
    run(experiment(tiny_model, **train, methods=["fedavg"]), tmp_path / "neither")
    assert adapter(tmp_path / "modifier") == adapter(tmp_path / "setting")
    assert adapter(tmp_path / "modifier") != adapter(tmp_path / "neither")


def test_the_published_mode_is_what_its_arguments_and_settings_are(tiny_model: Path, tmp_path: Path) -> None:
    given = {
        "train": {"rounds": 2, "batch_size": 4, "cohort": 2},
        "scenario": {"clients": 3, "pattern": "hybrid"},
        "strategy": {"name": "both", "rank": 2},
    }
    own = dict(ENTRIES["fedyogi"].published)

    def run_with(name: str, mode: str, arguments: object, **changes: object) -> bytes:
        algorithms = {"fedyogi": arguments}
        value = experiment(
            tiny_model, **{**given, **changes}, methods=["fedyogi"], mode=mode, algorithms=algorithms
        )
        run(value, tmp_path / name)
        return adapter(tmp_path / name)

    each = {
        section: {**given.get(section, {}), **settings} for section, settings in PUBLISHED_SETTINGS.items()
    }
    switched = run_with("mode", "published", {})
    assert switched == run_with("each", "corrected", own, **each)
    assert switched != run_with("no faults", "corrected", {**own, "published": False}, **each)
    for section in PUBLISHED_SETTINGS:
        rest = {name: settings for name, settings in each.items() if name != section}
        assert switched != run_with(f"no {section}", "corrected", own, **rest), section


def test_yoco_starts_from_the_weights_it_adapts(tiny_model: Path, tmp_path: Path) -> None:
    still = {"yoco": {"lr": 1e-30}}  # the server does not move, so that the start is what is exported
    strategy = {"name": "lora", "rank": 2, "targets": ["q_proj"]}
    value = experiment(tiny_model, methods=["yoco"], train={"rounds": 1}, strategy=strategy, algorithms=still)
    run(value, tmp_path / "run")
    tuned = prepare(load_vlm(str(tiny_model)), stage("lora", LoRA(2, 16.0, ("q_proj",))), seed=0)
    assert torch.equal(import_adapter(tuned, tmp_path / "run/adapter").flat, svd_start(tuned).flat)


@pytest.mark.parametrize("scoring", share(["generate", "teacher-forced"], every=2))
def test_several_tasks_are_scored_and_compared_by_task(
    tiny_model: Path, tmp_path: Path, scoring: str
) -> None:
    changes = {
        "data": {"name": "shapes", "task": "all", "limit": 16},
        "methods": ["local", "fedavg"],
        "scenario": {"clients": 2},
        "train": {"rounds": 1, "batch_size": 4},
        "evaluate": {"every": 0, "scoring": scoring},
    }
    result = run(experiment(tiny_model, algorithms={}, **changes), tmp_path)
    compared = result["comparison"]
    assert compared["headlines"] == {
        "choice": "accuracy", "vqa": "accuracy", "caption": "cider", "grounding": "iou"
    }  # fmt: skip
    assert sum(compared["mean_rank"].values()) == pytest.approx(3)  # ranks 1 and 2, in each task
    assert list(compared["gain"]) == ["fedavg"] and len(compared["gain"]["fedavg"]) == 2
    assert result["scoring"] == scoring
    for scores in result["scores"].values():
        assert scores["tasks"]["grounding"]["iou"] is not None
        assert set(scores["client_tasks"][0]) <= set(compared["headlines"])


def test_a_judge_that_cannot_be_loaded_stops_a_run_before_it_trains(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.judge"):
        run(experiment(tiny_model, evaluate={"judge": str(tmp_path / "none")}), tmp_path / "run")
    assert not (tmp_path / "run/methods").exists()


def flat(folder: Path, tiny_model: Path, inside: str = "adapter") -> Params:
    tuned = prepare(load_vlm(str(tiny_model)), stage("both", LoRA(2)), seed=0)
    return import_adapter(tuned, folder / inside)


HEAD = 1024
"""Bytes that no head of these messages has."""


def test_two_stages_train_one_part_after_the_other(tiny_model: Path, tmp_path: Path) -> None:
    """The first stage's connector is what training the connector alone gives; the second leaves it alone."""
    stages = {"name": "two-stage", "rank": 2, "stage_rounds": [1, 2]}
    train = {"rounds": 9, "weight_decay": 0.5, "schedule": "constant"}
    two = run(experiment(tiny_model, methods=["fedavg"], strategy=stages, train=train), tmp_path / "two")
    alone = {"name": "connector"}
    run(
        experiment(tiny_model, methods=["fedavg"], strategy=alone, train={**train, "rounds": 1}),
        tmp_path / "alone",
    )
    from safetensors.torch import load_file

    connector = load_file(tmp_path / "alone/adapter/connector.safetensors")
    result = dict(flat(tmp_path / "two", tiny_model).items())
    start = prepare(load_vlm(str(tiny_model)), stage("both", LoRA(2)), seed=0).start
    for name, value in result.items():
        if name.startswith("connector/"):
            torch.testing.assert_close(value, connector[name.partition("/")[2]], rtol=1e-5, atol=1e-6)
        elif name.endswith("lora_b"):
            assert not torch.equal(value, start[name])
    rounds = [
        json.loads(line)["round"]
        for line in (tmp_path / "two/record.jsonl").read_text().splitlines()
        if '"kind": "round"' in line
    ]
    assert rounds == [0, 1, 2]
    size = {
        key: sum(v.numel() for n, v in result.items() if n.startswith(key)) for key in ("connector", "llm")
    }
    clients = len(two["scores"]["fedavg"]["clients"])
    values = clients * 4 * (size["connector"] + 2 * size["llm"])
    assert values < two["bytes"]["fedavg"]["up"] < values + 3 * clients * HEAD
    # In the second stage the connector goes to clients too: one that trains there first knows it from nowhere else.
    values += 2 * clients * 4 * size["connector"]
    assert values < two["bytes"]["fedavg"]["down"] < values + 3 * clients * HEAD


@pytest.mark.parametrize(("name", "kept"), [("share-connector", "llm"), ("share-lora", "connector")])
def test_personal_parts_stay_with_their_client(
    name: str, kept: str, tiny_model: Path, tmp_path: Path
) -> None:
    value = experiment(
        tiny_model, methods=["scaffold"], strategy={"name": name, "rank": 2}, train={"rounds": 2}
    )
    result = run(value, tmp_path / "whole")
    clients = range(len(result["scores"]["scaffold"]["clients"]))
    models = [dict(flat(tmp_path / "whole", tiny_model, f"adapter/client-{k}").items()) for k in clients]
    for key in models[0]:
        same = all(torch.equal(models[0][key], other[key]) for other in models[1:])
        assert same is not key.startswith(kept)
    shared = sum(v.numel() for k, v in models[0].items() if not k.startswith(kept))
    values = 2 * len(clients) * 4 * 2 * shared  # SCAFFOLD also sends a control variate, of what is shared
    for way in ("up", "down"):
        assert values < result["bytes"]["scaffold"][way] < values + 2 * len(clients) * HEAD
    assert result["scores"]["scaffold"]["worst"] <= result["scores"]["scaffold"]["best"]
