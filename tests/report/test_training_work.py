"""The work of methods is counted in the record, and unequal work is stated."""

from __future__ import annotations

import pytest

from fedloom.report.training_work import Work, cost_table, read_work, work_by_method, work_sentence


def round_of(method, sizes, *, epochs=1, batch=8, **more):
    reports = [
        {"client": k, "weight": float(size), "steps": float(epochs * -(-size // batch))}
        for k, size in enumerate(sizes)
    ]
    return {"kind": "round", "method": method, "round": 0, "clients": reports, "cohort": len(sizes), **more}


def test_work_by_hand():
    """Two epochs over 9 and 16 examples in batches of 8: 2 x 2 + 2 x 2 steps on 50 examples."""
    work = work_by_method([round_of("fedavg", [9, 16], epochs=2)], 8)
    assert work == {"fedavg": Work(2, 8, 50)}


def test_a_cohort_that_is_not_listed_whole_has_no_examples():
    work = work_by_method([round_of("fedavg", [8], cohort=1000)], 8)
    assert work["fedavg"] == Work(1000, None, None)


def test_a_missing_client_did_no_work():
    entry = round_of("fedavg", [8, 8], missing=[{"client": 2}], cohort=3)
    assert work_by_method([entry], 8)["fedavg"] == Work(2, 2, 16)


@pytest.mark.parametrize(
    ("ours", "says", "never"),
    [
        ([8, 8], "FedAvg and local (mean) did equal work", "not do equal"),
        ([8], "did not do equal work", "did equal work"),
    ],
)
def test_a_sentence_says_whether_work_was_equal(ours, says, never):
    rounds = [round_of("fedavg", ours), round_of("local", [8]), round_of("local", [8])]
    sentence = work_sentence(work_by_method(rounds, 8), "fedavg")
    assert says in sentence and never not in sentence and "16 examples" in sentence


def test_nothing_is_said_about_unknown_work():
    assert work_sentence({"fedavg": Work(9, None, None), "local": Work(1, 1, 1)}, "fedavg") == ""
    assert work_sentence({"fedavg": Work(1, 1, 1)}, "fedavg") == ""
    assert work_sentence({}, None) == ""


def test_work_is_read_from_a_run_folder_and_stands_in_the_table_of_costs(run_folder):
    folder = run_folder(names=(0, 1), rounds=3, methods=("local", "fedavg"))
    work = read_work(folder)
    assert work["fedavg"].client_rounds == 6  # two clients in three rounds
    table = cost_table({"scores": {"fedavg": {}, "linear": {}}}, work)
    assert table.rows[0][1] == "6" and table.rows[1][1:4] == ("—",) * 3
    (folder / "record.jsonl").unlink()
    assert read_work(folder) == {}
