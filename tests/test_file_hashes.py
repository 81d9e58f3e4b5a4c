"""Digests of files are always those of the content, whatever the cache holds."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from fedloom.system import file_hashes
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import combine_digests, file_digest, file_digests

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of "abc", FIPS 180-2, appendix B.1."""


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED", -1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/file"
    path.write_bytes(b"abc")
    return path


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every reading of a file for its digest fail."""

    def refuse(file: BinaryIO, algorithm: str) -> NoReturn:
        raise AssertionError(f"{file.name} was read")

    monkeypatch.setattr(hashlib, "file_digest", refuse)


def test_the_digest_is_sha_256(file: Path) -> None:
    assert file_digest(file) == ABC


def test_a_file_that_has_not_changed_is_not_read_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_digest(file, tmp_path / "known") == ABC
    unread(monkeypatch)
    assert file_digest(file, tmp_path / "known") == ABC


def same_size(file: Path) -> None:
    file.write_bytes(b"abd")


def old_time(file: Path) -> None:
    before = file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(file: Path) -> None:
    before = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"abd")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)


@pytest.mark.parametrize("change", [same_size, old_time, replaced])
def test_a_file_that_has_changed_is_read_again(
    file: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    file_digest(file, tmp_path / "known")
    change(file)
    assert file_digest(file, tmp_path / "known") == hashlib.sha256(b"abd").hexdigest()


def test_the_digest_of_a_recently_changed_file_is_not_cached(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the resolution of the clock would leave the same mark."""
    monkeypatch.setattr(file_hashes, "SETTLED", 3600 * 10**9)
    assert file_digest(file, tmp_path / "known") == ABC
    assert not (tmp_path / "known").exists()


def test_a_damaged_cache_never_changes_a_digest(file: Path, tmp_path: Path) -> None:
    known = tmp_path / "known"
    file_digest(file, known)
    content = known.read_bytes()
    for place in range(len(content)):
        for damaged in (
            content[:place],
            content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        ):
            known.write_bytes(damaged)
            assert file_digest(file, known) == ABC
    for odd in ([], {}, 7, [[]], [["a"]], [{"a": 1}], [[str(file), 1, 2, 3, 4, 5]]):
        body = json.dumps(odd).encode()
        known.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        assert file_digest(file, known) == ABC


def test_a_cache_that_cannot_be_written_or_read_is_not_needed(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for known in (file / "below a file", tmp_path, tmp_path / "pipe"):
        assert file_digest(file, known) == ABC


def test_several_may_write_at_once(file: Path, tmp_path: Path) -> None:
    many = [file.with_name(str(number)) for number in range(20)]
    for number, path in enumerate(many):
        path.write_text(str(number))
    expected = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in many}
    digests: list[dict[Path, str]] = []

    def work(start: int) -> None:
        for shift in range(10):
            digests.append(file_digests(many[start + shift :] + many[: start + shift], tmp_path / "known"))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [expected] * 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "known"]


def test_the_cache_is_bounded_and_the_latest_digests_stay(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "MOST", 3)
    many = [file.with_name(str(number)) for number in range(5)]
    for path in many:
        path.write_text(path.name)
        file_digest(path, tmp_path / "known")
    unread(monkeypatch)
    file_digests(many[2:], tmp_path / "known")
    with pytest.raises(AssertionError, match="was read"):
        file_digest(many[1], tmp_path / "known")


def test_a_path_without_a_file_has_one_clear_message(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for odd, message in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(UserError, match=f"{odd} cannot be read.*{message}"):
            file_digest(odd)


def test_one_digest_of_several_depends_on_names_and_contents_and_not_on_order() -> None:
    one = combine_digests({"a": "1", "b": "2"})
    assert one == combine_digests({"b": "2", "a": "1"})
    assert (
        len(
            {
                one,
                combine_digests({"a": "2", "b": "1"}),
                combine_digests({"a": "1"}),
                combine_digests({"a": "12", "b": ""}),
            }
        )
        == 4
    )
