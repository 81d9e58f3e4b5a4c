"""What a run is predicted to need, against what it did need."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.e2e.test_runs import experiment
from tests.shares import share
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from fedloom.algorithms import ENTRIES
from fedloom.cli.plan_command import DIVIDED
from fedloom.cli.run_commands import app
from fedloom.client.local_job import Job
from fedloom.client.site import Site
from fedloom.engine.machine_choices import saved_bytes
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.recipes import load_experiment
from fedloom.models.empty_model import empty_vlm, learn_grids, weight_bytes
from fedloom.models.load_model import load_vlm
from fedloom.models.longest_example import longest, tokens_of
from fedloom.models.step_sizes import step_sizes
from fedloom.params import Params
from fedloom.run_log import RunLog
from fedloom.runs import plan_run as plan_module
from fedloom.runs.plan_run import plan_run, probed
from fedloom.runs.run_setup import open_site
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.progress import Progress
from fedloom.tuning.adapters import Tuned, empty_tuned, prepare, release
from fedloom.tuning.strategies import LoRA, stage
from fedloom.types import Conversation
from fedloom.wire.messages import Assignment


def small(tiny_model: Path, **changes: object) -> Experiment:
    return experiment(tiny_model, **{"methods": ["fedavg"], "algorithms": {}, **changes})


@pytest.mark.parametrize("name", ["bundled", "bundled-free"])
def test_a_model_without_values_has_the_shapes_of_the_real_one(name: str) -> None:
    settings = load_experiment("smoke", [f"model.path={name}"]).model
    empty, real = empty_vlm(settings), load_vlm(name)
    assert {key: value.shape for key, value in empty.model.named_parameters()} == {
        key: value.shape for key, value in real.model.named_parameters()
    }
    assert all(value.device.type == "meta" for value in empty.model.parameters())
    total = sum(4 * value.numel() for value in real.model.parameters())
    assert sum(weight_bytes(empty, "float32").values()) == total
    site_images = [image for example in _shapes() for image in example.pictures]
    learn_grids(empty, site_images)
    assert empty.grids(site_images) == real.grids(site_images)


def _shapes():
    from fedloom.config.schema import Data
    from fedloom.data import load_data

    return load_data(Data(name="shapes", limit=3), 0).train


@pytest.mark.parametrize("name", ["lora", "connector", "both"])
def test_what_is_trained_has_the_layout_of_the_real_model(name: str) -> None:
    real = load_vlm("bundled")
    tuned = prepare(real, stage(name, LoRA()), 0)
    settings = load_experiment("smoke").model
    assert empty_tuned(empty_vlm(settings), stage(name, LoRA())).layout == tuned.layout
    release(tuned)


def sent(folder: Path, name: str) -> dict[str, int]:
    return json.loads((folder / "result.json").read_text())["bytes"][name]


@pytest.mark.parametrize(
    "changes",
    share(
        [
            {"methods": ["fedkseed"], "train": {"rounds": 3, "optimizer": "sgd"}},
            {"methods": ["fedavg"]},
            {"strategy": {"name": "two-stage", "rank": 2}},
            {"methods": ["scaffold"]},
            {"communication": {"up": "int8", "down": "bf16"}},
            {"strategy": {"name": "share-connector", "rank": 2}},
            {"train": {"rounds": 3, "cohort": 2}},
        ],
        every=2,
    ),
    ids=str,
)
def test_predicted_bytes_are_the_messages_lengths(
    changes: dict[str, object], tiny_model: Path, tmp_path: Path
) -> None:
    """Heads of later messages have a few more digits, and sampled clients differ by theirs; nothing else differs."""
    value = small(tiny_model, **changes)
    run_experiment(value, tmp_path / "run", Progress(None))
    (name,) = value.methods
    predicted, real = plan_run(value).bytes[name], sent(tmp_path / "run", name)
    messages = 3 * (value.train.cohort or 3)
    for way in ("up", "down"):
        assert abs(real[way] - predicted[way]) <= 40 * messages, way
        assert math.isclose(real[way], predicted[way], rel_tol=0.01) or predicted[way] < 4000 * messages


def fits(tiny_model: Path, name: str) -> bool:
    try:
        return bool(small(tiny_model, methods=[name]))
    except UserError:
        return False


def test_every_algorithm_can_be_planned(tiny_model: Path) -> None:
    names = [name for name, entry in ENTRIES.items() if entry.kind == "server" and fits(tiny_model, name)]
    names += [f"fedavg+{name}" for name in ENTRIES if fits(tiny_model, f"fedavg+{name}")]
    assert len(names) > 20
    plan = plan_run(small(tiny_model, methods=["centralized", "local", "zero-shot", *names]))
    assert list(plan.bytes) == names
    assert all(sent["down"] > 0 and sent["up"] > 0 for sent in plan.bytes.values())
    assert plan.seconds["training"] > 0


def test_methods_with_one_training_take_its_time_and_place_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "machine_speed", lambda device: 1e9)
    methods = ["local", "fedavg", "fedavg+finetune"]
    more = [f"{name}+prior" for name in methods] + ["fedavg+pool-alone+prior"]
    once, again = (
        plan_run(small(tiny_model, methods=names, evaluate={"scoring": "likelihood"}))
        for names in (methods, [*methods, *more])
    )
    assert (again.disk_bytes, again.seconds) == (once.disk_bytes, once.seconds)
    assert list(again.bytes) == ["fedavg", "fedavg+finetune", *more[1:]]


@pytest.mark.parametrize("every", [0, 1])
def test_the_beginning_of_a_training_counts_once_where_another_method_trains_it(
    every: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "machine_speed", lambda device: 1e9)
    shorter, longer, both = (
        plan_run(small(tiny_model, methods=names, evaluate={"every": every})).seconds["training"]
        for names in (["fedavg"], ["fedavg+finetune"], ["fedavg", "fedavg+finetune"])
    )
    assert both == pytest.approx(shorter + longer if every else longer)


@pytest.mark.parametrize("name", ["centralized", "local"])
def test_baselines_send_nothing(name: str, tiny_model: Path) -> None:
    plan = plan_run(small(tiny_model, methods=[name]))
    assert plan.bytes == {} and plan.classes[0].bytes == {} and plan.seconds["training"] > 0


def test_a_run_keeps_the_prediction_beside_what_was_measured(tiny_model: Path, tmp_path: Path) -> None:
    run_experiment(small(tiny_model), tmp_path / "run", Progress(None))
    lines = {line["kind"]: line for line in RunLog(tmp_path / "run" / "record.jsonl")}
    assert "failed" not in lines["plan"]
    assert lines["plan"]["bytes"]["fedavg"]["up"] > 0
    assert lines["end"]["peak_bytes"] >= lines["plan"]["program"] > 0
    assert lines["end"]["seconds"] > 0


def test_clients_are_grouped_by_what_they_see(tiny_model: Path) -> None:
    plan = plan_run(small(tiny_model, scenario={"clients": 4, "pattern": "cross"}))
    assert {one.modalities: one.clients for one in plan.classes} == {"image": 2, "text": 2}
    image, _ = sorted(plan.classes, key=lambda one: one.modalities)
    assert set(image.memory) == {"weights", "adapter", "gradients", "optimizer", "activations"}
    assert image.memory["adapter"] == 4 * plan.trained
    assert image.memory["optimizer"] == 2 * image.memory["adapter"], "AdamW has two moments"


def job_of(site: Site):
    return site.job(Assignment("fedavg", 0, 0, 0, site.method("fedavg").start))


@pytest.mark.parametrize(
    "data", [["data.name=emoji"], ["data.name=shapes"], ["data.name=shapes", "data.task=captioning"]], ids=str
)
def test_estimated_activations_are_near_the_counted_ones(data: list[str], tmp_path: Path) -> None:
    """The estimate is for batches of the longest example, so it may be above what an average batch keeps."""
    value = load_experiment("smoke", [*data, "data.limit=24", "scenario.clients=2"])
    plan = plan_run(value)
    with open_site(value, tmp_path) as site:
        counted = saved_bytes(site.tuned, job_of(site))
        assert isinstance(site.tuned.start, Params)
    assert counted * 0.75 <= plan.classes[0].memory["activations"] <= counted * 1.5


def test_attention_without_a_fused_kernel_keeps_the_weights_of_all_pairs(tmp_path: Path) -> None:
    """As with `engine.deterministic` on a card; the estimate is for batches of the longest example."""
    value = load_experiment("smoke", ["data.name=shapes", "data.task=captioning", "data.limit=24"])
    with open_site(value, tmp_path) as site:
        fused = saved_bytes(site.tuned, job_of(site))
        with sdpa_kernel(SDPBackend.MATH):
            more = saved_bytes(site.tuned, job_of(site)) - fused
        sizes, talks = step_sizes(site.tuned.vlm, 0), site.method("fedavg").conversations(0)
        rows, tokens = value.train.batch_size, tokens_of(site.tuned.vlm, longest(site.tuned.vlm, talks))[0]
    plain, kept = (sizes.activation_bytes(rows, tokens, 1, 4, plain=plain) for plain in (True, False))
    assert 0 < more <= plain - kept <= 3 * more


def test_the_command_prints_every_kind_of_memory_and_reads_no_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("safetensors.torch.load_file", None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    result = CliRunner().invoke(app, ["plan", "smoke"])
    assert result.exit_code == 0, result.stderr
    for word in ("weights", "adapter", "gradients", "optimizer", "activations", "bytes down", "on disk"):
        assert word in result.stdout
    value = json.loads(CliRunner().invoke(app, ["plan", "smoke", "--json"]).stdout)
    assert value["probed"] is False
    divided = CliRunner().invoke(app, ["plan", "smoke", "--set", "model.device_map=auto"])
    assert DIVIDED in divided.stdout and DIVIDED not in result.stdout


def mixed(tiny_model: Path, folder: Path) -> Experiment:
    """Return an experiment of two clients: one of ten short texts, and one of five images with long questions."""
    (folder / "images").mkdir(parents=True)
    options = {"answer": "left", "options": ["left", "right"]}
    few = [
        {
            "id": f"few-{k}",
            "group": "few",
            "image": f"images/{k}.png",
            "question": f"{k} {'Where is it? ' * 9}",
        }
        for k in range(6)
    ]
    many = [
        {"id": f"many-{k}", "group": "many", "text": f"It is {k}.", "question": "Where?"} for k in range(11)
    ]
    for name, records in (("train", [*few[1:], *many[1:]]), ("test", [few[0], many[0]])):
        lines = (json.dumps({**record, **options}) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for k in range(6):
        Image.new("RGB", (24, 24), (40 * k, 90, 30)).save(folder / f"images/{k}.png")
    return small(
        tiny_model,
        data={"name": "folder", "root": str(folder)},
        scenario={"clients": 2, "partition": "by_group"},
        train={"rounds": 2, "batch_size": 2},
        model={"path": str(tiny_model), "threads": 1, "device": "cpu"},
        engine={"cache": False},
    )


def test_a_probe_measures_the_class_that_it_corrects_by(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second for each token of its batch here: so much has to come out for the class that was measured."""
    value = mixed(tiny_model, tmp_path / "data")
    before = plan_run(value)
    clock, measured = [0.0], list[Conversation]()

    def train(tuned: Tuned, jobs: list[Job]) -> None:
        (job,) = jobs
        measured.extend(job.conversations)
        clock[0] += sum(tokens_of(tuned.vlm, one)[0] for one in job.conversations)

    monkeypatch.setattr(plan_module, "train", train)
    monkeypatch.setattr(plan_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(plan_module, "resident_bytes", lambda: 0)
    monkeypatch.setattr(plan_module, "peak_bytes", lambda: 10**9)
    after = probed(value, before)
    few, many = sorted(after.classes, key=lambda one: one.examples)
    assert (few.examples, few.modalities, many.examples, many.modalities) == (
        (5, 5),
        "image",
        (10, 10),
        "text",
    )
    assert few.tokens > many.tokens, "the largest client is not that of the longest example"
    assert {one.picture is not None for one in measured} == {True}
    assert len(set(map(id, measured))) == 1
    assert few.step_seconds == pytest.approx(2 * few.tokens)
    assert sum(few.memory.values()) - few.memory["weights"] >= 10**9
    faster = [
        new.step_seconds / old.step_seconds for new, old in zip(after.classes, before.classes, strict=True)
    ]
    assert faster[0] == pytest.approx(faster[1])


def test_a_probe_takes_real_steps(tiny_model: Path, tmp_path: Path) -> None:
    """Whatever was estimated, the times of a probe are this machine's, so a wrong estimate leaves no trace in them."""
    value = small(tiny_model)
    plan = plan_run(value)
    wrong = replace(
        plan, classes=tuple(replace(one, step_seconds=1e6 * one.step_seconds) for one in plan.classes)
    )
    most = max(range(len(plan.classes)), key=lambda at: plan.classes[at].memory["activations"])
    one, other = (probed(value, given).classes[most].step_seconds for given in (plan, wrong))
    assert 1e-2 < one / other < 1e2


def test_a_probe_is_said_in_json(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(small(tiny_model).to_json())
    result = CliRunner().invoke(app, ["plan", str(file), "--probe", "--json"])
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert value["probed"] is True
    for phase in ("estimate", "loading data and model", "probe"):
        assert f"{phase}: begins" in result.stderr
    quiet = CliRunner().invoke(app, ["plan", str(file), "--probe", "--quiet"])
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert "--probe corrects" not in quiet.stdout


def test_a_grid_is_refused_with_advice() -> None:
    result = CliRunner().invoke(app, ["plan", "fedmllm/baseline"])
    assert result.exit_code == 2
    assert "is a grid" in result.stderr
