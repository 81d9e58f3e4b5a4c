"""Faults of a real federation that are no kills: stopped sites, full disks, sites that differ, and clocks that are off."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.federated import FederatedRun, descendants, require_equal, undisturbed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("flwr") is None,
        reason="Flower is not installed; `pip install 'fedloom[flower]'`",
    ),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc"),
]

SITES = {"north": "0", "south": "1"}

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += SHIFT;
    return result;
}

int gettimeofday(struct timeval *time, void *zone) {
    struct timespec precise;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    time->tv_sec = precise.tv_sec;
    time->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *place) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (place) *place = precise.tv_sec;
    return precise.tv_sec;
}
"""
"""A library that shifts the clock of a process by SHIFT seconds; what it starts inherits it."""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return undisturbed(tmp_path_factory.mktemp("faults"), tiny_model, 4)


def shifted_clock(folder: Path, seconds: int) -> list[str]:
    """Return a command in which a process has a clock that is so many seconds ahead."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build a clock that is off")
    source, library = folder / "clock.c", folder / f"clock{seconds}.so"
    source.write_text(CLOCK)
    built = [compiler, "-shared", "-fPIC", f"-DSHIFT={seconds}", str(source), "-o", str(library), "-ldl"]
    subprocess.run(built, check=True, capture_output=True)
    return ["env", f"LD_PRELOAD={library}"]


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Mount a file system of 64 MB."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(place)]
    done = (
        subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    )
    if done is None or done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip() if done else 'there is no mount'}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Use up a disk, and return the file that does."""
    file = place / "filler"
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    return file


@pytest.mark.parametrize("whole", [False, True], ids=["the process", "the process and Flower's"])
def test_a_stopped_site_is_late_and_takes_part_again(tmp_path: Path, tiny_model: Path, whole: bool) -> None:
    """It misses the deadline, what it sends later is recorded and not counted, and it is asked again."""
    experiment = undisturbed(tmp_path, tiny_model, 8)
    terms = ["--deadline", "45", "--quorum", "1", "--policy", "wait"]
    with FederatedRun(tmp_path, experiment, SITES, terms) as run:
        run.after_round(1)
        south = run.processes["south"].pid
        stopped = descendants(south) if whole else [south]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        reason = {"client": 1, "reason": "site south did not answer within 45 seconds"}
        run.until(lambda: [one for one in run.events("round") if reason in one["missing"]])
        missed = run.events("round")[-1]["round"]
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert run.wait() == [0, 0, 0], run.told()
        assert "south" in [one["site"] for one in run.events("late")]
        rounds = run.events("round")
        assert [one["round"] for one in rounds] == list(range(8)), "each round counts once"
        answered = [one["round"] for one in rounds if 1 in [client["client"] for client in one["clients"]]]
        assert missed not in answered
        assert answered[-1] > missed, "it takes part again"


@pytest.mark.parametrize("full", ["south", "server"])
def test_a_full_disk_ends_a_side_which_goes_on_when_there_is_space(
    tmp_path: Path, experiment: Path, full: str
) -> None:
    place = tmp_path / {"server": "there"}.get(full, full)
    with small_disk(place), FederatedRun(tmp_path, experiment, SITES) as run:
        run.after_round(1)
        filler = fill(place)
        assert run.processes[full].wait(600) == 2, run.told()
        assert "no space is left on the disk" in run.told(full)
        assert "Traceback" not in run.told(full)
        filler.unlink()
        run.start_server() if full == "server" else run.start_site(full)
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)


def test_sites_that_differ_are_refused_and_named(tmp_path: Path, experiment: Path, tiny_model: Path) -> None:
    """One has another version of fedloom and one another base model; the site that is right takes their place."""
    old, other = tmp_path / "old-version", tmp_path / "other-model"
    old.mkdir()
    (old / "sitecustomize.py").write_text("import fedloom.version\nfedloom.version.__version__ = '0.1.9'\n")
    shutil.copytree(tiny_model, other)
    weights = next(other.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    path = os.pathsep.join([str(old), os.environ.get("PYTHONPATH", "")])
    sites = {"ancient": "0", "different": ["--clients", "0", "--model", str(other)], **SITES}
    around = {"ancient": ["env", f"PYTHONPATH={path}"]}
    with FederatedRun(tmp_path, experiment, sites, late=["north"], around=around) as run:
        run.until(lambda: run.told("server").count("site refused") >= 2)
        run.start_site("north")
        assert run.processes["server"].wait(600) == 0, run.told()
        reasons = {one["site"]: str(one["reason"]) for one in run.events("site refused")}
        assert "and this site 0.1.9; install the same" in reasons["ancient"]
        assert "another" in reasons["different"]
        assert "model" in reasons["different"]
        assert len(run.events("site refused")) == 2, "each is noted once"
        assert {one["site"] for one in run.events("site joined")} == {"north", "south"}
        require_equal(run, experiment)


def test_clocks_that_differ_by_minutes_change_nothing(tmp_path: Path, experiment: Path) -> None:
    """Flower accepts a site whose clock is up to 305 seconds behind."""
    around = {"south": shifted_clock(tmp_path, -200)}
    with FederatedRun(tmp_path, experiment, SITES, around=around) as run:
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)


def test_a_clock_that_is_off_is_named_and_the_site_joins_when_it_is_set(
    tmp_path: Path, experiment: Path
) -> None:
    """Flower refuses what is signed in the future, with and without keys of fedloom; the site's message names the clock."""
    around = {"south": shifted_clock(tmp_path, 3600)}
    with FederatedRun(tmp_path, experiment, SITES, around=around) as run:
        run.until(lambda: "clock is 1:00:0" in run.told("south") or "clock is 0:59:5" in run.told("south"))
        assert run.kill("south", signal.SIGTERM) == 143
        around.clear()
        run.start_site("south")
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
