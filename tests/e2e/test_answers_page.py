"""The page of answers of a real run: its examples follow from its predictions, it loads nothing, and it stays small."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.experiment.experiment import Experiment
from fedloom.runs.run_folder import choices_digest, is_finished
from fedloom.runs.run_identity import identity
from fedloom.runs.single_run import run_experiment
from fedloom.runs.verify_files import verify
from fedloom.runs.write_pages import write_pages
from fedloom.system.manifest import read_manifest
from fedloom.system.progress import Progress
from fedloom.tasks.predictions import prediction_line, read_predictions

EVERY = {"zero-shot": 2, "local": 3, "fedavg": 5, "centralized": 1}
"""Method → n: each n-th answer is made right, so that answers differ whatever so small a training changes."""


@pytest.fixture
def copied(answered: Path, tmp_path: Path) -> Path:
    """A copy of the run with made-up answers and pages of these; without a manifest, which has the digests of the real ones."""
    copy = Path(shutil.copytree(answered, tmp_path / "copy"))
    places = defaultdict[tuple[str, int | None, str], int](int)
    lines = []
    for row in read_predictions(copy / "predictions.jsonl"):
        place = places[row.method, row.client, row.slice]
        places[row.method, row.client, row.slice] += 1
        lines.append(prediction_line(replace(row, correct=place % EVERY.get(row.method, 1) == 0)))
    (copy / "predictions.jsonl").write_bytes(b"".join(lines))
    (copy / "manifest.json").unlink()
    write_pages(copy)
    return copy


def section(folder: Path) -> str:
    """The text of the report about its page of answers."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = re.search(r"<h2>Answers</h2>(.*?)</section>", page, re.DOTALL)
    assert found is not None
    return found[1]


def test_it_is_a_file_of_the_run(answered: Path) -> None:
    manifest = read_manifest(answered)
    assert manifest is not None and is_finished(answered) and verify(answered)[1] == []
    there = (answered / "answers.html").exists()  # not if no answer changed
    assert there == ("answers.html" in manifest.files) == ('href="answers.html"' in section(answered))


def test_it_shows_the_first_examples_whose_answers_changed(copied: Path) -> None:
    right = defaultdict[tuple[str, int | None, str], dict[str, bool]](dict)
    for row in read_predictions(copied / "predictions.jsonl"):
        right[row.method, row.client, row.slice][row.example] = row.correct
    pairs = [(("zero-shot", None, part), ("fedavg", None, part)) for part in ("both", "image", "text")]
    pairs += [(("local", client, "both"), ("fedavg", None, "both")) for client in range(3)]
    expected: list[str] = []
    for before, after in pairs:
        for better in (True, False):
            changed = [k for k, old in right[before].items() if old != right[after][k] and old != better]
            expected += changed[:3]
    page = (copied / "answers.html").read_text(encoding="utf-8")
    assert re.findall(r'<caption class="hidden">Answers to example (.*?)</caption>', page) == expected
    assert len(expected) == 6 * 2 * 3


def test_it_loads_nothing_and_is_small(copied: Path) -> None:
    page = (copied / "answers.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and "<script" not in page
    sources = re.findall(r'src="(.{0,30})', page)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?:", page)
    assert len(page) < 2_500_000


def test_a_report_can_be_written_elsewhere_and_again(copied: Path, tmp_path: Path) -> None:
    before = (copied / "answers.html").read_bytes()
    result = CliRunner().invoke(app, ["report", str(copied), "--out", str(tmp_path / "mine.html")])
    assert result.exit_code == 0, result.output
    assert 'href="mine-answers.html"' in (tmp_path / "mine.html").read_text(encoding="utf-8")
    (copied / "answers.html").unlink()
    assert CliRunner().invoke(app, ["report", str(copied)]).exit_code == 0
    assert (copied / "answers.html").read_bytes() == before


@pytest.mark.parametrize("lacking", ["predictions", "data", "plug-ins"])
def test_without_predictions_or_data_the_report_says_so(copied: Path, lacking: str) -> None:
    (copied / "answers.html").unlink()
    settings = json.loads((copied / "experiment.json").read_text(encoding="utf-8"))
    if lacking == "predictions":
        (copied / "predictions.jsonl").unlink()
    elif lacking == "data":
        settings["data"] |= {"name": "folder", "root": str(copied / "nowhere")}
    else:
        settings["plugins"] = [str(copied / "plugin.py")]
        (copied / "plugin.py").write_text("raise SystemExit('code of others')")
    (copied / "experiment.json").write_text(json.dumps(settings), encoding="utf-8")
    write_pages(copied)
    words = {"predictions": "predictions.jsonl is missing", "data": "nowhere", "plug-ins": "plug-ins"}
    assert "There is no page of answers" in section(copied) and words[lacking] in section(copied)
    assert not (copied / "answers.html").exists()


def test_a_page_that_cannot_be_written_anew_stays(copied: Path) -> None:
    (copied / "predictions.jsonl").unlink()
    write_pages(copied)
    assert "could not be written anew" in section(copied) and 'href="answers.html"' in section(copied)


def test_without_images_the_run_is_the_same_run(answered: Path, copied: Path) -> None:
    experiment = Experiment.from_json((copied / "experiment.json").read_text(encoding="utf-8"))
    plain = experiment.model_copy(update={"report": experiment.report.model_copy(update={"images": False})})
    assert plain.digest == experiment.digest and choices_digest(plain) == choices_digest(experiment)
    assert identity(plain, {}, "base") == identity(experiment, {}, "base")
    assert run_experiment(plain, answered, Progress(None)) == run_experiment(
        experiment, answered, Progress(None)
    )
    assert "<img" in (copied / "answers.html").read_text(encoding="utf-8")
    (copied / "experiment.json").write_text(plain.to_json(), encoding="utf-8")
    write_pages(copied)
    page = (copied / "answers.html").read_text(encoding="utf-8")
    assert "<img" not in page and "report.images: false" in page
