"""The run log and files that appear whole or not at all."""

import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom import record
from fedloom.record import Record, to_json, write_atomic, write_json

VALUES = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda key: key != "kind"),
    st.one_of(
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.none(),
        st.booleans(),
    ),
    max_size=3,
)


@given(st.lists(VALUES, max_size=5))
def test_what_was_appended_is_what_is_read(rows):
    with tempfile.TemporaryDirectory() as folder:
        log = Record(Path(folder) / "run" / "record.jsonl")
        for row in rows:
            log.append("round", row)
        expected = [{"kind": "round", **row} for row in rows]
        assert list(log) == expected
        assert list(Record(log.path)) == expected


@settings(max_examples=50)
@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_can_go_on(rows, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.jsonl"
        log = Record(path)
        for row in rows:
            log.append("round", row)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        again = Record(path)
        again.append("end", {})
        assert list(again) == [{"kind": "round", **row} for row in rows[:whole]] + [{"kind": "end"}]
        assert path.read_bytes().startswith(content[: content[:cut].rfind(b"\n") + 1])


@pytest.mark.parametrize("mark", ["\n", "\r", "\x85", "\u2028", "\u2029", "\x0c", "naïve 🙂"])
def test_no_text_can_break_a_line(tmp_path, mark):
    log = Record(tmp_path / "record.jsonl")
    log.append("data", {"text": f"before{mark}after"})
    assert [row["text"] for row in log] == [f"before{mark}after"]


def test_a_record_without_a_file_is_empty(tmp_path):
    assert list(Record(tmp_path / "new" / "record.jsonl")) == []


def test_a_whole_file_is_not_touched_when_opened(tmp_path):
    path = tmp_path / "record.jsonl"
    Record(path).append("start", {"seed": 0})
    before = path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()
    Record(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) == before


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, b"old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(record.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["result.json"]


def test_two_processes_may_write_the_same_file_at_once(tmp_path, monkeypatch):
    path, rename = tmp_path / "shared.json", os.replace

    def meanwhile(*names):
        copy = os.fork()
        if not copy:
            monkeypatch.undo()
            write_atomic(path, b"theirs")
            os._exit(0)
        assert os.waitpid(copy, 0)[1] == 0 and path.read_bytes() == b"theirs"
        rename(*names)

    monkeypatch.setattr(record.os, "replace", meanwhile)
    write_atomic(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert os.listdir(tmp_path) == ["shared.json"]


@settings(max_examples=25)
@given(VALUES)
def test_json_files_hold_their_value_in_its_order(value):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a" / "file.json"
        write_json(file, value)
        read = json.loads(file.read_text(encoding="utf-8"))
        assert read == value
        assert list(read) == list(value)


def strictly(text):
    """Parse JSON as the standard has it: without NaN and Infinity."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


ANY = st.recursive(
    st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
)


@given(ANY)
def test_what_is_not_finite_is_null_and_all_else_as_it_was(value):
    def same(found, given):
        if isinstance(given, float) and not math.isfinite(given):
            return found is None
        if isinstance(given, list):
            return len(found) == len(given) and all(map(same, found, given))
        if isinstance(given, dict):
            return list(found) == list(given) and all(same(found[key], one) for key, one in given.items())
        return found == given and type(found) is type(given)

    assert same(strictly(to_json(value)), value)


def test_no_line_and_no_file_holds_what_is_no_json(tmp_path):
    bad = {"loss": math.nan, "scores": ({"auc": [math.inf, 0.5]},), "gain": np.float64("-inf")}
    log = Record(tmp_path / "record.jsonl")
    log.append("round", bad)
    write_json(tmp_path / "result.json", bad)
    right = {"loss": None, "scores": [{"auc": [None, 0.5]}], "gain": None}
    assert strictly(log.path.read_text()) == {"kind": "round", **right}
    assert strictly((tmp_path / "result.json").read_text()) == right
