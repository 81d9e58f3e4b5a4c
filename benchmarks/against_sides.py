"""Create the two checkouts of `benchmarks.against`, and start the processes that run their code."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.__main__ import ENVIRONMENT
from benchmarks.harness import ROOT, THREADS

SCRIPT = ROOT / "benchmarks" / "against_worker.py"
PATIENCE = 30.0
"""Seconds that a process has to end, including the call in progress."""


class Failed(Exception):
    """Raised if a side gave no figure; the message gives the reason."""


@dataclass(frozen=True)
class Side:
    """A checkout that is measured.

    Attributes:
        name: "before" or "after".
        folder: Its root.
        cache: Where its runs keep encoder features.
    """

    name: str
    folder: Path
    cache: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its processes: its sources and no others."""
        path = os.pathsep.join([str(self.folder / "src"), str(self.folder)])
        cache = str(self.cache)
        return {
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": path,
            "PYTHONSAFEPATH": "1",
            "FEDLOOM_CACHE": cache,
        }


class Worker:
    """A process of a side that answers requests; see `against_worker`."""

    def __init__(self, side: Side, vocabulary: int = 0, script: Path = SCRIPT) -> None:
        """Start the process."""
        self.side = side
        self.about: dict[str, Any] = {}
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(vocabulary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=side.cache,
            env=side.environment,
        )

    def greet(self) -> dict[str, Any]:
        """Read the process's first line, and check that it runs the side's own sources.

        Raises:
            Failed: It did not start, or runs other sources.
        """
        about = self._answer()
        for name in ("fedloom", "benchmarks"):
            if not Path(about[name]).resolve().is_relative_to(self.side.folder):
                raise Failed(
                    f"{self.side.name}: {name} comes from {about[name]}, not from {self.side.folder}"
                )
        return about

    def ask(self, request: str) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            Failed: The answer is an error, or the process ended.
        """
        self.tell(request)
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Wait for the answer to a request that was sent; see `ask` for errors."""
        answer = self._answer()
        if "error" in answer:
            raise Failed(f"{self.side.name}: {answer['error']}")
        return answer

    def tell(self, request: str) -> None:
        """Send a request without waiting; if the process has ended, reading the answer raises the error."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End the requests, and kill the process if it does not end then."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            output = " / ".join(self._errors.read().strip().splitlines()[-3:])
            raise Failed(
                f"{self.side.name}: the process ended with status {self._process.returncode}: {output}"
            )
        return json.loads(line)


@contextmanager
def opened(sides: Iterable[Side], vocabulary: int = 0) -> Iterator[dict[str, Worker]]:
    """Start a process of each side for the duration of the block; see `Worker.greet` for errors."""
    workers: dict[str, Worker] = {}
    try:
        for side in sides:
            workers[side.name] = Worker(side, vocabulary)
        for worker in workers.values():
            worker.about = worker.greet()
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


@dataclass(frozen=True)
class Quickstart:
    """The quickstart as a user runs it.

    Attributes:
        methods: Its methods, joined with commas; "all" for the recipe's own.
        model: A folder for both sides, or None if both have the same bundled model.
    """

    methods: str
    model: Path | None = None

    @property
    def settings(self) -> list[str]:
        """The settings that replace the recipe's."""
        methods = [] if self.methods == "all" else [f"methods=[{self.methods}]"]
        return [*methods, *([f"model.path={self.model}"] if self.model else [])]

    def run(self, side: Side) -> tuple[dict[str, float], dict[str, float]]:
        """Run the whole command, and return its figures and accuracies.

        Raises:
            Failed: It ended with an error.
        """
        settings = [part for one in self.settings for part in ("--set", one)]
        environment = {name: value for name, value in side.environment.items() if name not in THREADS}
        with tempfile.TemporaryDirectory(dir=side.cache) as name, tempfile.TemporaryFile("w+") as output:
            out = Path(name) / "run"
            command = [sys.executable, "-m", "fedloom", "run", "quickstart", *settings, "--out", str(out)]
            begun = time.perf_counter()
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=name, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                output.seek(0)
                last = " / ".join(output.read().strip().splitlines()[-3:])
                raise Failed(f"{side.name}: the quickstart ended with status {process.returncode}: {last}")
            scores = accuracies(json.loads((out / "result.json").read_text(encoding="utf-8")))
        figures = {
            "quickstart-seconds": seconds,
            "quickstart-cpu": usage.ru_utime + usage.ru_stime,
            "quickstart-memory": usage.ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0),
        }
        return figures, scores


def accuracies(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy of each method on each slice of a run's test set."""
    return {
        f"{method}, {name}": row["accuracy"]
        for method, score in result["scores"].items()
        for name, row in score.get("slices", {}).items()
    }


def git(*arguments: str) -> str:
    """Run git in this repository and return what it prints.

    Raises:
        SystemExit: It failed; the message is git's.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit("git is not installed; give the folder of a checkout in place of a commit") from None
    if done.returncode:
        raise SystemExit(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def checkout(before: str, place: Path) -> Iterator[Path]:
    """Yield the folder of the side to compare with, a given one or a temporary checkout of a commit.

    Raises:
        SystemExit: It is neither a folder with fedloom's sources nor a commit.
    """
    folder = Path(before)
    if folder.is_dir():
        if not (folder / "src" / "fedloom").is_dir() or not (folder / "benchmarks" / "harness.py").is_file():
            raise SystemExit(
                f"{before} has no src/fedloom and benchmarks/harness.py; give a checkout or a commit"
            )
        yield folder.resolve()
        return
    commit = git("rev-parse", "--verify", f"{before}^{{commit}}")
    git("worktree", "add", "--detach", "--quiet", str(place), commit)
    try:
        yield place.resolve()
    finally:
        git("worktree", "remove", "--force", str(place))


def named(folder: Path) -> str:
    """Return which commit a folder holds, and whether it was changed since."""
    try:
        return git("-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except SystemExit:  # a folder without its history
        return "unknown"


def same_files(one: Path, other: Path) -> bool:
    """Return whether two model folders hold the same files, apart from their documentation."""
    names = [{file.name for file in folder.iterdir() if file.suffix != ".md"} for folder in (one, other)]
    return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, names[0], shallow=False)[1:])
