"""Sentences of reports say what was measured: each is tried on a run in which settings alone would make it false."""

from __future__ import annotations

import json
import re
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.config.schema import Scenario, Strategy
from fedloom.report.adapter_loading_code import adapter_loading
from fedloom.report.confidence_intervals import interval, margin
from fedloom.report.federation_gain import compare_methods, count_clients, worst_client
from fedloom.report.findings import run_findings, short_summary
from fedloom.report.introduction import introduction, purpose
from fedloom.report.run_page import render
from fedloom.report.run_results import read_run
from fedloom.report.run_settings import facts
from fedloom.report.score_tables import score_table
from fedloom.report.significance import ClientCounts, Estimate
from fedloom.report.sweeps.estimate_texts import estimate_text
from fedloom.report.sweeps.sweep_results import headline
from fedloom.report.tables import percent, signed
from fedloom.report.terminal_summary import terminal_table
from fedloom.report.verdict_tables import verdict_tables
from fedloom.scenarios.plan import build_plan
from fedloom.scenarios.plan_file import plan_to_json
from fedloom.types import Example

SHARES = st.floats(0, 1)


def edited(folder: Path, name: str, **more: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **more}), encoding="utf-8")
    return folder


def planned(folder: Path, examples: list[Example], **scenario: Any) -> Path:
    """Give a run folder the plan that a scenario makes of examples."""
    settings = Scenario(**scenario)
    value = plan_to_json(build_plan(examples, settings, 0), examples)
    return edited(folder, "plan.json", **value)


def examples_of(count: int, *, image: bool, text: bool) -> list[Example]:
    class Plain:
        key = "k"

    return [
        Example(f"{n:03}", "?", "a", image=Plain() if image else None, text="some words" if text else None)  # type: ignore[arg-type]
        for n in range(count)
    ]


# ---- what clients see --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "text", "sentence", "never"),
    [
        (True, True, "Clients see both an image and a text in every example.", "no text"),
        (True, False, "Clients see an image and no text in every example.", "both an"),
        (False, True, "Clients see a text and no image in every example.", "both an"),
        (
            False,
            False,
            "Clients see neither an image nor a text, but only the question, in every example.",
            "both an",
        ),
    ],
)
def test_modalities_are_counted_whatever_the_pattern_is_called(run_folder, image, text, sentence, never):
    folder = planned(run_folder(names=(0, 1)), examples_of(12, image=image, text=text), clients=2)
    edited(folder, "experiment.json", scenario=Scenario(clients=2, pattern="aligned").model_dump(mode="json"))
    description = introduction(read_run(folder))
    assert sentence in description and never not in description


def test_modalities_that_differ_between_clients_are_counted(run_folder):
    """Of one image client and one text client with six examples each, half the examples show either."""
    examples = examples_of(12, image=True, text=True)
    folder = planned(run_folder(names=(0, 1)), examples, clients=2, pattern="cross", image_clients=1)
    description = introduction(read_run(folder))
    assert "Of the 12 examples, clients see the image only in 6, no image in 6" in description
    assert "1 client sees images only, 1 client sees texts only" in description


def test_a_plan_without_counts_claims_nothing_about_modalities(run_folder):
    folder = edited(run_folder(names=(0,)), "plan.json", clients=[{"id": 0}])
    description = introduction(read_run(folder)).lower()
    assert "sees" not in description and "clients see" not in description


def test_one_client_is_not_compared_with_others(run_folder):
    folder = planned(run_folder(names=(0,)), examples_of(12, image=True, text=True), clients=1)
    description = introduction(read_run(folder))
    assert "12 of 804 training examples were given to one client" in description
    assert (
        "differ" not in description
        and "Jensen" not in description
        and "the only client trained" in description
    )


def test_the_label_distance_is_measured_and_not_inferred_from_the_partition(run_folder):
    examples = [
        Example(f"{n:02}", "?", str(n % 2), text="x", label=n % 2, options=("0", "1"), group=str(n % 2))
        for n in range(12)
    ]
    folder = planned(run_folder(names=(0, 1)), examples, clients=2, partition="by_group")
    # Each client has one of two equally frequent labels: divergence of (1, 0) from (½, ½) is .311 bits, √ is .558.
    assert "is 0.56 from that of all clients together" in introduction(read_run(folder))


# ---- what was trained, and by whom -------------------------------------------------------------------


def test_a_stage_after_the_last_round_is_no_round(run_folder):
    folder = run_folder(names=(0, 1, 2), methods=("fedavg+finetune", "fedavg"), rounds=2)
    file = folder / "record.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    last = next(one for one in lines if one["kind"] == "round" and one["method"] == "fedavg+finetune")
    file.write_text("\n".join(map(json.dumps, [*lines, {**last, "round": 2}])), encoding="utf-8")
    assert "Federated training took 2 rounds; in each, all 3 clients" in introduction(read_run(folder))


@pytest.mark.parametrize(
    ("rounds", "phrase"), [(1, "1 round, in which all 3 clients"), (2, "2 rounds; in each, all 3 clients")]
)
def test_one_round_is_described_in_the_singular(run_folder, rounds, phrase):
    description = introduction(read_run(run_folder(names=(0, 1, 2), methods=("fedavg",), rounds=rounds)))
    assert f"Federated training took {phrase} trained" in description and "1 rounds" not in description


@pytest.mark.parametrize("strategy", Strategy.model_json_schema()["properties"]["name"]["enum"])
def test_every_strategy_says_which_part_of_the_model_it_trains(run_folder, strategy):
    settings = {"strategy": {"name": strategy, "rank": 8}}
    run = read_run(run_folder(names=(0, 1), methods=("fedavg",), rounds=1, experiment=settings))
    (sentence,) = [one for one in introduction(run).split(". ") if "Training changed only" in one]
    assert ("LoRA" in sentence) == (strategy != "connector")
    assert ("connector" in sentence) == (strategy != "lora")
    assert ("keeps to itself" in sentence) == strategy.startswith("share-")
    shown = dict(facts(run))["Trained"]
    assert ("LoRA" in shown) == ("LoRA" in sentence) and "{" not in shown + sentence


def test_clients_that_never_took_part_are_named(run_folder):
    folder = run_folder(names=(0, 1, 2), methods=("fedavg",), rounds=2)
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["kind"] == "round":
            line["clients"] = [one for one in line["clients"] if one["client"] != 1]
            line["refused"] = [{"client": 2, "reason": "norm"}]
    (folder / "record.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    description = introduction(read_run(folder))
    assert (
        "Federated training took 2 rounds; in each, 2 of the 3 clients trained for one epoch" in description
    )
    assert "Client 1 never took part." in description
    assert "Every update of client 2 was refused or missing." in description
    assert "2 client updates were refused or missing; the server accepted 2." in render([read_run(folder)])


def test_a_run_of_baselines_does_not_mention_federation(run_folder):
    run = read_run(run_folder(methods=("zero-shot", "linear")))
    page = render([run])
    assert "No part of the model was trained." in introduction(run)
    assert "Federated training" not in page and "sends only the change" not in page
    assert "No client sent an update in this run." in page
    assert purpose(["fedavg"]) != purpose(["local"])


def test_an_assembled_model_is_not_called_bundled(run_folder):
    model = {"path": "bundled", "encoder": "clip", "llm": "llama", "connector": None}
    run = read_run(run_folder(experiment={"model": model}))
    assert (
        "joins the encoder clip and the language model llama with a newly initialized connector (mlp2)"
        in introduction(run)
    )
    assert dict(facts(run))["Model"] == "clip + llama"
    loading = adapter_loading(run)
    assert (
        loading is not None
        and "load_model(experiment.model" in loading.code
        and "stock" not in loading.sentence
    )


@pytest.mark.parametrize(
    ("files", "sentence", "code"),
    [
        (["adapter_model.safetensors"], "Load it with stock PEFT", "'run/adapter'"),
        (
            ["client-10/adapter_model.safetensors", "client-2/adapter_model.safetensors"],
            "every client keeps a part of the model to itself",
            "'run/adapter/client-2'",
        ),
        (["connector.safetensors"], "PEFT is not needed", "'run/adapter/connector.safetensors'"),
        ([], "it is not in the folder run/adapter", ""),
    ],
)
def test_the_loading_code_suits_the_exported_files(run_folder, files, sentence, code):
    folder = run_folder(methods=("fedavg",))
    (folder / "adapter/adapter_model.safetensors").unlink()
    for name in files:
        (folder / "adapter" / name).parent.mkdir(exist_ok=True)
        (folder / "adapter" / name).touch()
    loading = adapter_loading(read_run(folder))
    assert loading is not None and sentence in loading.sentence and code in loading.code
    assert ("PeftModel" in render([read_run(folder)])) == any("adapter_model" in name for name in files)


def test_a_run_without_an_adapter_has_no_loading_code(run_folder):
    assert adapter_loading(read_run(run_folder(methods=("local",)))) is None


# ---- scores ------------------------------------------------------------------------------------------


def of_choice(slices: dict[str, float], **more: Any) -> dict[str, Any]:
    scored = {name: {"accuracy": value} for name, value in slices.items()}
    first = next(iter(scored.values()))
    return {**first, "tasks": {"choice": dict(first)}, "slices": scored, **more}


def test_slices_that_the_data_do_not_have_are_not_shown():
    table = score_table({"scores": {"fedavg": of_choice({"image": 0.5})}})
    assert "Image only" not in table.columns and "Text only" not in table.columns
    assert "only" not in table.note
    both = score_table({"scores": {"fedavg": of_choice({"both": 0.5, "image": 0.4, "text": 0.3})}})
    assert {"Image only", "Text only"} <= set(both.columns)


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (["choice"], "Options were compared by likelihood."),
        (["caption"], "Answers were generated freely."),
        (
            ["choice", "vqa"],
            "Options were compared by likelihood; answers to questions without options were generated",
        ),
    ],
)
def test_the_note_on_scoring_depends_on_the_tasks(tasks, sentence):
    scores = {
        "accuracy": 0.5,
        "cider": 0.5,
        "tasks": {task: {"accuracy": 0.5, "cider": 0.5} for task in tasks},
    }
    assert sentence in score_table({"scores": {"fedavg": scores}, "scoring": "likelihood"}).note


def by_client(accuracy: float, *clients: float | None) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "tasks": {"choice": {"accuracy": accuracy}},
        "clients": list(clients),
        "client_tasks": [{"choice": value} for value in clients],
    }


WORSE_FOR_ALL = {
    "scores": {
        "local": by_client(0.5, 0.8, 0.9, 0.6),
        "fedavg": by_client(0.7, 0.7, 0.6, 0.5),
        "centralized": by_client(0.75, 0.7, 0.7, 0.7),
    }
}


def test_a_better_shared_model_does_not_hide_that_every_client_is_worse_off():
    """On the global test set FedAvg is 20 points better; on data like its own, each client is better off alone."""
    result = WORSE_FOR_ALL
    both = [run_findings(result)[0], short_summary(result), " ".join(terminal_table(result).split())]
    for text in both:
        assert "On the global test set FedAvg" in text and "70.0%" in text
        assert "0 of 3 clients are better off with FedAvg" in text and "3 worse off" in text
        assert "client 1 loses most: 60.0% instead of 90.0%" in text
    assert "fedavg 70.0 (0 of 3 clients better off than alone, 3 worse off)" in headline(result)
    counts = compare_methods(result["scores"])["clients"]["fedavg"]
    assert (counts["better"], counts["same"], counts["worse"], counts["unknown"]) == (0, 0, 3, 0)
    assert counts["worst"] == {"client": 1, "gain": pytest.approx(-1 / 3), "score": 0.6, "alone": 0.9}


def test_rounding_errors_do_not_break_ties():
    """0.1 + 0.2 counts as 0.3, so that no client is worse off by a rounding error."""
    local, ours = by_client(0.3, 0.1 + 0.2, 0.3, 0.0), by_client(0.3, 0.3, 0.1 + 0.2, 0.0)
    assert count_clients(ours, local) == ClientCounts(same=3) == count_clients(local, ours)
    result = {"scores": {"local": local, "fedavg": ours}}
    ((_, table),) = verdict_tables(result)
    assert table.rows[1] == ("FedAvg", "20.0", "0.0", "0.0", "0.0 (Client 0)", "0", "3", "0")
    assert "no client loses" in run_findings(result)[0]
    assert "-0.0" not in json.dumps(compare_methods(result["scores"]))


def test_a_client_that_scores_zero_alone_is_counted():
    assert count_clients(by_client(0.5, 0.5, 0.0), by_client(0.0, 0.0, 0.0)) == ClientCounts(better=1, same=1)
    assert count_clients(by_client(0.5, None), by_client(0.5, 0.5)) == ClientCounts(unknown=1)
    assert worst_client(by_client(0.5, None), by_client(0.5, 0.5)) is None


def test_without_local_training_clients_are_not_compared():
    sentence = run_findings({"scores": {"fedavg": by_client(0.5, 0.5)}})[0]
    assert (
        "unknown, because no client trained alone in this run" in sentence
        and "better off with" not in sentence
    )


def test_one_client_is_described_in_the_singular():
    sentence = run_findings({"scores": {"local": by_client(0.5, 0.5), "fedavg": by_client(0.25, 0.25)}})[0]
    assert "the only client is worse off with FedAvg" in sentence and "clients'" not in sentence


def test_equally_good_methods_are_all_named():
    scores = {"fedavg": by_client(0.5, 0.5), "fedadam": by_client(0.75, 0.5), "fedyogi": by_client(0.75, 0.5)}
    assert "FedAdam and FedYogi score highest on the test set, with 75.0%" in " ".join(
        run_findings({"scores": scores})
    )


def test_a_method_without_a_score_is_not_the_headline_method():
    scores = {"fedavg": {"accuracy": None}, "fedadam": by_client(0.75, 0.5)}
    assert "FedAdam reaches 75.0%" in run_findings({"scores": scores})[0]


@pytest.mark.parametrize(("method", "part"), [(0.4001, "less than 1%"), (0.7999, "more than 99%")])
def test_a_share_is_not_rounded_to_none_or_all(method, part):
    scores = {
        name: {"accuracy": value}
        for name, value in (("local", 0.4), ("centralized", 0.8), ("fedavg", method))
    }
    assert f"closes {part} of the gap" in run_findings({"scores": scores})[0]


def test_a_mean_over_tasks_has_no_binomial_interval():
    scores = {**by_client(1.0, 1.0), "tasks": {"choice": {"accuracy": 1.0}, "vqa": {"accuracy": 1.0}}}
    assert not any("interval" in sentence for sentence in run_findings({"scores": {"fedavg": scores}}, 100))


# ---- chance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [0, 1, 50, 261, 262])
def test_the_interval_of_a_share_is_scipys(right):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(right, 262).proportion_ci(0.95, method="wilson")
    assert interval(right / 262, 262) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_perfect_score_has_an_interval_of_positive_width():
    """n / (n + z²): of 262 right answers in 262, the lower end is 262 / 265.84 = 98.6 %."""
    text = " ".join(run_findings({"scores": {"fedavg": of_choice({"both": 1.0})}}, 262))
    assert "95 % confidence interval (Wilson) of FedAvg's 100.0% is 98.6 to 100.0%" in text
    assert "differences below about 1.4 points are not significant" in text


def test_the_margin_of_a_difference_by_hand():
    """Newcombe's own example: 56/70 and 48/80 differ by .2, with the interval .0524 to .3339 (Table II, method 10)."""
    low, high = interval(56 / 70, 70)[0], interval(48 / 80, 80)[1]
    assert 0.2 - sqrt((0.8 - low) ** 2 + (high - 0.6) ** 2) == pytest.approx(0.0524, abs=1e-4)
    assert margin(0.8, 0.6, 100) == margin(0.6, 0.8, 100)


@given(SHARES, SHARES, st.integers(1, 10_000))
def test_every_margin_is_positive(first, second, count):
    assert 0 < margin(first, second, count) <= sqrt(2)


def test_seeds_that_agree_are_marked_and_have_no_interval():
    for half in (0.0, 1e-12, 1e-4, None):
        assert "±0.0" not in estimate_text(Estimate(1.0, half, 3))
    assert estimate_text(Estimate(1.0, 0.0, 3)) == "100.0†"


@given(st.floats(-2, 2))
def test_no_zero_has_a_sign(value):
    for written in (
        percent(value),
        signed(value),
        percent(value, 0),
        estimate_text(Estimate(value, None, 1), "+"),
    ):
        assert not re.fullmatch(r"[-−+]0(\.0*)?", written) and "-" not in written
