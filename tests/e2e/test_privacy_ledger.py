"""The privacy ledger of whole runs: what each client's rounds and epochs spent, and what the report states of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from campaign.world import make_world
from fedloom.algorithms.gaussian_privacy import composed, epsilon_of
from fedloom.experiment.experiment import Experiment
from fedloom.report.privacy_table import privacy_tables
from fedloom.runs.plan_run import plan_run
from fedloom.runs.privacy_ledger import rounds_by_client, spent
from fedloom.runs.single_run import run_experiment
from fedloom.system.json_files import to_json
from fedloom.system.progress import make_progress

EPOCHS, ROUNDS = 2, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(tmp_path_factory.mktemp("privacy") / "world", "fedavg")
    value = json.loads(world.experiment.to_json())
    value["methods"] = ["fedavg", "fedavg+dp", "fedavg+dp-sgd", "centralized+dp-sgd"]
    value["train"] |= {"epochs": EPOCHS, "rounds": ROUNDS, "clip": None}
    value["algorithms"] = {"dp": {"noise": 0.0}, "dp-sgd": {"noise": 2.0, "delta": 1e-6}}
    folder = world.place.parent / "run"
    run_experiment(Experiment.from_json(json.dumps(value)), folder, make_progress(quiet=True))
    return folder


def ledgers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["privacy"]


def rounds_of(folder: Path, method: str) -> dict[int, list[int]]:
    """Client → the rounds in whose line of the log it is."""
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    rounds = dict[int, list[int]]()
    for line in lines:
        if line["kind"] == "round" and line["method"] == method:
            for one in line["clients"]:
                rounds.setdefault(one["client"], []).append(line["round"])
    return rounds


def test_only_methods_with_noise_have_a_ledger(run: Path) -> None:
    assert list(ledgers(run)) == ["fedavg+dp", "fedavg+dp-sgd", "centralized+dp-sgd"]


def test_every_epoch_of_a_clients_own_rounds_is_a_release_of_its_examples(run: Path) -> None:
    (ledger,) = ledgers(run)["fedavg+dp-sgd"]
    assert (ledger["unit"], ledger["noise"], ledger["delta"]) == ("example", 2.0, 1e-6)
    taken = rounds_of(run, "fedavg+dp-sgd")
    assert {one["client"]: one["rounds"] for one in ledger["clients"]} == taken
    assert (
        len({len(rounds) for rounds in taken.values()}) > 1
    )  # cohorts of two: some clients spend less than others
    for one in ledger["clients"]:
        assert one["releases"] == [EPOCHS * (k + 1) for k in range(len(one["rounds"]))]
        assert one["epsilon"] == [epsilon_of(composed(2.0, total), 1e-6) for total in one["releases"]]


def test_pooled_data_are_one_client(run: Path) -> None:
    (ledger,) = ledgers(run)["centralized+dp-sgd"]
    (row,) = ledger["clients"]
    assert row["client"] is None
    assert row["releases"][-1] == EPOCHS * ROUNDS


def test_without_noise_epsilon_is_infinite(run: Path) -> None:
    (ledger,) = ledgers(run)["fedavg+dp"]
    assert ledger["unit"] == "client"
    assert {value for one in ledger["clients"] for value in one["epsilon"]} == {None}
    assert all(one["releases"] == list(range(1, len(one["rounds"]) + 1)) for one in ledger["clients"])
    page = (run / "report.html").read_text()
    assert "Privacy ledger" in page
    assert "∞" in page


def line(round: int, clients: list[int], **values: Any) -> dict[str, Any]:
    return {"round": round, "clients": [{"client": one} for one in clients], **values}


def test_a_repeated_round_counts_once_and_a_missing_client_has_not_reported() -> None:
    lines = [line(0, [1, 2], cohort=2), line(0, [1, 2], cohort=2)]
    lines += [line(1, [1], cohort=2, missing=[{"client": 2, "reason": "killed"}])]
    assert rounds_by_client(lines) == {1: [0, 1], 2: [0]}


def test_whoever_a_log_does_not_list_may_have_reported() -> None:
    assert rounds_by_client([line(0, [1], cohort=1), line(1, [1, 2], cohort=5000)]) == {None: [0, 1]}


def test_a_ledger_adds_up_releases() -> None:
    assert spent(1.0, 1e-5, [1, 2]) == {
        "releases": [1, 3],
        "epsilon": [epsilon_of(1.0, 1e-5), epsilon_of(3**0.5, 1e-5)],
    }
    assert spent(1.0, 1e-5, []) == {"releases": [], "epsilon": []}


def test_the_table_never_rounds_epsilon_down() -> None:
    rows = [{"client": 0, "rounds": [0], **spent(1.0, 1e-5, [1])}]
    ledger = {"part": "dp", "unit": "client", "noise": 1.0, "delta": 1e-5, "clients": rows}
    ((name, table),) = privacy_tables({"privacy": {"fedavg+dp": [ledger]}}, ["north"])
    assert name == "FedAvg + DP mechanism"
    assert table.rows == (("north", "1", "1", "4.378"),)  # 4.3772, see tests/papers/test_gaussian_privacy.py


def test_a_plan_says_what_the_rounds_will_spend(run: Path) -> None:
    """Every client of a cohort reported here, so the plan is no bound but the very figures of the client with most rounds."""
    planned = to_json(plan_run(Experiment.from_json((run / "experiment.json").read_text())).privacy)
    for method, parts in ledgers(run).items():
        for one, ledger in zip(json.loads(planned)[method], parts, strict=True):
            most = max(ledger["clients"], key=lambda row: row["releases"][-1])
            assert one == {
                **{key: ledger[key] for key in ("part", "unit", "noise", "delta")},
                "releases": most["releases"][-1],
                "epsilon": most["epsilon"][-1],
            }
    assert json.loads(planned).keys() == ledgers(run).keys()
