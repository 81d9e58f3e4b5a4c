"""Every module can be imported where Python lacks the modules of POSIX, as on Windows."""

from __future__ import annotations

import subprocess
import sys

IMPORTS = """
import sys, os, signal
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog"):
    sys.modules[name] = None  # importing it raises ImportError
for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "fork", "geteuid", "killpg", "sysconf"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "pthread_sigmask"):
    delattr(signal, name)
import fedloom
fedloom.Experiment(name="mine")
assert "fedloom.runs.single_run" not in sys.modules
import fedloom.cli, fedloom.runs.single_run, fedloom.runs.sweep, fedloom.runs.run_folder
from pathlib import Path
import tempfile
from fedloom.runs.run_lock import open_run_folder
from fedloom.system.json_files import read_json, write_json
from fedloom.system.temporary_folders import temporary_folder
with tempfile.TemporaryDirectory() as name:
    folder = Path(name) / "run"
    with open_run_folder(folder), temporary_folder(folder, "some"):
        write_json(folder / "some.json", {"a": 1})
        assert read_json(folder / "some.json") == {"a": 1}
    from fedloom.data import load_data
    from fedloom.config.schema import Data
    assert load_data(Data(name="shapes", limit=4), 0).train
"""


def test_modules_are_imported_and_files_written_without_posix() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
