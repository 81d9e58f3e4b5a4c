"""A folder is used by one process at a time, and leftovers of a killed process are removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from fedloom.runs.run_lock import lock_folder, remove_temporary_files
from fedloom.system.errors import UserError

HOLD = """
import sys
from pathlib import Path
from fedloom.runs.run_folder import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_process_at_a_time(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as other:
        assert other.stdout is not None and other.stdout.readline() == "here\n"
        with pytest.raises(UserError, match="another process is working in it"), lock_folder(tmp_path):
            pass
        other.kill()
    with lock_folder(tmp_path):  # nothing has to be cleared away after a kill
        pass
    with lock_folder(tmp_path):
        pass


def test_a_folder_is_one_thread_at_a_time(tmp_path: Path) -> None:
    faults, linked = list[str](), tmp_path / "link"
    (tmp_path / "mine").mkdir()
    linked.symlink_to(tmp_path / "mine", target_is_directory=True)

    def work(folder: Path) -> None:
        try:
            with lock_folder(folder):
                faults.append("locked")
        except UserError as error:
            faults.append(str(error))

    with lock_folder(tmp_path / "mine"):
        for folder in (tmp_path / "mine", linked):
            thread = Thread(target=work, args=(folder,))
            thread.start()
            thread.join()
        # The refused threads did not take the lock from this one either.
        command = [sys.executable, "-c", HOLD, str(tmp_path / "mine")]
        other = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert "another process is working in it" in other.stderr
    assert len(faults) == 2 and all("another run of this process is working in it" in one for one in faults)
    work(linked)
    assert faults[-1] == "locked"


def test_a_forked_copy_does_not_keep_the_folder_locked(tmp_path: Path) -> None:
    there, done = os.pipe()
    with lock_folder(tmp_path):
        copy = os.fork()
        if not copy:
            os.close(done)
            os.read(there, 1)  # lives until the end of the test
            os._exit(0)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "here\n"
        other.communicate()
    os.close(done)
    assert os.waitpid(copy, 0)[1] == 0


def test_files_that_a_killed_process_was_writing_are_removed(tmp_path: Path) -> None:
    kept = tmp_path / "methods" / "fedavg" / "round-0001.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"whole")
    (kept.parent / ".round-0002.safetensors.77.tmp").write_bytes(b"ha")
    (tmp_path / ".result.json.77.tmp").write_bytes(b"{")
    remove_temporary_files(tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [kept]
