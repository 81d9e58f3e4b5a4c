"""Temporary folders: removed at the end, removed by the next process after a kill, and kept while their process lives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedloom.system.temporary_folders import remove_leftovers, temporary_folder

WORK = """
import sys, time
from pathlib import Path
from fedloom.system.temporary_folders import temporary_folder
with temporary_folder(Path(sys.argv[1]), sys.argv[2]) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    print("ready", flush=True)
    sys.stdin.read()
"""


def started(parent: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORK, str(parent), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate()
    return process.returncode


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_removed_at_the_end_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path / "new", "a") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path / "new"
        raise KeyboardInterrupt
    assert names(tmp_path / "new") == set()


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead, alive = started(tmp_path, "a"), started(tmp_path, "a")
    assert len(names(tmp_path)) == 2
    os.kill(dead.pid, signal.SIGKILL)
    assert ended(dead) == -signal.SIGKILL
    with (
        temporary_folder(tmp_path, "a") as mine,
        temporary_folder(tmp_path, "a") as other,
    ):  # threads of one process, too
        assert len(names(tmp_path)) == 3 and mine.is_dir() and other.is_dir()
    (left,) = tmp_path.iterdir()
    assert (left / "deep" / "file").read_text() == "x"
    assert ended(alive) == 0
    assert names(tmp_path) == set()


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis").write_text("important")
    kept = ["a", ".a", ".a-b", ".a-12345678", ".ab-12345678.tmp", ".b-12345678.tmp", ".a-123456789.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".a-abcdefgh.tmp").symlink_to(target)
    (tmp_path / ".a-abcdefgi.tmp").write_text("a file")
    before = names(tmp_path)
    (tmp_path / ".a-12345678.tmp").mkdir()
    remove_leftovers(tmp_path, "a")
    assert names(tmp_path) == before and (target / "thesis").exists()
    remove_leftovers(tmp_path / "nowhere", "a")


def test_errors_name_the_parent_and_not_the_temporary_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError) as full, temporary_folder(tmp_path, "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as taken, temporary_folder(tmp_path / "file" / "b", "a"):
        pass
    assert ".tmp" not in str(taken.value.filename)
