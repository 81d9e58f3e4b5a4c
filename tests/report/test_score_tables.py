"""Tables of scores by task, of published scores and of gains, and the page that shows them."""

from __future__ import annotations

import json

import pytest

from fedloom.report.compare_runs import seeds_table
from fedloom.report.findings import run_findings
from fedloom.report.run_page import write_report
from fedloom.report.run_results import read_run
from fedloom.report.score_tables import published_tables, score_table, task_tables
from fedloom.report.tables import title
from fedloom.report.terminal_summary import terminal_table


def method_scores(tasks, clients=(), **top):
    """Return the scores of one method as in result.json."""
    (first, *others) = tasks.values()
    flat = {"accuracy": 0.25, "unparsed": 0.0} if others else dict(first)
    return {**flat, "tasks": tasks, "client_tasks": list(clients), "slices": {}, **top}


CAPTION = {"cider": 1.25, "bleu_4": 0.2, "rouge_l": 0.5, "accuracy": 0.1, "unparsed": 0.0}
BOXES = {"iou": 0.4, "accuracy": 0.3, "accuracy@0.75": 0.1, "unparsed": 0.5, "iou_published": 0.8}
VQA = {"accuracy": 0.6, "accuracy_open": 0.5, "accuracy_closed": 0.75, "token_f1": 0.7, "unparsed": 0.0}


def columns(table):
    return {head: [row[place] for row in table.rows] for place, head in enumerate(table.columns)}


@pytest.mark.parametrize(
    ("task", "scores", "expected"),
    [
        ("caption", CAPTION, {"CIDEr": "125.0", "BLEU-4": "20.0", "ROUGE-L": "50.0"}),
        ("grounding", BOXES, {"Mean IoU": "40.0", "Acc@0.5": "30.0", "Acc@0.75": "10.0"}),
        ("vqa", VQA, {"Accuracy": "60.0", "Accuracy, open": "50.0", "Accuracy, closed": "75.0"}),
    ],
)
def test_a_run_of_one_task_shows_that_tasks_scores(task, scores, expected):
    cells = columns(score_table({"scores": {"fedavg": method_scores({task: scores})}}))
    assert {head: cells[head] for head in expected} == {head: [value] for head, value in expected.items()}
    assert next(iter(expected)) == list(cells)[1] and "Image only" not in cells


def test_a_run_of_several_tasks_shows_each_headline_and_the_mean_rank():
    better = {**CAPTION, "cider": 2.0}
    result = {
        "scores": {
            "local": method_scores({"vqa": VQA, "caption": CAPTION}),
            "fedavg": method_scores({"vqa": VQA, "caption": better}),
        }
    }
    cells = columns(score_table(result))
    assert cells["VQA: Accuracy"] == ["60.0", "60.0"] and cells["Caption: CIDEr"] == ["125.0", "200.0"]
    assert cells["Mean rank"] == ["1.75", "1.25"]  # the first task is shared: 1.5 each
    assert [name for name, _ in task_tables(result)] == ["VQA", "Caption"]


@pytest.mark.parametrize(
    ("scoring", "phrase"),
    [("likelihood", "generated freely"), ("generate", "freely"), ("teacher-forced", "cannot be compared")],
)
def test_the_note_describes_how_answers_were_obtained(scoring, phrase):
    assert phrase in score_table({"scores": {"fedavg": method_scores({"vqa": VQA})}, "scoring": scoring}).note


def test_published_scores_stand_beside_ours_and_are_labeled():
    ((name, table),) = published_tables({"scores": {"fedavg": method_scores({"grounding": BOXES})}})
    cells = columns(table)
    assert name == "Grounding" and "left out" in table.note
    assert (cells["Mean IoU"], cells["Mean IoU (published)"]) == (["40.0"], ["80.0"])
    assert title("auc_published") == "AUC (published)"
    assert published_tables({"scores": {"fedavg": {"accuracy": 0.5}}}) == []


def test_the_terminal_shows_verdicts_beside_scores():
    local = method_scores({"vqa": VQA}, [{"vqa": 0.5}, {"vqa": 0.5}, {"vqa": 0.0}])
    fedavg = method_scores({"vqa": VQA}, [{"vqa": 0.75}, {"vqa": 0.25}, {"vqa": 0.1}])
    text = terminal_table({"scores": {"local": local, "fedavg": fedavg}})
    assert "Clients on data like their own" in text and "Bottom" in text
    assert "2/0/1" in text  # better, the same, worse
    assert max(map(len, text.split("\n"))) <= 80


def test_a_finding_about_captions_uses_cider_and_no_interval():
    scores = {
        name: method_scores({"caption": {**CAPTION, "cider": level}})
        for name, level in (("local", 0.5), ("centralized", 1.5), ("fedavg", 1.0))
    }
    first = run_findings({"scores": scores}, 100)
    assert "CIDEr of 100.0," in first[0] and "50%" in first[0]
    assert not any("chance" in sentence for sentence in first)


def test_the_page_shows_tasks_published_scores_and_gains(run_folder, tmp_path):
    folder = run_folder(methods=("local", "fedavg"), names=(0, 1))
    file = folder / "result.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    for method, level in (("local", 0.5), ("fedavg", 1.0)):
        scores = result["scores"][method]
        scores |= {"tasks": {"caption": CAPTION, "grounding": BOXES}}
        scores |= {"client_tasks": [{"caption": level}, {"grounding": 0.4}]}
    file.write_text(json.dumps(result), encoding="utf-8")
    write_report([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for phrase in (
        "All scores of each task",
        "Mean IoU (published)",
        "Does federation help each client?",
        "+50.0",
    ):
        assert phrase in page
    for scores in result["scores"].values():
        scores |= {"tasks": {"caption": CAPTION}, **CAPTION, "clients": [7.5, 1.0]}
    file.write_text(json.dumps(result), encoding="utf-8")
    write_report([folder], tmp_path / "captions.html")
    page = (tmp_path / "captions.html").read_text(encoding="utf-8")
    assert "CIDEr for each client under each method" in page and "CIDEr after each round" not in page
    assert read_run(folder).result["scores"]["fedavg"]["cider"] == 1.25


def test_runs_of_several_tasks_are_averaged_by_task(run_folder):
    runs = []
    for seed, cider in ((0, 1.0), (1, 2.0)):
        folder = run_folder(f"s{seed}", seed=seed, methods=("local", "fedavg"), names=(0, 1))
        file = folder / "result.json"
        result = json.loads(file.read_text(encoding="utf-8"))
        for method, scores in result["scores"].items():
            level = cider if method == "fedavg" else 1.5
            scores |= {"tasks": {"vqa": VQA, "caption": {**CAPTION, "cider": level}}}
            scores |= {"client_tasks": [{"vqa": 0.5}, {"caption": level}]}
        file.write_text(json.dumps(result), encoding="utf-8")
        runs.append(read_run(folder))
    cells = columns(seeds_table(runs))
    place = cells["Method"].index("FedAvg")
    # Of 1 and 2 the mean is 1.5 and the deviation the root of one half; ranks are 1.75 and 1.25.
    assert cells["Caption: CIDEr"][place] == "150.0 ± 70.7"
    assert cells["VQA: Accuracy"][place] == "60.0 ± 0.0"
    assert cells["Mean rank"][place] == "1.50 ± 0.35"
    assert cells["Gain over local"][place].startswith("0.0 ± ")
