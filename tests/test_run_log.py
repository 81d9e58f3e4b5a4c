"""The run log, and files that are written whole or not at all."""

import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.run_log import CHECKS, RunLog, head_of, position_of_head, read_lines
from fedloom.system.errors import UserError
from fedloom.system.json_files import read_json, read_text, to_json, write_atomic, write_json

VALUES = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda key: key not in ("kind", *CHECKS)),
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
def test_appended_lines_are_read_back(rows):
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder) / "run" / "record.jsonl")
        for row in rows:
            log.append("round", row)
        expected = [{"kind": "round", **row} for row in rows]
        assert list(log) == expected
        assert list(RunLog(log.path)) == expected


@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_a_log_cut_anywhere_keeps_its_whole_lines_and_continues(rows, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.jsonl"
        log = RunLog(path)
        for row in rows:
            log.append("round", row)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        whole = (content[:cut] + b"\n").count(b'"}\n')  # a line that lacks its end only is whole
        again = RunLog(path)
        again.append("end", {})
        assert list(again) == [{"kind": "round", **row} for row in rows[:whole]] + [{"kind": "end"}]
        assert path.read_bytes().startswith(content[: content[:cut].rfind(b"\n") + 1])


def begin_as_version_0_2(path: Path) -> None:
    """Write the first line of a log as version 0.2 did: its last value is the CRC-32 of the line without it."""
    text = b'{"kind": "start", "seed": 0}'
    path.write_bytes(text[:-1] + b', "crc32": "%08x"}\n' % zlib.crc32(text))


@pytest.fixture(params=["this version", "version 0.2"])
def begun(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of a log that this version or an earlier one has begun."""
    path = tmp_path / "record.jsonl"
    if request.param == "version 0.2":
        begin_as_version_0_2(path)
    else:
        RunLog(path).append("start", {"seed": 0})
    return path


def test_any_flipped_bit_of_a_log_is_noticed_or_repaired(begun: Path) -> None:
    path = begun
    log = RunLog(path)
    for number in range(3):
        log.append("round", {"round": number, "loss": 1 / (number + 1)})
    content, lines = path.read_bytes(), list(log)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read = list(RunLog(path))
        except UserError as error:
            assert "record.jsonl, line" in str(error)
        else:
            assert read == lines


def test_lines_that_are_missing_repeated_or_moved_are_noticed(begun: Path) -> None:
    path = begun
    for number in range(1, 4):
        RunLog(path).append("round", {"seed": number})
    lines = path.read_bytes().splitlines(keepends=True)
    a, b, c, d = lines
    for damaged in (
        [b, c, d],
        [a, c, d],
        [a, b, d],
        [a, a, b, c, d],
        [a, b, c, d, d],
        [b, a, c, d],
        lines * 2,
    ):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(UserError, match=r"record\.jsonl, line \d"):
            list(read_lines(path))
        with pytest.raises(UserError, match=r"record\.jsonl, line \d"):
            RunLog(path)
    path.write_bytes(b"".join(lines))
    assert [line["seed"] for line in RunLog(path)] == [0, 1, 2, 3]


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def test_a_lines_digest_covers_the_line_and_the_digest_before(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    assert head_of(RunLog(path).path) is None
    RunLog(path).append("start", {"seed": 0})
    RunLog(path).append("end", {})
    first = sha256(b'{"kind": "start", "seed": 0}')
    second = sha256(first + b'{"kind": "end"}')
    assert path.read_bytes() == (
        b'{"kind": "start", "seed": 0, "line_sha256": "%s"}\n{"kind": "end", "line_sha256": "%s"}\n'
        % (first, second)
    )
    assert head_of(path) == second.decode()


def test_a_log_of_version_0_2_goes_on_as_it_began_and_has_no_head(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    begin_as_version_0_2(path)
    before = path.read_bytes()[-11:-3]
    RunLog(path).append("end", {})
    text = b'{"kind": "end"}'
    assert path.read_bytes().splitlines()[1] == text[:-1] + b', "crc32": "%08x"}' % zlib.crc32(before + text)
    assert list(RunLog(path)) == [{"kind": "start", "seed": 0}, {"kind": "end"}]
    assert head_of(path) is None
    with pytest.raises(UserError, match="CRC-32"):
        position_of_head(path, before.decode())


def rewrite(path: Path, old: str, new: str) -> None:
    """Change a text in a log and compute all checksums anew, as someone with fedloom could."""
    lines = list(read_lines(path))
    path.unlink()
    log = RunLog(path)
    for _, line in lines:
        values = json.loads(json.dumps(line).replace(old, new))
        log.append(values.pop("kind"), values)


def test_a_log_whose_checksums_were_all_computed_anew_is_noticed_with_the_kept_head(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    log = RunLog(path)
    for number in range(3):
        log.append("round", {"round": number, "loss": 0.5})
    head = head_of(path)
    assert head is not None
    assert position_of_head(path, head) == (3, 3)
    log.append("end", {})
    assert position_of_head(path, head) == (3, 4)  # a log that went on still holds what was kept
    rewrite(path, "0.5", "0.4")
    assert len(list(RunLog(path))) == 4  # by itself, the rewritten log is as good as an original
    with pytest.raises(UserError, match=f"head {head}: it was rewritten or cut"):
        position_of_head(path, head)


def test_a_log_that_lost_its_last_lines_is_noticed_with_the_kept_head(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for number in range(3):
        RunLog(path).append("round", {"round": number})
    head = head_of(path)
    assert head is not None
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert len(list(RunLog(path))) == 2
    with pytest.raises(UserError, match="rewritten or cut"):
        position_of_head(path, head)


def test_a_removed_log_is_not_made_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run" / "record.jsonl")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="removed"):
        log.append("round", {})
    with pytest.raises(UserError, match="removed"):
        write_atomic(tmp_path / "run" / "methods" / "file", b"", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mark", ["\n", "\r", "\x85", "\u2028", "\u2029", "\x0c", "naïve 🙂"])
def test_no_text_can_break_a_line(tmp_path, mark):
    log = RunLog(tmp_path / "record.jsonl")
    log.append("data", {"text": f"before{mark}after"})
    assert [row["text"] for row in log] == [f"before{mark}after"]


def test_a_log_without_a_file_is_empty(tmp_path):
    assert list(RunLog(tmp_path / "new" / "record.jsonl")) == []


def test_a_whole_file_is_not_touched_when_opened(tmp_path):
    path = tmp_path / "record.jsonl"
    RunLog(path).append("start", {"seed": 0})
    before = path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()
    RunLog(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) == before


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, b"old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["result.json"]


def test_files_are_synced_before_anything_relies_on_them(tmp_path, monkeypatch):
    """A power cut keeps what was synced: the file's bytes before it gets its name, its name before the call returns."""
    done, sync, rename = [], os.fsync, os.replace

    def syncing(number):
        sync(number)
        done.append((os.fstat(number).st_ino, os.fstat(number).st_size))

    def renaming(old, new):
        rename(old, new)
        done.append("named")

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", renaming)
    path = tmp_path / "result.json"
    write_atomic(path, b"12345")
    file, named, folder = done
    assert (file, named, folder[0]) == ((path.stat().st_ino, 5), "named", tmp_path.stat().st_ino)
    log = RunLog(tmp_path / "record.jsonl")
    for number in range(3):
        log.append("round", {"round": number})
        assert done[-1] == (log.path.stat().st_ino, log.path.stat().st_size)


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

    monkeypatch.setattr(os, "replace", meanwhile)
    write_atomic(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert os.listdir(tmp_path) == ["shared.json"]


@given(VALUES)
def test_json_files_hold_their_value_in_its_order(value):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a" / "file.json"
        write_json(file, value)
        read = json.loads(file.read_text(encoding="utf-8"))
        assert read == value
        assert list(read) == list(value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1, column 1: not JSON"),
        (b'{"a": 1', "not JSON"),
        (b'{\n"a": }', "line 2, column 6"),
        (b"[1]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b'{"a": "\xff"}', "line 1: not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": "1"}', 'key "a" is missing or is not a whole number'),
        (b'{"a": true}', 'key "a" is missing or is not a whole number'),
        (b"{}", 'key "a" is missing'),
    ],
)
def test_damaged_json_names_the_file_and_the_place(tmp_path, content, said):
    file = tmp_path / "result.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(file, {"a": int})
    assert str(caught.value).startswith(str(file))
    assert said in str(caught.value)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_a_mistake(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.json"
        file.write_bytes(content)
        try:
            assert isinstance(read_json(file), dict)
        except UserError as error:
            assert str(file) in str(error)


def test_a_pipe_or_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(UserError, match=kind):
            read_json(path)
    (tmp_path / "long").write_bytes(b"x" * 11)
    with pytest.raises(UserError, match="larger than 10 bytes"):
        read_text(tmp_path / "long", 10)


def test_a_damaged_line_of_the_log_is_named(tmp_path):
    log = RunLog(tmp_path / "record.jsonl")
    log.append("start", {})
    log.path.write_bytes(log.path.read_bytes() + b"{]\n")
    with pytest.raises(UserError, match="line 2"):
        list(log)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "result.json", b"{}")
    assert list(tmp_path.iterdir()) == []


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
def test_numbers_that_are_not_finite_become_null(value):
    def same(left, right):
        if isinstance(right, float) and not math.isfinite(right):
            return left is None
        if isinstance(right, list):
            return len(left) == len(right) and all(map(same, left, right))
        if isinstance(right, dict):
            return list(left) == list(right) and all(same(left[key], one) for key, one in right.items())
        return left == right and type(left) is type(right)

    assert same(strictly(to_json(value)), value)


def test_every_line_and_file_is_standard_json(tmp_path):
    bad = {"loss": math.nan, "scores": ({"auc": [math.inf, 0.5]},), "gain": np.float64("-inf")}
    log = RunLog(tmp_path / "record.jsonl")
    log.append("round", bad)
    write_json(tmp_path / "result.json", bad)
    right = {"loss": None, "scores": [{"auc": [None, 0.5]}], "gain": None}
    line = strictly(log.path.read_text())
    assert {key: line[key] for key in line if key not in CHECKS} == {"kind": "round", **right}
    assert strictly((tmp_path / "result.json").read_text()) == right
