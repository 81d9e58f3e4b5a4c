"""Whole runs on a language model that sees no images: what it cannot see is named, and the rest works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.clients import EXCHANGING
from tests.shares import each_once, share
from tests.tiny_model import make_llama

from fedloom.experiment.experiment import Experiment
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.progress import make_progress


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random language model with the vocabulary of the bundled model and a template for plain text."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return make_llama(tmp_path_factory.mktemp("llama") / "model", template)


def experiment(folder: Path, **changes: Any) -> Experiment:
    values: dict[str, Any] = {
        "data": {"name": "emoji", "limit": 18, "test_share": 0.03},
        "scenario": {"clients": 3, "partition": "dirichlet", "pattern": "aligned"},
        "model": {"path": str(folder), "threads": 1},
        "strategy": {"name": "lora", "rank": 2},
        "train": {"rounds": 1, "batch_size": 4},
        "methods": ["zero-shot", "linear", "local", "fedavg", "centralized"],
    }
    return Experiment.from_json(json.dumps({**values, **changes}))


def run(value: Experiment, folder: Path, quiet: bool = True) -> dict[str, Any]:
    return run_experiment(value, folder, make_progress(quiet=quiet))


def line(folder: Path, kind: str) -> dict[str, Any]:
    lines = [json.loads(one) for one in (folder / "record.jsonl").read_text().splitlines()]
    return next(one for one in lines if one["kind"] == kind)


def test_images_that_the_model_cannot_see_are_named_in_output_record_and_report(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    result = run(experiment(llama), folder, quiet=False)
    assert all(set(scores["slices"]) == {"text"} for scores in result["scores"].values())
    data, plan = line(folder, "data"), json.loads((folder / "plan.json").read_text())
    assert data["unseen"] == data["train"] + data["test"]
    assert plan["card"]["modalities"]["clients"]["T"] == 3
    assert f"{data['unseen']} examples are used without their images" in capsys.readouterr().err
    page = (folder / "report.html").read_text()
    assert f"the images of {data['unseen']} examples were left out" in page
    assert "A language model reads text and answers in words" in page


def test_the_report_shows_how_stock_libraries_load_the_adapter(llama: Path, tmp_path: Path) -> None:
    run(experiment(llama, methods=["fedavg"]), tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    assert "AutoModelForCausalLM" in page and "AutoModelForImageTextToText" not in page


@pytest.mark.parametrize("name", share(EXCHANGING, every=5))
def test_every_algorithm_trains_a_language_model(name: str, llama: Path, tmp_path: Path) -> None:
    result = run(experiment(llama, methods=[f"{name}+prompt", f"{name}+adaptive"]), tmp_path / "run")
    assert set(result["scores"]) == {f"{name}+prompt", f"{name}+adaptive"}
    assert min(sent["up"] for sent in result["bytes"].values()) > 0


@pytest.mark.parametrize(
    ("partition", "scoring"),
    each_once(("iid", "dirichlet", "by_group"), ("likelihood", "generate", "teacher-forced")),
)
def test_every_division_and_every_way_of_scoring_works(
    partition: str, scoring: str, llama: Path, tmp_path: Path
) -> None:
    scenario = {"clients": 3, "partition": partition, "pattern": "missing"}
    value = experiment(llama, scenario=scenario, methods=["fedavg"], evaluate={"scoring": scoring})
    assert 0 <= run(value, tmp_path / "run")["scores"]["fedavg"]["accuracy"] <= 1


@pytest.mark.parametrize("strategy", ["connector", "both", "two-stage", "share-connector", "share-lora"])
def test_what_needs_a_connector_is_refused(strategy: str, llama: Path, tmp_path: Path) -> None:
    value = experiment(llama, strategy={"name": strategy}, train={"rounds": 2})
    with pytest.raises(UserError, match=r"no connector.*set strategy\.name to lora"):
        run(value, tmp_path / "run")
    with pytest.raises(UserError, match=r"model\.connector"):
        run(experiment(llama, model={"path": str(llama), "connector": "mlp2"}), tmp_path / "other")


@pytest.mark.parametrize("pattern", ["cross", "hybrid"])
def test_clients_with_images_alone_are_refused(pattern: str, llama: Path, tmp_path: Path) -> None:
    scenario = {"clients": 3, "partition": "iid", "pattern": pattern}
    with pytest.raises(UserError, match=rf"scenario\.pattern is {pattern}.* sees text only.*aligned"):
        run(experiment(llama, scenario=scenario), tmp_path / "run")
    assert not (tmp_path / "run/plan.json").exists()


def test_an_image_alone_is_an_invalid_record(llama: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"note {n}", "question": "Which?", "answer": "ab"[n % 2], "options": ["a", "b"]}
        for n in range(16)
    ]
    for n in (4, 5):
        rows[n]["image"] = "one.png"
    del rows[5]["text"]
    folder = tmp_path / "own"
    folder.mkdir()
    Image.new("RGB", (20, 30)).save(folder / "one.png")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"name": "folder", "root": str(folder)}
    with pytest.raises(UserError, match=r"data\.max_rejected.*\n.*line 6: shows an image and no text"):
        run(experiment(llama, data=data), tmp_path / "strict")
    run(experiment(llama, data={**data, "max_rejected": 0.1}, methods=["fedavg"]), tmp_path / "run")
    recorded = line(tmp_path / "run", "data")
    assert recorded["train"] + recorded["test"] == 15 and recorded["unseen"] == 1
    assert re.match(r"data\.jsonl, line 6: shows an image and no text", recorded["rejected"][0])


def test_data_of_images_alone_are_refused_before_anything_is_written(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images? .*sees text only"):
        run(experiment(llama, data={"name": "digits", "limit": 18}), tmp_path / "run")
    assert not (tmp_path / "run/plan.json").exists()
