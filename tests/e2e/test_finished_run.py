"""A finished run used from Python and from the command line: tables, questions, other data, exports."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.adapter_files import import_adapter
from typer.testing import CliRunner

import fedloom
from fedloom.cli.run_commands import app
from fedloom.report.confidence_intervals import interval
from fedloom.runs.evaluate_run import evaluate
from fedloom.runs.export_models import export_from_run
from fedloom.runs.finished_run import FinishedRun
from fedloom.runs.verify_files import verify
from fedloom.system.errors import UserError

METHODS = ("zero-shot", "linear", "local", "fedavg", "fedavg+ditto", "centralized")
OPTIONS = ("a cat", "a dog", "a house")


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    experiment = fedloom.Experiment(
        name="finished",
        data={"name": "emoji", "limit": 18, "test_share": 0.03},
        scenario={"clients": 2},
        model={"path": str(tiny_model), "threads": 1},
        strategy={"rank": 4},
        train={"rounds": 2, "batch_size": 4, "lr": 0.05},
        methods=METHODS,
        evaluate={"every": 0},
        engine={"workers": 1},
    )
    return fedloom.run(experiment, tmp_path_factory.mktemp("finished") / "run", quiet=True)


@pytest.fixture
def image() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_a_run_is_the_content_of_its_result_file(run: FinishedRun) -> None:
    content = json.loads((run.folder / "result.json").read_text())
    assert run == content and json.loads(json.dumps(dict(run))) == content
    again = fedloom.load_run(run.folder)
    assert again == content and again.methods == METHODS


def test_tables_hold_what_the_files_say(run: FinishedRun) -> None:
    scores = json.loads((run.folder / "result.json").read_text())["scores"]
    (accuracy,) = run.scores.where(method="fedavg", slice="both", metric="accuracy")
    assert accuracy.value == scores["fedavg"]["accuracy"] and accuracy.task is None
    assert [(row.round, row.client) for row in run.rounds.where(method="fedavg")] == [(0, None), (1, None)]
    assert {row.client for row in run.rounds.where(method="local")} == {0, 1}
    assert all(row.loss is not None and row.clients == (0, 1) for row in run.rounds.where(method="fedavg"))
    assert [row.client for row in run.clients] == [0, 1]
    assert sum(row.examples for row in run.clients) == 18
    assert run.clients[1].scores["local"] == scores["local"]["clients"][1]
    assert {row.method for row in run.predictions} == set(METHODS)
    assert run.report() == run.folder / "report.html"


def test_a_table_becomes_a_data_frame_or_says_what_is_missing(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        run.clients.to_pandas()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: rows))
    rows = run.clients.to_pandas()
    assert rows[0]["scores.fedavg"] == run.clients[0].scores["fedavg"] and rows[1]["client"] == 1
    with pytest.raises(UserError, match="Did you mean method"):
        run.scores.where(methd="fedavg")


def test_models_answer_the_test_set_as_in_the_run(run: FinishedRun) -> None:
    """So the right values are loaded: of every method, and of every client that has its own."""
    from fedloom.data import load_data

    experiment = fedloom.Experiment.from_json((run.folder / "experiment.json").read_text())
    test = list(load_data(experiment.data, 0).test)
    for method, client in [
        ("zero-shot", None),
        ("fedavg", None),
        ("centralized", None),
        ("local", 0),
        ("local", 1),
        ("fedavg+ditto", 1),
    ]:
        found = evaluate(run, test, [method], client, {})
        stored = run.predictions.where(method=method, client=client)
        assert len(stored) == len(found.predictions)
        for one, other in zip(stored, found.predictions, strict=True):
            assert one.example == other.example
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
    assert (
        run.predictions.where(method="local", client=0)[0]
        != run.predictions.where(method="local", client=1)[0]
    )


def test_asking_gives_an_option_or_free_text(run: FinishedRun, image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "x.png")
    replies = [
        run.ask(shown, "A note.", "What is it?", OPTIONS)
        for shown in (image, tmp_path / "x.png", str(tmp_path / "x.png"), np.array(image))
    ]
    assert len({(reply.answer, tuple((reply.scores or {}).values())) for reply in replies}) == 1
    reply = replies[0]
    assert reply.scores is not None and sum(reply.scores.values()) == pytest.approx(1)
    assert reply.answer == max(reply.scores, key=reply.scores.__getitem__) and reply.method == "fedavg"
    assert run.ask(image, question="What is it?").scores is None
    own = run.model("local", client=1).ask(image, "A note.", "What is it?", OPTIONS)
    assert own.scores != reply.scores and own.client == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"question": " "}, "question is needed"),
        ({"question": "?", "options": "yes"}, "list of texts"),
        ({"question": "?", "options": ["yes"]}, "at least two"),
        ({"question": "?", "options": ["yes", " YES"]}, "differ in more than case and space"),
        ({"question": "?", "options": ["<5", "< 5"]}, "differ in more than case and space"),
        ({"question": "a\udcff"}, "question: holds a byte or half of a character"),
        ({"question": "?", "text": "a\ud83d"}, "text: holds a byte or half of a character"),
        ({"question": "?", "options": ["yes", "\udcff"]}, "options: holds a byte or half of a character"),
        ({"question": "word " * 3000}, "is too long: .* tokens, more than the"),
        ({"question": "?", "text": "word " * 3000, "options": ["yes", "no"]}, "is too long: .* tokens"),
        ({"question": "?", "image": "nowhere.png"}, "nowhere.png is missing"),
        ({"question": "?", "image": 3}, "a path, a PIL image or an array"),
        ({"question": "?", "method": "fedavgg"}, "Did you mean fedavg"),
        ({"question": "?", "method": "linear"}, "not a known method of this run with a model"),
        ({"question": "?", "method": "local"}, "choose client 0 to 1"),
        ({"question": "?", "method": "local", "client": 2}, "clients 0 to 1"),
        ({"question": "?", "method": "fedavg", "client": 0}, "leave out client 0"),
    ],
)
def test_mistakes_are_one_message(ask: dict[str, Any], message: str, run: FinishedRun) -> None:
    with pytest.raises(UserError, match=message):
        run.ask(**ask)


def test_a_model_whose_output_is_not_finite_chooses_no_option(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fedloom.runs.trained_model.score_options", lambda vlm, batch: torch.full((1, 3), torch.nan)
    )
    with pytest.raises(UserError, match="fedavg cannot answer: its output is not finite"):
        run.ask(None, "A note.", "What is it?", OPTIONS)


def test_own_metrics_come_from_the_predictions(run: FinishedRun) -> None:
    found = fedloom.evaluate(run, metrics={"first": lambda example, answer: float(answer == 0)})
    rows = run.predictions.where(method="fedavg", slice="both", client=None)
    wanted = sum(row.label == 0 for row in rows) / len(rows)
    (score,) = found.scores.where(method="fedavg", slice="both", metric="first")
    assert score.value == pytest.approx(wanted)
    (accuracy,) = found.scores.where(method="fedavg", slice="image", metric="accuracy")
    assert accuracy.value == run["scores"]["fedavg"]["slices"]["image"]["accuracy"]


def test_records_from_python_are_answered(run: FinishedRun, image: Image.Image) -> None:
    rows = [
        {"image": image, "text": "A note.", "question": "What?", "answer": "a cat", "options": list(OPTIONS)},
        {"text": "Another.", "question": "What?", "answer": "a dog", "options": list(OPTIONS)},
        {"question": "What?", "answer": "a dog"},
    ]
    found = fedloom.evaluate(run, rows, methods=["fedavg", "zero-shot"])
    assert {row.example for row in found.predictions} and len(found.skipped) == 1
    assert "neither image nor text" in found.skipped[0]
    assert {row.method for row in found.scores} == {"fedavg", "zero-shot"}


@pytest.mark.parametrize(("method", "client"), [("fedavg", None), ("local", 1), ("fedavg+ditto", 0)])
def test_an_exported_adapter_loads_with_stock_peft_alone(
    method: str, client: int | None, run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModel
    from transformers import AutoImageProcessor, AutoTokenizer

    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    out = tmp_path / "adapter"
    export_from_run(run.folder, out, method=method, client=client)
    assert verify(out)[1] == []
    stock = AutoPeftModel.from_pretrained(out)
    tuned = (model := run.model(method, client)).models.context.tuned
    params = model.models.params(model.of)
    read = import_adapter(tuned, out)
    assert torch.equal(read.flat, params.flat)
    ids = torch.tensor([[5, 9, 30, 7]])
    tuned.write(params)
    with torch.no_grad():
        torch.testing.assert_close(stock(input_ids=ids).logits, tuned.vlm.model(input_ids=ids).logits)
    assert len(AutoTokenizer.from_pretrained(out)) == len(tuned.vlm.tokenizer)
    AutoImageProcessor.from_pretrained(out)
    card, prompt = (out / "README.md").read_text(), json.loads((out / "prompt.json").read_text())
    assert card.startswith("---\n") and "library_name: peft" in card and "federated-learning" in card
    who = "Client 1 trained alone" if method == "local" else "2 clients"
    for part in (who, "Rounds:** 2", "Refused updates:** none", "SHA-256", "95 % interval", method):
        assert part in card
    assert card.count("| 2 |") == (1 if method == "local" else 2), "each client took part in both rounds"
    assert "What is shown?" in prompt["example"]["prompt"]


def test_cards_and_reports_give_the_same_interval(run: FinishedRun, tmp_path: Path) -> None:
    """Emoji are tested in several styles, so that there are fewer independent questions than examples."""
    count, known = (
        len({row.example for row in run.predictions}),
        run["independent_questions"]["test"]["choice"],
    )
    assert known < count
    low, high = interval(run["scores"]["fedavg"]["accuracy"], known)
    export_from_run(run.folder, tmp_path / "adapter", method="fedavg")
    for card in (run.folder / "adapter/README.md", tmp_path / "adapter/README.md"):
        text = card.read_text()
        assert f"On {count} test examples (as informative as {known:,.0f} independent ones)" in text
        assert f"{low:.3f} to {high:.3f}" in text


def test_the_runs_own_adapter_is_complete(run: FinishedRun) -> None:
    adapter = run.folder / "adapter"
    assert {"README.md", "prompt.json", "tokenizer_config.json"} <= {file.name for file in adapter.iterdir()}
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base).is_absolute() and (Path(base) / "config.json").is_file()


def test_a_merged_model_answers_as_the_adapter(run: FinishedRun, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    export_from_run(run.folder, tmp_path / "merged", merged=True)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    model = run.model("fedavg")
    model.models.context.tuned.write(model.models.params(model.of))
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        ours, theirs = model.models.context.vlm.model(input_ids=ids).logits, stock(input_ids=ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert verify(tmp_path / "merged")[1] == []
    assert "library_name: transformers" in (tmp_path / "merged/README.md").read_text()


def test_another_rank_is_the_nearest_of_that_rank(run: FinishedRun, tmp_path: Path) -> None:
    """The product of the factors loses exactly the smallest singular values; at the full rank nothing."""
    from safetensors.torch import load_file

    def products(folder: Path) -> dict[str, torch.Tensor]:
        tensors = load_file(folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"]
        names = [name for name in tensors if "lora_A" in name]
        return {name: scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name] for name in names}

    for rank in (4, 2):
        export_from_run(run.folder, tmp_path / str(rank), rank=rank)
    whole, same, less = (
        products(folder) for folder in (run.folder / "adapter", tmp_path / "4", tmp_path / "2")
    )
    for name, product in whole.items():
        torch.testing.assert_close(same[name], product, rtol=1e-4, atol=1e-6)
        lost = torch.linalg.svdvals(product)[2:].norm()
        assert float((less[name] - product).norm()) == pytest.approx(float(lost), rel=1e-3, abs=1e-6)
    with pytest.raises(UserError, match="1 to 4"):
        export_from_run(run.folder, tmp_path / "more", rank=5)


def test_the_base_beside_an_adapter_is_the_base(run: FinishedRun, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    export_from_run(run.folder, tmp_path / "out", with_base=True)
    base = json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str((tmp_path / "out/base").resolve())
    beside = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    experiment = json.loads((run.folder / "experiment.json").read_text())
    own = AutoModelForImageTextToText.from_pretrained(experiment["model"]["path"]).state_dict()
    assert beside.keys() == own.keys() and all(torch.equal(beside[name], own[name]) for name in own)


def test_an_adapter_whose_base_is_in_no_folder_says_how_to_get_one(tiny_model: Path, tmp_path: Path) -> None:
    """The base model has a connector that was made for the run, and a run writes no whole models."""
    from peft import AutoPeftModel

    experiment = fedloom.Experiment(
        name="new-connector",
        data={"name": "emoji", "limit": 12, "test_share": 0.03},
        scenario={"clients": 1},
        model={"path": str(tiny_model), "threads": 1, "connector": "mlp2"},
        train={"rounds": 1},
        methods=("fedavg",),
        engine={"workers": 1},
    )
    made = fedloom.run(experiment, tmp_path / "run", quiet=True)
    export_from_run(made.folder, tmp_path / "out")
    inside, exported = (
        (folder / "README.md").read_text() for folder in (made.folder / "adapter", tmp_path / "out")
    )
    assert "fedloom export" in inside and "from_pretrained" not in inside
    assert str((tmp_path / "out/base").resolve()) in exported and "from_pretrained" in exported
    AutoPeftModel.from_pretrained(tmp_path / "out")


def test_an_export_overwrites_nothing(run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        export_from_run(run.folder, tmp_path)
    with pytest.raises(UserError, match="has no adapters"):
        export_from_run(run.folder, tmp_path / "x", merged=True, rank=2)


def test_the_commands(run: FinishedRun, image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "x.png")
    folder, shown = str(run.folder), str(tmp_path / "x.png")

    def call(*words: str) -> Any:
        return CliRunner().invoke(app, [*words])

    question = ["--question", "What is it?", "--options", "a cat|a dog", "--options", "a house"]
    asked = call("ask", folder, "--image", shown, *question, "--json")
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["scores"].keys() == set(OPTIONS)
    assert (
        "%" in call("ask", folder, "--image", shown, *question, "--method", "local", "--client", "1").stdout
    )
    wrong = call("ask", folder, "--question", "?", "--image", "none.png")
    assert wrong.exit_code == 2 and "none.png is missing" in wrong.output
    plugin = tmp_path / "mine.py"
    plugin.write_text("METRICS = {'first': lambda example, answer: float(answer == 0)}\n")
    scored = call(
        "eval", folder, "--plugin", str(plugin), "--method", "fedavg", "--out", str(tmp_path / "p.jsonl")
    )
    assert scored.exit_code == 0, scored.output
    assert "first" in scored.stdout and (tmp_path / "p.jsonl").read_text().count("\n") > 20
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        image.save(tmp_path / "images" / name / "1.png")
    assert "accuracy" in call("eval", folder, "--data", str(tmp_path / "images"), "--method", "fedavg").stdout
    exported = call("export", folder, "--method", "centralized", "--out", str(tmp_path / "out"))
    assert exported.exit_code == 0, exported.output
    assert (tmp_path / "out/adapter_config.json").is_file()


@pytest.mark.parametrize("name", ["predictions.jsonl", "manifest.json", "adapter/README.md", "report.html"])
@pytest.mark.parametrize("words", [["report", "--out"], ["leaderboard", "--csv"], ["eval", "--out"]])
def test_no_output_overwrites_a_file_of_a_run(
    words: list[str], name: str, run: FinishedRun, tmp_path: Path
) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    shutil.copytree(run.folder, other)
    link.symlink_to(other, target_is_directory=True)
    command, option = words
    result = CliRunner().invoke(app, [command, str(run.folder), option, str(link / name)])
    assert result.exit_code == 2 and "which would be lost" in result.stderr
    assert verify(other)[1] == []


def test_a_report_may_be_written_again_and_beside_a_run(run: FinishedRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    for name in ("report.html", "again.html", "again.html"):
        result = CliRunner().invoke(app, ["report", str(folder), "--out", str(folder / name)])
        assert result.exit_code == 0, result.stderr
    both = CliRunner().invoke(
        app, ["report", str(folder), str(run.folder), "--out", str(folder / "answers.html")]
    )
    assert both.exit_code == 2 and "which would be lost" in both.stderr
    assert verify(folder)[1] == []


@pytest.mark.parametrize("place", [".", "..", "folder"])
@pytest.mark.parametrize("words", [["report", "--out"], ["leaderboard", "--csv"], ["eval", "--out"]])
def test_a_folder_in_place_of_a_file_is_named(
    words: list[str], place: str, run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    command, option = words
    result = CliRunner().invoke(app, [command, str(run.folder), option, place])
    assert result.exit_code == 2 and f"{place}: it is a folder; a file is needed" in result.stderr
    assert [file.name for file in tmp_path.rglob("*")] == ["here", "folder"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no records"),
        (b"image,question,answer\n", "holds no records"),
        (b"picture,q,a\nx.png,what,yes\n", "line 2: it has no question, answer, image or text"),
        (bytes(range(256)), "not UTF-8 text"),
    ],
)
def test_a_file_without_usable_records_is_named(
    content: bytes, words: str, run: FinishedRun, tmp_path: Path
) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes(content)
    out = CliRunner().invoke(app, ["eval", str(run.folder), "--data", str(file)])
    assert out.exit_code == 2 and "Traceback" not in out.output
    assert "mine.csv" in out.stderr and words in out.stderr


STAGES = {
    "ask": (["--question", "What is it?", "--options", "a cat|a dog"], ("loading model", "answer")),
    "eval": (["--data", "{}/images", "--method", "fedavg"], ("loading model", "evaluation")),
    "export": (["--out", "{}/out"], ("loading model", "export")),
}


@pytest.mark.parametrize("name", STAGES)
def test_every_phase_of_a_command_is_a_stage(
    name: str, run: FinishedRun, image: Image.Image, tmp_path: Path
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        image.save(tmp_path / "images" / label / "1.png")
    options, stages = STAGES[name]
    words = [name, str(run.folder), *(word.format(tmp_path) for word in options), "--json"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)
    lines = shown.stderr.splitlines()
    begun = [at for at, line in enumerate(lines) if ": begins, " in line]
    assert [lines[at].split(":")[0] for at in begun if "features" not in lines[at]] == list(stages)
    assert sum(": done in " in line for line in lines) == len(begun), "each stage comes to its end"
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    quiet = CliRunner().invoke(app, [*words, "--quiet"])
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert json.loads(quiet.stdout) == json.loads(shown.stdout)


def test_an_unknown_method_is_never_left_out_silently(run: FinishedRun) -> None:
    with pytest.raises(UserError, match=r'"fedavgg" is not a known method of this run\. Did you mean fedavg'):
        fedloom.evaluate(run, methods=["fedavg", "fedavgg"])
    with pytest.raises(UserError, match="no prediction is of a model of client 7's own, with fedavg"):
        fedloom.evaluate(run, methods=["fedavg"], client=7)
