"""Compare this checkout with another commit: `python -m benchmarks.against --before COMMIT [--only P1 …] [--pairs N]`.

Each side runs by its own code: its own `src`, and its own `benchmarks` for the rows, since those call interfaces that
differ between commits. A pair of a row is two fresh processes, one for each side, which run our half of the row by turns;
its ratio is the median of after / before over the turns. So what differs from process to process, such as the place of
memory, varies from pair to pair, and the interval covers it. Pairs of all rows take turns, so each row is spread over
the whole time. Results go to `results/against.json` after every round of pairs.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb, inf
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.against_sides import Failed, Quickstart, Side, Worker, checkout, named, opened, same_files
from benchmarks.harness import ROOT, chosen, span
from fedloom.system.json_files import write_json

RESULTS = ROOT / "benchmarks" / "results" / "against.json"
LIMIT = 1.03
"""A row is ok if its interval begins at or below this ratio."""
CONFIDENCE = 0.95
SIDES = ("before", "after")
QUICKSTART_PAIRS = 6
"""Pairs of the quickstart, which takes too long for more; with fewer there is no interval."""

Pair = Mapping[str, Sequence[float]]
"""The figures of each side, one for each turn."""


@dataclass(frozen=True)
class Row:
    """A row of the comparison.

    Attributes:
        title: What is measured, in at most 34 characters.
        module: The module under `benchmarks` that has the row; "" for the quickstart.
        turns: How often each side runs in one pair; 0 if preparing the row is the measurement.
        unit: "s" or "B"; "" for a plain number.
    """

    title: str
    module: str
    turns: int = 1
    unit: str = "s"


ROWS = {
    "P1": Row("2 clients of 10 steps, h256x6", "p01_overhead", 4),
    "P1b": Row("8 clients of 1 step, h64x4", "p01_overhead", 9),
    "P2-1step": Row("2 clients of 1 step, h64x4", "p02_seeds", 9),
    "P2-2steps": Row("2 clients of 2 steps, h256x6", "p02_seeds", 5),
    "P2-10steps": Row("2 clients of 10 steps, h256x6", "p02_seeds", 3),
    "P4-T16": Row("8 side by side, b1 T16", "p04_cohort", 5),
    "P4-T32": Row("8 side by side, b1 T32", "p04_cohort", 5),
    "P4-T64": Row("8 side by side, b1 T64", "p04_cohort", 3),
    "P4-auto-T256": Row("8 clients, auto, b1 T256", "p04_cohort", 2),
    "P4-auto-b4": Row("8 clients, auto, b4 T64", "p04_cohort", 2),
    "P6-floor": Row("averaging 32 updates of 19 MB", "p06_aggregation", 7),
    "P6-memory": Row("memory while averaging, in updates", "p06_aggregation", 0, ""),
    "P7-1000": Row("round of 1,000 no-op clients", "p07_growth", 3),
    "P7-10000": Row("round of 10,000 no-op clients", "p07_growth", 0),
    "P7-peak": Row("peak memory at 10,000 clients", "p07_growth", 0, "B"),
    "P8-cached": Row("choosing an option, 16 samples", "p08_evaluation", 5),
    "quickstart-seconds": Row("quickstart, wall clock", ""),
    "quickstart-cpu": Row("quickstart, CPU time", ""),
    "quickstart-memory": Row("quickstart, its largest process", "", unit="B"),
}


@dataclass
class RowResult:
    """The measurements of a row: for each pair, the median of each side's turns, and the median of their ratios."""

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, before: Sequence[float], after: Sequence[float]) -> None:
        """Add a pair."""
        self.before.append(median(before))
        self.after.append(median(after))
        self.ratios.append(median(b / a for a, b in zip(before, after, strict=True)))

    @property
    def ok(self) -> bool | None:
        """Whether the interval includes or beats `LIMIT`; None if there is no interval."""
        ends = None if self.failures else interval(self.ratios)
        return None if ends is None else ends[0] <= LIMIT

    def to_json(self) -> dict[str, Any]:
        """Return the row's entry in the results file."""
        ends = interval(self.ratios)
        return {
            "ratio": median(self.ratios) if self.ratios else None,
            "interval": ends,
            "ok": self.ok,
            "pairs": len(self.ratios),
            "ratios": self.ratios,
            "before": self.before,
            "after": self.after,
            "failures": self.failures,
        }


def interval(ratios: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Return a confidence interval of the median that is valid for every continuous distribution.

    Its ends are the k-th smallest and the k-th largest value, with the largest k for which the median of the
    distribution lies between them with at least the given probability, 1 − 2·P(Binomial(n, ½) < k) (Thompson, 1936).

    Returns:
        Both ends; None if there are too few values, that is, fewer than 6 for 95 %.
    """
    values, k = sorted(ratios), 0
    outside = 2  # of 2**n
    while len(values) > 0 and 1 - outside / 2 ** len(values) >= confidence:
        k += 1
        outside += 2 * comb(len(values), k)
    return (values[k - 1], values[-k]) if k else None


def pair(key: str, workers: Mapping[str, Worker], order: Sequence[str]) -> Pair:
    """Run a row on both sides alternately and return the figures of each.

    Raises:
        Failed: A side gave no figure.
    """
    row = ROWS[key]
    figures: dict[str, list[float]] = {name: [] for name in SIDES}
    try:
        if not row.turns:
            return {name: [workers[name].ask(f"row {row.module} {key}")["figure"]] for name in order}
        _prepare(f"row {row.module} {key}", workers)
        for _ in range(row.turns):
            for name in order:
                figures[name].append(workers[name].ask("run")["figure"])
    finally:
        for worker in workers.values():
            worker.tell("done")
    return figures


def _prepare(request: str, workers: Mapping[str, Worker]) -> None:
    """Prepare both sides at once, untimed, and read the answers of both even if one fails."""
    reasons = []
    for worker in workers.values():
        worker.tell(request)
    for worker in workers.values():
        try:
            worker.hear()
        except Failed as reason:
            reasons.append(str(reason))
    if reasons:
        raise Failed("; ".join(reasons))


def pairs_of(
    module: str, keys: Sequence[str], sides: Mapping[str, Side], order: Sequence[str], vocabulary: int
) -> Iterator[tuple[str, Pair | str]]:
    """Run one pair of each of a module's rows in two fresh processes; for a row that failed, yield the reason."""
    left = list(keys)
    try:
        with opened((sides[name] for name in order), vocabulary) as workers:
            while left:
                key = left.pop(0)
                try:
                    yield key, pair(key, workers, order)
                except Failed as reason:
                    yield key, str(reason)
    except Failed as reason:  # a side did not start
        yield from ((key, str(reason)) for key in left)


def quickstart_pair(
    quickstart: Quickstart, sides: Mapping[str, Side], order: Sequence[str]
) -> tuple[dict[str, Pair | str], str | None]:
    """Run the quickstart once on each side.

    Returns:
        The pair of each of its rows, or the reason why there is none; and a note on accuracies that differ, or None.
    """
    keys = [key for key, row in ROWS.items() if not row.module]
    try:
        done = {name: quickstart.run(sides[name]) for name in order}
    except Failed as reason:
        return dict.fromkeys(keys, str(reason)), None
    before, after = (done[name][1] for name in SIDES)
    differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    note = f"the quickstart's accuracies differ: {'; '.join(differ)}" if differ else None
    return {key: {name: [done[name][0][key]] for name in SIDES} for key in keys}, note


HEAD = f"{'row':<19}{'what (ours, after / before)':<35}{'median':>7}  {'95 % interval':<14}ok"


def line(key: str, result: RowResult) -> str:
    """Format a row as one line of at most 80 columns."""
    if result.failures:
        return f"{key:<19}{ROWS[key].title:<35}{'':>7}  {'':<14}FAIL"
    ends = interval(result.ratios)
    interval_text = f"{ends[0]:.3f} – {ends[1]:.3f}" if ends else "too few pairs"
    verdict = {None: "-", True: "yes", False: "no"}[result.ok]
    return f"{key:<19}{ROWS[key].title:<35}{median(result.ratios):>7.3f}  {interval_text:<14}{verdict}"


def detail(key: str, result: RowResult) -> str:
    """Format a row's two medians, or the reason why it failed."""
    if result.failures:
        return result.failures[0]
    before, after = (written(median(values), ROWS[key].unit) for values in (result.before, result.after))
    return f"before {before}, after {after}; {len(result.ratios)} pairs"


def written(value: float, unit: str) -> str:
    """Format a figure with its unit; see `Row.unit`."""
    if unit == "s":
        return span(value)
    return f"{value / 1e6:.4g} MB" if unit == "B" else f"{value:.4g}"


def rounds(
    keys: Sequence[str],
    count: int,
    sides: Mapping[str, Side],
    vocabulary: int,
    quickstart: Quickstart,
    seconds: float = inf,
) -> Iterator[tuple[dict[str, RowResult], set[str]]]:
    """Measure `count` pairs of each row; after each round of pairs, yield all measurements and notes so far.

    Every second pair begins with the other side. After `seconds` no further pairs begin.
    """
    results, notes = {key: RowResult() for key in keys}, set[str]()
    modules = {ROWS[key].module: None for key in keys}
    whole, ends = "" in modules, time.perf_counter() + seconds
    if whole:  # once untimed, so that encoder features are cached and sources compiled
        quickstart_pair(quickstart, sides, SIDES)
    for number in range(count):
        order = SIDES if number % 2 == 0 else SIDES[::-1]
        for module in filter(None, modules):
            these = [key for key in keys if ROWS[key].module == module]
            _collect(results, pairs_of(module, these, sides, order, vocabulary))
        if whole and number < QUICKSTART_PAIRS:
            pairs, note = quickstart_pair(quickstart, sides, order)
            _collect(results, pairs.items())
            notes |= {note} if note else set()
        yield results, notes
        if time.perf_counter() >= ends:
            return


def _collect(results: Mapping[str, RowResult], pairs: Iterable[tuple[str, Pair | str]]) -> None:
    for key, one in pairs:
        if key not in results:  # a row of the quickstart that was not asked for
            continue
        if isinstance(one, str):
            results[key].failures.append(one)
        else:
            results[key].add(one["before"], one["after"])


def meet(sides: Mapping[str, Side], methods: str) -> tuple[dict[str, Any], int, Quickstart]:
    """Check that both sides start, and choose what must be the same on both.

    Returns:
        A description of the machine, the vocabulary of the rows' models, and the quickstart to run.

    Raises:
        SystemExit: A side does not start.
    """
    try:
        with opened(sides.values()) as workers:
            about = workers["after"].ask("machine")["machine"]
            vocabulary = max(worker.about["vocabulary"] for worker in workers.values())
            models = [Path(workers[name].about["model"]) for name in SIDES]
    except Failed as reason:
        raise SystemExit(str(reason)) from None
    return about, vocabulary, Quickstart(methods, None if same_files(*models) else models[1])


def compare(options: argparse.Namespace, place: Path) -> dict[str, RowResult]:
    """Measure, print the progress, and write the results file after every round of pairs."""
    keys = chosen(ROWS, options.only) if options.only else list(ROWS)
    with checkout(options.before, place / "before") as folder:
        sides = {
            name: Side(name, at, place / f"{name}-cache")
            for name, at in zip(SIDES, (folder, ROOT), strict=True)
        }
        for side in sides.values():
            side.cache.mkdir()
        about, vocabulary, quickstart = meet(sides, options.methods)
        model = "each its own, of the same files" if quickstart.model is None else "that of the side after"
        head = {
            "machine": about,
            "before": named(folder),
            "after": named(ROOT),
            "limit": LIMIT,
            "interval": f"order statistics of the pairs' ratios, at least {CONFIDENCE:.0%}",
            "quickstart": {
                "settings": [one.replace(f"{ROOT}/", "") for one in quickstart.settings],
                "model": model,
            },
        }
        print(
            f"{about['date']}  {head['before']} → {head['after']}, load {about['load']}; model: {model}",
            flush=True,
        )
        begun, results = time.perf_counter(), {}
        measuring = rounds(keys, options.pairs, sides, vocabulary, quickstart, 60 * options.minutes)
        for number, (results, notes) in enumerate(measuring, 1):
            minutes = (time.perf_counter() - begun) / 60
            rows = {key: results[key].to_json() for key in keys}
            write_json(options.results, {**head, "minutes": minutes, "notes": sorted(notes), "rows": rows})
            parts = [f"pair {number} of {options.pairs} after {minutes:.1f} min", *sorted(notes)]
            print("; ".join(parts), flush=True)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Compare, and print the table; return 1 if a row is not ok or was not measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("--before", required=True, help="a commit, or the folder of a checkout")
    parser.add_argument("--only", nargs="+", default=[], help="rows or groups; all if none is named")
    parser.add_argument(
        "--pairs", type=int, default=9, help="pairs of each row; 6 is the fewest with an interval"
    )
    parser.add_argument(
        "--methods", default="fedavg", help="of the quickstart, with commas; 'all' for its own"
    )
    parser.add_argument(
        "--minutes", type=float, default=inf, help="minutes after which no further pairs begin"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error("--pairs is at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    with tempfile.TemporaryDirectory(prefix="against-") as name:
        results = compare(options, Path(name).resolve())
    print(HEAD)
    for key, one in results.items():
        print(line(key, one))
        print(f"    {detail(key, one)}")
    return 0 if all(one.ok is not False and not one.failures for one in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
