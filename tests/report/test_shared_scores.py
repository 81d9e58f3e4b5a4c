"""Scores of the shared model, of clients' own models, and on own data: each where it belongs, and never one alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedloom.report.client_verdicts import verdict_on
from fedloom.report.confidence_intervals import difference_interval
from fedloom.report.federation_gain import baseline_of, compare_methods
from fedloom.report.findings import client_sentence, run_findings, short_findings
from fedloom.report.score_tables import score_table
from fedloom.report.shared_scores import OWN_DATA, OWN_MODELS, SHARED_MODEL, for_everybody, shared_model
from fedloom.report.significance import estimate
from fedloom.report.sweeps.axis_comparisons import comparison_json, comparisons
from fedloom.report.sweeps.comparison_tables import (
    OWN_HEADS,
    SHARED_HEADS,
    group_by_factor,
    overall_table,
    terminal_lines,
)
from fedloom.report.sweeps.sweep_page import render_sweep
from fedloom.report.sweeps.sweep_results import SweepRun, headline, read_sweep
from fedloom.report.sweeps.sweep_tables import finding_pairs, gain_table, global_tables, part_table
from fedloom.report.sweeps.sweep_verdicts import sweep_verdict, verdict_table, verdicts_by_task
from fedloom.report.sweeps.terminal_tables import terminal_tables
from fedloom.report.terminal_summary import terminal_table


def scores(value: float, clients: list[float], shared: float | None = None, own: bool = False) -> dict:
    """Scores of a method; of own models if `own`."""
    model = {"accuracy": value, "tasks": {"choice": {"accuracy": value}}}
    by_client = {"clients": clients, "client_tasks": [{"choice": one} for one in clients]}
    return {
        **model,
        **by_client,
        **({"best": max(clients), "worst": min(clients)} if own else {}),
        **(
            {}
            if shared is None
            else {"shared": {"accuracy": shared, "tasks": {"choice": {"accuracy": shared}}}}
        ),
    }


RESULT = {
    "main": "fedavg+finetune",
    "scores": {
        "zero-shot": scores(0.2, [0.25, 0.15]),
        "local": scores(0.4, [0.7, 0.8], own=True),
        "local+finetune": scores(0.41, [0.8, 0.9], own=True),
        "fedavg+finetune": scores(0.5, [0.75, 0.95], shared=0.6, own=True),
    },
}
"""Against `local` both clients gain with fine-tuned FedAvg; against fine-tuned `local` one gains and one loses 5 points."""


def row_of(table, name: str) -> dict[str, str]:
    return dict(zip(table.columns, next(row for row in table.rows if row[0] == name), strict=True))


def test_whose_scores_they_are():
    tuned, local = RESULT["scores"]["fedavg+finetune"], RESULT["scores"]["local"]
    assert shared_model(local) is None and for_everybody(local) is local
    assert for_everybody(tuned)["accuracy"] == 0.6
    assert shared_model(RESULT["scores"]["zero-shot"]) is RESULT["scores"]["zero-shot"]


def test_a_table_has_all_three():
    table = score_table(RESULT)
    wanted = {
        "zero-shot": ("20.0", "—", "20.0"),
        "local (mean)": ("—", "40.0 (80.0–70.0)", "75.0"),
        "FedAvg + fine-tuning": ("60.0", "50.0 (95.0–75.0)", "85.0"),
    }
    for name, cells in wanted.items():
        row = row_of(table, name)
        assert (row[SHARED_MODEL], row[OWN_MODELS], row[OWN_DATA]) == cells


def test_a_sentence_has_all_three():
    shared, own = short_findings(RESULT)
    assert "the shared model of FedAvg + fine-tuning reaches 60.0%" in shared
    assert "(its clients' own models a mean of 50.0%)" in shared
    assert "1 of 2 clients" in own and "1 worse off" in own
    assert "the shared model of FedAvg + fine-tuning" in run_findings(RESULT)[0]


def test_fine_tuned_methods_are_compared_with_fine_tuned_training_alone():
    verdict = verdict_on(RESULT, "fedavg+finetune")
    assert verdict is not None and verdict.alone == "local+finetune"
    assert [gain.points for gain in verdict.gains] == pytest.approx([-0.05, 0.05])
    assert verdict.counts == (1, 0, 1, 0)
    alone = verdict_on(RESULT, "local+finetune")
    assert alone is not None and alone.alone == "local" and alone.counts == (2, 0, 0, 0)
    compared = compare_methods(RESULT["scores"])
    assert compared["against"] == {"fedavg+finetune": "local+finetune"}
    assert compared["clients"]["fedavg+finetune"]["worse"] == 1
    assert "fine-tuned in the same way (local + fine-tuning)" in client_sentence(RESULT, "fedavg+finetune")
    text = " ".join(terminal_table(RESULT).split())
    assert "Gains of FedAvg + fine-tuning are over local + fine-tuning" in text


@pytest.mark.parametrize(
    ("method", "methods", "expected"),
    [
        ("fedavg+finetune", ["local", "fedavg+finetune"], "local"),
        ("fedavg+finetune+prompt", ["local", "local+prompt+finetune"], "local+prompt+finetune"),
        ("fedavg", ["local", "local+finetune"], "local"),
        ("local+finetune", ["local", "local+finetune"], "local"),
        ("local", ["local", "local+finetune"], None),
        ("fedavg+finetune", ["centralized"], None),
        ("fedavg", ["local+finetune"], "local+finetune"),
    ],
)
def test_the_baseline_of_a_method(method, methods, expected):
    assert baseline_of(method, methods) == expected


def test_agreement_with_another_baseline_does_not_narrow_an_interval():
    counts = {"independent_questions": {"own": {"choice": 50}, "clients": [{"choice": 50}] * 2}}
    agreed = {"own": {"choice": 0.9}, "clients": [{"choice": 0.9}] * 2}
    without, with_local, with_tuned = (
        verdict_on({**RESULT, **counts, "agreement": {"fedavg+finetune": entry}}, "fedavg+finetune")
        for entry in ({}, agreed, {**agreed, "alone": "local+finetune"})
    )
    assert without and with_local and with_tuned
    assert without.interval == with_local.interval != with_tuned.interval


def sweep_of(folder: Path, *results: dict) -> Path:
    """A sweep over two seeds, with the same result or one for each."""
    cells = []
    for seed in (0, 1):
        place = folder / f"cells/{seed}"
        place.mkdir(parents=True)
        result = {**results[seed % len(results)], "bytes": {}, "seconds": {}}
        (place / "result.json").write_text(json.dumps(result))
        cells.append(
            {"name": f"seed {seed}", "values": {"seed": seed}, "digest": "00", "folder": f"cells/{seed}"}
            | {"state": "done"}
        )
    head = {"name": "tuned", "digest": "ab", "quick": False, "axes": {"seed": [0, 1]}, "published": None}
    (folder / "sweep.json").write_text(json.dumps({**head, "cells": cells}))
    return folder


def test_a_sweep_has_all_three_and_the_same_baseline(tmp_path):
    sweep = read_sweep(sweep_of(tmp_path, RESULT))
    tables = dict(global_tables(sweep))
    assert tables[SHARED_MODEL].columns[1:-1] == ("zero-shot", "FedAvg + fine-tuning")
    assert tables[OWN_MODELS].columns[1:-1] == ("local", "local + fine-tuning", "FedAvg + fine-tuning")
    table = verdict_table(sweep)
    assert table is not None
    row = row_of(table, "FedAvg + fine-tuning")
    assert [row[name].rstrip("†") for name in (SHARED_MODEL, OWN_MODELS, OWN_DATA)] == [
        "60.0",
        "50.0",
        "85.0",
    ]
    assert (
        row["Clients"] == "2/0/2"
    )  # one of two clients in each of two cells, against fine-tuned training alone
    assert row_of(table, "local")[SHARED_MODEL] == "—"
    assert "over local + fine-tuning" in table.note
    gains = gain_table(sweep)
    assert gains is not None and gains.rows[0][3] == "2 / 0 / 2"
    assert any("fine-tuned in the same way (local + fine-tuning)" in own for _, own in finding_pairs(sweep))
    text, page = terminal_tables(sweep), render_sweep(sweep)
    for name in (SHARED_MODEL, OWN_MODELS, OWN_DATA):
        assert f"{name}:" in text and f"{name}: Accuracy" in page
    assert headline(RESULT).startswith("local 40.0, fedavg+finetune 60.0 (1 of 2 clients")


def test_without_own_models_beside_a_shared_one_nothing_is_split(tmp_path):
    plain = {**RESULT, "scores": {name: RESULT["scores"][name] for name in ("zero-shot", "local")}}
    assert score_table(plain).columns[:3] == ("Method", "Accuracy", "Own data")
    ((name, table),) = global_tables(read_sweep(sweep_of(tmp_path, plain)))
    assert name == "" and table.columns[1:-1] == ("zero-shot", "local")


PERSONAL = {
    "main": "fedavg",
    "scores": {
        "local": scores(0.3, [0.7, 0.9], own=True),
        "fedavg": scores(0.6, [0.6, 0.6]),
        "fedavg+finetune": scores(0.4, [0.8, 0.5], shared=0.65, own=True),
        "fedavg+plora": scores(0.35, [0.7, 0.7], own=True),
    },
}
"""The fine-tuned models are 20 points behind FedAvg on everybody's questions, but their shared model is 5 points ahead of FedAvg's."""


def compared(sweep: SweepRun, value: str) -> dict[str, dict]:
    """Where methods are compared → the comparison of a method with FedAvg."""
    (factor,) = {one.factor.name for one in comparisons(sweep) if one.factor.kind == "method"}
    found = map(comparison_json, comparisons(sweep))
    return {one["on"]: one for one in found if (one["factor"], one["value"]) == (factor, value)}


def test_paired_comparisons_never_pair_own_models_with_a_shared_one(tmp_path):
    sweep = read_sweep(sweep_of(tmp_path, PERSONAL))
    tuned = compared(sweep, "fedavg+finetune")
    assert {where: one["mean"] for where, one in tuned.items()} == pytest.approx(
        {"global test": 0.65 - 0.6, "own data": 0.65 - 0.6}
    )
    assert tuned["global test"]["clients"] is None
    assert tuned["own data"]["clients"] == {"better": 2, "same": 0, "worse": 2, "unknown": 0}  # in two cells
    for method, gain in {"local": 0.2, "fedavg+plora": 0.1}.items():  # neither has a shared model
        own = compared(sweep, method)
        assert list(own) == ["own data"] and own["own data"]["mean"] == pytest.approx(gain)


def test_a_row_has_both_sides_or_says_that_one_is_missing(tmp_path):
    sweep = read_sweep(sweep_of(tmp_path, PERSONAL))
    (methods,) = [group for group in group_by_factor(sweep) if group[0].factor.kind == "method"]
    table = overall_table(methods)
    assert table.columns[1:] == (*SHARED_HEADS, *OWN_HEADS, "Clients", "Seeds")
    rows = {row[0].split(":")[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert [rows[name]["Global test"] for name in ("local", "FedAvg + fine-tuning", "FedAvg + pLoRA")] == [
        "—",
        "+5.0†",
        "—",
    ]
    assert all(row["Own data"] != "—" for row in rows.values())
    assert rows["local"]["Clients"] == "4 / 0 / 0" and rows["FedAvg + fine-tuning"]["Clients"] == "2 / 0 / 2"
    lines = " ".join(terminal_lines(group_by_factor(sweep)).split())
    assert "Accuracy, own data local +20.0† (4 of 4 clients better off, 0 worse)" in lines
    assert "Accuracy, global test FedAvg + fine-tuning +5.0†" in lines and "−20" not in lines


def test_a_part_that_leaves_no_shared_model_has_no_difference_on_the_global_test_set(tmp_path):
    sweep = read_sweep(sweep_of(tmp_path, PERSONAL))
    table = part_table(sweep)
    assert table is not None
    assert table.rows[0][1:] == ("+5.0†", "+5.0†", "2 / 0 / 2", "—", "+10.0†", "4 / 0 / 0")
    found = dict(finding_pairs(sweep))
    (sentence,) = [one for one in found if "not compared" in one]
    assert "FedAvg + pLoRA and FedAvg" in sentence and "4 of 4 clients" in found[sentence]


def test_along_an_axis_own_models_are_compared_on_their_own_data(tmp_path):
    """Values of an axis whose own models and shared model disagree about which is better."""
    folder = sweep_of(tmp_path, PERSONAL)
    head = json.loads((folder / "sweep.json").read_text())
    other = {
        "main": "fedavg+finetune",
        "scores": {"fedavg+finetune": scores(0.9, [0.1, 0.1], shared=0.7, own=True)},
    }
    for seed in (0, 1):
        place = folder / f"cells/other-{seed}"
        place.mkdir()
        (place / "result.json").write_text(json.dumps({**other, "bytes": {}, "seconds": {}}))
        head["cells"][seed]["values"] = {"how": "a", "seed": seed}
        head["cells"].append(
            {"name": f"other {seed}", "values": {"how": "b", "seed": seed}, "digest": "00"}
            | {"folder": f"cells/other-{seed}", "state": "done"}
        )
    head["axes"] = {"how": ["a", "b"], "seed": [0, 1]}
    (folder / "sweep.json").write_text(json.dumps(head))
    rows = [comparison_json(one) for one in comparisons(read_sweep(folder)) if one.factor.name == "how"]
    whole = {one["on"]: one for one in rows if one["by"] is None}
    assert whole["global test"]["mean"] == pytest.approx(0.05) and whole["own data"]["mean"] == pytest.approx(
        -0.55
    )
    assert {one["verdict"] for one in whole.values()} == {
        "not significant"
    }  # two seeds that agree may do so by chance
    assert whole["own data"]["clients"] is None


def test_equal_scores_are_called_the_same(tmp_path):
    folder = sweep_of(tmp_path, PERSONAL)
    head = json.loads((folder / "sweep.json").read_text())
    for cell, how in zip(head["cells"], ("a", "b"), strict=True):
        cell["values"] = {"how": how}
        file = folder / cell["folder"] / "result.json"
        result = json.loads(file.read_text())
        result["scores"]["fedavg+finetune"]["shared"] = result["scores"]["fedavg"]
        file.write_text(json.dumps(result))
    head["axes"] = {"how": ["a", "b"]}
    (folder / "sweep.json").write_text(json.dumps(head))
    found = [
        shared
        for shared, _ in finding_pairs(read_sweep(folder))
        if "fine-tuning" in shared and "same" in shared
    ]
    assert found == [
        "On the global test set the shared model of FedAvg + fine-tuning scores the same as FedAvg in all 2 settings, on average "
        "over seeds."
    ]


def test_the_interval_of_both_levels_is_wider_than_that_of_either(tmp_path):
    """Seeds and questions are independent sources of error, so that the squares of their intervals add up."""
    gained = [
        {
            "main": "fedavg",
            "scores": {"local": scores(0.4, [0.5, 0.5], own=True), "fedavg": scores(0.6, [0.5 + gain] * 2)},
            "independent_questions": {
                "test": {"choice": 50},
                "own": {"choice": 50},
                "clients": [{"choice": 50}] * 2,
            },
        }
        for gain in (0.1, 0.14)
    ]
    sweep = read_sweep(sweep_of(tmp_path, *gained))
    verdict = sweep_verdict(sweep.cells, "fedavg", "local")
    seeds = estimate([0.1, 0.14])
    ends = [difference_interval(0.5 + gain, 0.5, 50) for gain in (0.1, 0.14)]
    questions = sum((high - low) / 2 for low, high in ends) / 2
    assert seeds is not None and seeds.half is not None and verdict.both_levels is not None
    assert verdict.gain == pytest.approx(seeds)
    assert verdict.both_levels == pytest.approx((seeds.half**2 + questions**2) ** 0.5)
    table = verdict_table(sweep)
    assert table is not None
    assert row_of(table, "FedAvg")["Both levels"] == f"±{100 * verdict.both_levels:.1f}"
    assert sweep_verdict(sweep.cells[:1], "fedavg", "local").both_levels is None  # one seed has one level


def test_a_sweep_of_several_tasks_says_of_each_who_is_worse_off_and_how_much(tmp_path):
    """Points of accuracy and of IoU are not averaged, so that each task has a table of its own."""
    choice = {
        "main": "fedavg",
        "scores": {"local": scores(0.4, [0.5, 0.7], own=True), "fedavg": scores(0.6, [0.8, 0.5])},
    }
    boxes = json.loads(json.dumps(choice).replace('"choice"', '"grounding"').replace('"accuracy"', '"iou"'))
    boxes["scores"]["fedavg"]["client_tasks"][1]["grounding"] = 0.6
    sweep = read_sweep(sweep_of(tmp_path, choice, boxes))
    together, by_task = verdict_table(sweep), dict(verdicts_by_task(sweep))
    assert together is not None and together.columns == ("Method", "Clients")
    assert row_of(together, "FedAvg")["Clients"] == "2/0/2"
    assert list(by_task) == ["Choice: Accuracy", "Grounding: Mean IoU"]
    found = {task: row_of(table, "FedAvg") for task, table in by_task.items()}
    assert [row["Clients"] for row in found.values()] == ["1/0/1", "1/0/1"]
    assert [row["Worst client"] for row in found.values()] == ["−20.0", "−10.0"]
    assert [row["Bottom fifth"] for row in found.values()] == ["−20.0", "−10.0"]
    assert "Bottom fifth: mean gain" in by_task["Grounding: Mean IoU"].note
    for shown in (render_sweep(sweep), terminal_tables(sweep)):
        assert all(f"Clients, against training alone ({task})" in shown for task in by_task)
    assert not verdicts_by_task(read_sweep(sweep_of(tmp_path / "one", choice)))


def test_gains_over_training_alone_are_of_the_shared_model_as_their_note_says(tmp_path):
    """Fine-tuned FedAvg has both kinds of models, pLoRA own ones only."""
    sweep = read_sweep(sweep_of(tmp_path, PERSONAL))
    table = gain_table(sweep)
    assert (
        table is not None
        and "the shared model (without one, the mean over the clients' own models)" in table.note
    )
    (row,) = table.rows
    found = dict(zip(table.columns, row, strict=True))
    gains = [found[name].rstrip("†*") for name in ("FedAvg", "FedAvg + fine-tuning", "FedAvg + pLoRA")]
    assert gains == ["+30.0", "+35.0", "+5.0"]
