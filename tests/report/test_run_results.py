"""Reading run folders: the content is kept, and the message about a broken folder names file and line."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.report.run_results import FILES, number, read_run
from fedloom.system.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_reads_what_was_written(run_folder):
    folder = run_folder()
    run = read_run(folder)
    lines = (folder / "record.jsonl").read_text(encoding="utf-8").splitlines()
    assert [dict(line) for line in run.record] == [json.loads(line) for line in lines]
    assert run.plan == json.loads((folder / "plan.json").read_text())


def test_methods_come_in_the_order_of_the_experiment_although_json_sorts_keys(run_folder):
    methods = ["zero-shot", "fedprox", "centralized", "fedavg"]
    run = read_run(run_folder(methods=methods))
    assert list(run.scores) == methods


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(run_folder, name):
    folder = run_folder()
    (folder / name).unlink()
    with pytest.raises(UserError, match=re.escape(str(folder / name))):
        read_run(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        read_run(tmp_path / "nowhere")


BROKEN = [
    ("{", "not JSON"),
    ("[1]", "JSON object"),
    ("{}", '"kind"'),
    ('{"kind": 3}', '"kind"'),
    ('{"kind": "round", "method": "fedavg"}', '"round"'),
    ('{"kind": "evaluation", "method": "fedavg", "round": 1, "slice": "both"}', '"scores"'),
    ('{"kind": "evaluation", "method": [], "round": 1, "slice": "both", "scores": {}}', '"method"'),
]


@pytest.mark.parametrize(("line", "phrase"), BROKEN)
@pytest.mark.parametrize("place", [1, 4])
def test_a_broken_record_line_is_named_by_file_and_line(run_folder, line, phrase, place):
    path = run_folder() / "record.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([*lines[: place - 1], line, *lines[place - 1 :]]), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_run(path.parent)
    message = str(caught.value)
    assert str(path) in message and f"line {place}" in message and phrase in message


def test_bytes_that_are_not_utf8_are_named_by_line(run_folder):
    path = run_folder() / "record.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\xff", 1))
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        read_run(path.parent)


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("result.json", {"main": None}, '"scores"'),
        ("result.json", {"scores": {"fedavg": 3}}, "fedavg"),
        ("result.json", {"main": "fedavg", "scores": {}, "parts": 3}, "parts"),
        ("plan.json", {"clients": [3]}, r"clients\[0\]"),
        ("plan.json", {"clients": {}}, '"clients"'),
        ("experiment.json", {}, '"name"'),
    ],
)
def test_a_document_without_what_a_report_needs_is_named(run_folder, name, content, phrase):
    folder = run_folder()
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=phrase) as caught:
        read_run(folder)
    assert name in str(caught.value)


def test_line_separators_inside_strings_do_not_end_lines(run_folder):
    reason = "a.png: one\u2028two\u2029three\x85four"
    run = read_run(run_folder(rejected=[reason]))
    assert run.of_kind("data")[0]["rejected"] == [reason]


def test_of_a_repeated_round_only_the_last_line_counts(run_folder):
    path = run_folder() / "record.jsonl"
    before = read_run(path.parent)
    again = {**next(line for line in before.record if line["kind"] == "round"), "loss": 123.0}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(again) + "\n")
    after = read_run(path.parent)
    assert len(after.rounds) == len(before.rounds)
    assert 123.0 in [line["loss"] for line in after.rounds]


@given(JSON, st.lists(st.text() | st.integers(-3, 3), max_size=3))
def test_number_gives_finite_floats_or_none_whatever_the_value(value, keys):
    result = number(value, *keys)
    assert result is None or (isinstance(result, float) and abs(result) < float("inf"))


def test_reports_import_no_torch():
    code = "import fedloom.report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
