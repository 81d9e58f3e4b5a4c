"""Signals that ask a process to end: SIGTERM and SIGHUP have the effect of Ctrl-C, in one process and in several."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.shares import share

from fedloom.system.processes import can_fork
from fedloom.system.signals import Stopped, stop_on_signals

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")

RECIPE = """\
data: {{name: emoji, limit: 12, test_share: 0.03}}
model: {{path: {model}, threads: 1}}
scenario: {{clients: 2}}
train: {{rounds: 100000, batch_size: 4}}
evaluate: {{every: 0}}
methods: [fedavg]
engine: {{workers: {workers}}}
"""
GRID = "grid: {seed: [0, 1, 2]}\n"
PATIENCE = 600.0
"""Seconds after which a process hangs."""
STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def hear_all() -> None:
    """Let a command hear every signal that asks it to end, also where this process ignores some, as under nohup."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def begin(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command in a process group of its own, which is killed at the end."""
    begun: list[subprocess.Popen[str]] = []

    def command(what: str, *words: str, workers: int = 1) -> subprocess.Popen[str]:
        recipe = tmp_path / "mine.yaml"
        text = RECIPE.format(model=tiny_model, workers=workers) + (GRID if what == "sweep" else "")
        recipe.write_text(text)
        given = [str(recipe), "--out", str(tmp_path / "out"), *words]
        process = subprocess.Popen(
            [sys.executable, "-m", "fedloom", what, *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_all,
        )
        begun.append(process)
        return process

    yield command
    for process in begun:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def alive(group: int) -> bool:
    """Return whether any process of a group exists that was not waited for."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.02)


def commits(folder: Path) -> bool:
    return any(folder.rglob("round-*.json"))


@pytest.mark.parametrize(
    ("number", "workers", "group"),
    share(
        [
            (signal.SIGTERM, 1, False),
            (signal.SIGTERM, 2, True),
            (signal.SIGINT, 2, True),
            (signal.SIGHUP, 2, False),
        ],
        every=4,
        first=2,
    ),
)
def test_an_interrupted_run_shows_how_to_continue(
    number: int, workers: int, group: bool, begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process, folder = begin("run", workers=workers), tmp_path / "out"
    wait(lambda: commits(folder) or process.poll() is not None)
    (os.killpg if group else os.kill)(process.pid, number)
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, output
    assert output.endswith(f"fedloom: interrupted; `fedloom resume {folder}` continues from there\n")
    assert "Traceback" not in output
    assert output.count("fedloom: interrupted") == 1
    wait(lambda: not alive(process.pid))
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_sweep_ended_by_a_signal_shows_how_to_continue(
    jobs: str, begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process, folder = begin("sweep", "--jobs", jobs), tmp_path / "out"
    wait(lambda: commits(folder) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGTERM)
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, output
    assert re.search(r"fedloom: interrupted; `fedloom sweep .* --out .*` continues from there\n$", output)
    assert "Traceback" not in output
    wait(lambda: not alive(process.pid))


def test_an_early_signal_promises_no_continuation(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = begin("run")
    # torch is a library that is loaded only once a command is at work.
    wait(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text() or process.poll() is not None)
    os.kill(process.pid, signal.SIGTERM)
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, output
    expected = (
        "continues from there" if (tmp_path / "out/experiment.json").exists() else "nothing was started"
    )
    assert expected in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_clients_of_a_killed_worker_are_missing_and_the_run_continues(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """One of two processes is killed, once; the other's client has its update, and the next round has both."""
    process, folder = begin("run", workers=2), tmp_path / "out"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def rounds() -> list[dict[str, Any]]:
        lines = (folder / "record.jsonl").read_text().splitlines()[:-1]  # the last may be half written
        return [one for one in map(json.loads, lines) if one["kind"] == "round"]

    def missing() -> list[int]:
        return [
            one["round"]
            for one in rounds()
            if any("SIGKILL" in why["reason"] for why in one.get("missing", []))
        ]

    before = 0

    def killed() -> bool:
        nonlocal before
        assert process.poll() is None
        # One in each round at most. A process that has sent all is not missed: then one of a later round is killed.
        if not missing() and (done := len(rounds())) > before:
            with suppress(ProcessLookupError, IndexError):  # there is none between two rounds
                os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
                before = done
        return bool(missing())

    wait(lambda: commits(folder) or process.poll() is not None)
    wait(killed)
    (first, *_) = missing()
    wait(lambda: any(int(file.stem[6:]) > first + 3 for file in folder.rglob("round-*.json")))
    assert process.poll() is None
    process.terminate()
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_killed_job_fails_its_cell_and_the_others_continue(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process, folder = begin("sweep", "--jobs", "2", "--set", "train.rounds=40"), tmp_path / "out"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait(lambda: commits(folder) or process.poll() is not None)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, output
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    assert sorted(cell["state"] for cell in cells) == ["done", "done", "failed"]
    assert "SIGKILL" in next(cell["error"] for cell in cells if cell["state"] == "failed")
    assert "sweep.json has the reasons" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", STOPPING)
def test_the_second_signal_ends_at_once(number: int) -> None:
    code = (
        "import os, time\n"
        "from types import SimpleNamespace\n"
        "from fedloom.system import signals\n"
        "now = 0.0\n"
        "signals.time = SimpleNamespace(monotonic=lambda: now)  # however slow this machine is\n"
        "with signals.stop_on_signals():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        time.sleep(60)\n"
        "    except signals.Stopped:\n"
        f"        os.kill(os.getpid(), {int(number)})  # soon after the first: the same request\n"
        "        now = signals.ECHO + 0.1\n"
        "        print('heard', flush=True)\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        time.sleep(60)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=hear_all,
    )
    assert ended.stdout == "heard\n"
    assert ended.returncode == -number


def test_ignored_signals_stay_ignored_and_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped), stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert [signal.getsignal(number) for number in STOPPING] == before


@pytest.mark.parametrize("words", [["list", "recipes"], ["show", "quickstart"], ["--help"]])
def test_a_closed_output_gives_no_traceback(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "fedloom", *words],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    os.close(write)
    assert ended.stderr == ""
    assert ended.returncode in (1, 141)  # help is printed by typer, which has a code of its own


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_output_is_reported() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "fedloom", "list", "recipes"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert ended.returncode == 2
    assert "no space is left" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
