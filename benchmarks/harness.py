"""The parts that all benchmarks share: interleaved pairs, rows with target and gate, the table, the results file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from fedloom.system.allocator import keep_freed
from fedloom.system.json_files import write_json

Clock = Callable[[], float]
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LEAST = 5  # pairs, however slow
PACKAGES = ("torch", "transformers", "peft", "numpy", "accelerate", "flwr", "ray", "pfl")


class Disagreement(Exception):
    """Raised if two sides that must compute the same differ; the row fails, whatever its speed."""


class Missing(Exception):
    """Raised if this machine lacks something that a row needs; the message names it."""


@dataclass(frozen=True)
class Pairs:
    """Times of two sides run alternately, in seconds, one entry per pair."""

    ours: tuple[float, ...]
    rival: tuple[float, ...]

    @property
    def gain(self) -> tuple[float, ...]:
        """How many times longer the rival took, pair by pair."""
        return tuple(rival / ours for ours, rival in zip(self.ours, self.rival, strict=True))

    @property
    def cost(self) -> tuple[float, ...]:
        """How many times longer we took, pair by pair."""
        return tuple(ours / rival for ours, rival in zip(self.ours, self.rival, strict=True))

    def summary(self, *, ours: str = "fedloom", rival: str = "rival", per: int = 1) -> str:
        """Return both medians as text, divided by `per` units of work."""
        return f"{ours} {span(median(self.ours) / per)}, {rival} {span(median(self.rival) / per)}"


Measured = tuple[Sequence[float], str]
"""One figure per pair, and the medians of both sides in words."""


@dataclass(frozen=True)
class Bench:
    """The comparison of a row, with its target and gate.

    Attributes:
        title: The comparison, in at most 26 characters.
        target: The figure that the row should reach.
        gate: The figure beyond which the command fails; None if there is no gate.
        measure: Checks that both sides agree, then measures them.
        higher: Whether a larger figure is better.
        unit: Unit of the figure; "x" for ratios.
        on_demand: Whether the row runs only if it is named.
    """

    title: str
    target: float
    gate: float | None
    measure: Callable[[], Measured]
    higher: bool = True
    unit: str = "x"
    on_demand: bool = False

    def reaches(self, figure: float | None, limit: float | None) -> bool:
        """Return whether a figure is at least as good as a limit; a missing figure never is."""
        if figure is None or limit is None:
            return limit is None
        return figure >= limit if self.higher else figure <= limit


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        bench: The comparison.
        ratios: One figure per pair; empty if nothing was measured.
        detail: Medians of both sides, or the reason why there is no figure.
        broken: Whether the sides disagree or one of them crashed.
    """

    bench: Bench
    ratios: tuple[float, ...]
    detail: str
    broken: bool = False

    @property
    def ratio(self) -> float | None:
        """The median figure."""
        return median(self.ratios) if self.ratios else None

    @property
    def ok(self) -> bool:
        """Whether the target is reached."""
        return self.bench.reaches(self.ratio, self.bench.target)

    @property
    def passed(self) -> bool:
        """Whether the gate is reached; a row that cannot be measured on this machine passes."""
        return not self.broken and (not self.ratios or self.bench.reaches(self.ratio, self.bench.gate))

    def to_json(self) -> dict[str, Any]:
        """Return the row's entry in the results file."""
        return {
            "ratio": self.ratio,
            "min": min(self.ratios, default=None),
            "max": max(self.ratios, default=None),
            "target": self.bench.target,
            "gate": self.bench.gate,
            "ok": self.ok,
            "title": self.bench.title,
            "higher_is_better": self.bench.higher,
            "unit": self.bench.unit,
            "pairs": len(self.ratios),
            "detail": self.detail,
        }


def measured(bench: Bench) -> Row:
    """Run one benchmark, both sides with a run's memory policy; a failure becomes a row without a figure."""
    keep_freed()
    try:
        ratios, detail = bench.measure()
    except Missing as reason:
        return Row(bench, (), f"not measured: {reason}")
    except ModuleNotFoundError as error:
        return Row(bench, (), f"not measured: {error.name} is not installed in this environment")
    except Exception as error:  # one broken row must not hide the others
        return Row(bench, (), f"{type(error).__name__}: {error}", broken=True)
    return Row(bench, tuple(ratios), detail)


def pairs(
    ours: Callable[[], object],
    rival: Callable[[], object],
    count: int,
    *,
    clock: Clock = time.process_time,
    budget: float = 40.0,
) -> Pairs:
    """Time two sides alternately, ours first, after one untimed call of each.

    Args:
        ours: Our side.
        rival: The other side.
        count: Number of pairs, ≥ 1.
        clock: CPU time of this process unless a side is another process; then `time.perf_counter`.
        budget: Seconds after which no pair beyond the fifth is begun.
    """
    ours(), rival()
    times_of: tuple[list[float], list[float]] = ([], [])
    ends = time.perf_counter() + budget
    while len(times_of[0]) < count and (len(times_of[0]) < LEAST or time.perf_counter() < ends):
        for times, side in zip(times_of, (ours, rival), strict=True):
            begun = clock()
            side()
            times.append(clock() - begun)
    return Pairs(tuple(times_of[0]), tuple(times_of[1]))


def agree(what: str, difference: float, tolerance: float) -> None:
    """Raise an error if the results of two sides differ, so that their speeds cannot be compared.

    Raises:
        Disagreement: The difference is above the tolerance or not a number.
    """
    if not difference <= tolerance:
        raise Disagreement(f"{what} differ by {difference:.3g}; at most {tolerance:.3g} is allowed")


def needs(*libraries: str) -> None:
    """Check that a rival's libraries are installed.

    Raises:
        Missing: One is not.
    """
    for name in libraries:
        if find_spec(name) is None:
            raise Missing(f"{name} is not installed; `make bench` builds an environment that has it")


def child(module: str, *arguments: str, timeout: float = 300, threads: int | None = 1) -> dict[str, Any]:
    """Run `python -m benchmarks.<module>` in a fresh process and read the JSON on its last line.

    Without `threads` the process takes as many as its libraries choose.

    Raises:
        RuntimeError: The process failed; the message ends with its last lines.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    for name in THREADS:
        environment.pop(name, None)
        if threads is not None:
            environment[name] = str(threads)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last_lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise RuntimeError(f"benchmarks.{module} {' '.join(arguments)} failed: {' / '.join(last_lines)}")
    return json.loads(lines[-1])


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss counts what the parent held when it started this process
        lines = [one for one in status.read_text().splitlines() if one.startswith("VmHWM")]
        return int(lines[0].split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """Measure one core's matrix product and read bandwidth, and return them with the versions, to normalize figures."""
    import torch

    a, b = torch.randn(512, 1024), torch.randn(1024, 1024)
    data = torch.ones(32 * 2**20)  # 128 MiB, beyond any cache
    gemm = min(_timed(lambda: a @ b) for _ in range(20))
    read = min(_timed(data.sum) for _ in range(8))
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
        "gemm_gflops": round(2 * 512 * 1024 * 1024 / gemm / 1e9, 1),
        "read_gbps": round(data.numel() * 4 / read / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def span(seconds: float) -> str:
    """Write a duration with a unit that fits it."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


HEAD = f"{'row':<19}{'what':<26}{'median':>8}{'min':>7}{'max':>7}{'target':>8}  ok"


def line(key: str, row: Row) -> str:
    """Write a row as one line of at most 80 columns."""
    target = ("≥" if row.bench.higher else "≤") + _short(row.bench.target)
    verdict = (
        "yes" if row.ok else ("no" if row.passed else "FAIL") if row.ratios else "FAIL" if row.broken else "-"
    )
    figures = (row.ratio, min(row.ratios), max(row.ratios)) if row.ratios else (None, None, None)
    middle, low, high = map(_short, figures)
    return f"{key:<19}{row.bench.title:<26}{middle:>8}{low:>7}{high:>7}{target:>8}  {verdict}"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def save(rows: Mapping[str, Row], about: Mapping[str, Any], file: Path = RESULTS) -> None:
    """Update rows of the results file and keep its other rows; the file is written atomically."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    stamped = {key: {**row.to_json(), "measured": about["date"]} for key, row in rows.items()}
    write_json(file, {**known, "machine": dict(about), **stamped})


def chosen(benches: Mapping[str, Bench], only: Sequence[str]) -> list[str]:
    """Return the names of the rows to run: those that are named or belong to a named group (P4: P4-T16 but not P4g).

    Raises:
        SystemExit: A name matches no row.
    """
    for name in only:
        if not any(_belongs(key, name) for key in benches):
            raise SystemExit(f"no benchmark is called {name!r}; there are {', '.join(benches)}")
    if not only:
        return [key for key, bench in benches.items() if not bench.on_demand]
    return [key for key in benches if any(_belongs(key, name) for name in only)]


def _belongs(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}-")
