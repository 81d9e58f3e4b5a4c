"""The comparison with another commit: its interval, its verdict, and its protocol with the two sides.

The sides are two small checkouts made here, whose rows record the order of their calls; no model is loaded.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from benchmarks import against, against_worker, harness
from benchmarks.against import LIMIT, ROWS, SIDES, Row, RowResult, interval, line, pairs_of, rounds
from benchmarks.against_sides import Failed, Quickstart, Side, accuracies, checkout, opened, same_files

HARNESS = """
import time
from dataclasses import dataclass
from statistics import median

class Bench:
    def __init__(self, title, target, gate, measure):
        self.measure = measure

@dataclass
class Row:
    ratio: float | None
    detail: str = ""

def measured(bench):
    try:
        return Row(median(bench.measure()[0]))
    except Exception as error:
        return Row(None, f"{type(error).__name__}: {error}")

def pairs(ours, rival, count, *, clock=time.process_time, budget=40.0):
    raise AssertionError("the rival is never run")

def machine():
    return {"date": "today", "load": 0.0}
"""

MODELS = """
from dataclasses import dataclass
from pathlib import Path

BUNDLED = {"bundled": Path(__file__).parent}

@dataclass(frozen=True)
class Size:
    vocabulary: int = VOCABULARY

TINY = SMALL = Size()
"""

ROWS_OF_A_SIDE = """
import os
from pathlib import Path
from benchmarks.harness import Bench, pairs
from benchmarks.models import SMALL

TRACE = Path(__file__).parent.parent.parent / "trace"
now = [0.0]

def turn():
    with TRACE.open("a") as file:
        file.write("NAME ")
    now[0] += PACE
    print("what a library prints is no answer")

def turns():
    return pairs(turn, None, 9, clock=lambda: now[0])

def broken():
    raise ValueError("no such model")

def half():
    if PACE == 2.0:
        raise ValueError("only here")
    return turns()

def dying():
    return pairs(lambda: os._exit(3) if now[0] else turn(), None, 9)

ROWS = {
    "turns": Bench("", 1, None, turns),
    "once": Bench("", 1, None, lambda: ([PACE], "")),
    "vocabulary": Bench("", 1, None, lambda: ([float(SMALL.vocabulary)], "")),
    "broken": Bench("", 1, None, broken),
    "half": Bench("", 1, None, half),
    "dying": Bench("", 1, None, dying),
}
"""

COMMAND = """
import json, os, sys
from pathlib import Path

out = Path(sys.argv[sys.argv.index("--out") + 1])
if "methods=[nothing]" in sys.argv:
    sys.exit("nothing is no method")
out.mkdir()
slices = {"full": {"accuracy": PACE if "methods=[pace]" in sys.argv else 0.5, "seconds": PACE}}
(out / "result.json").write_text(json.dumps({"scores": {"fedavg": {"slices": slices}}}))
(Path(os.environ["FEDLOOM_CACHE"]) / "kept").touch()
"""


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Side]:
    """Return two checkouts: a turn of the second takes 1.5 times as long as one of the first."""
    started = {}
    for name, pace, vocabulary in (("before", 2.0, 100), ("after", 3.0, 200)):
        folder = tmp_path / name
        files = {
            "benchmarks/__init__.py": "",
            "benchmarks/harness.py": HARNESS,
            "benchmarks/models.py": MODELS,
            "benchmarks/rows.py": ROWS_OF_A_SIDE,
            "src/fedloom/__init__.py": "",
            "src/fedloom/__main__.py": COMMAND,
        }
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            source = (
                text.replace("NAME", name).replace("PACE", str(pace)).replace("VOCABULARY", str(vocabulary))
            )
            (folder / file).write_text(source, encoding="utf-8")
        (tmp_path / f"{name}-cache").mkdir()
        started[name] = Side(name, folder.resolve(), tmp_path / f"{name}-cache")
    turns = {"turns": 2, "once": 0, "vocabulary": 0, "broken": 2, "half": 2, "dying": 2, "absent": 2}
    for key, count in turns.items():
        monkeypatch.setitem(ROWS, key, Row(key, "rows", count))
    return started


def one_pair(sides: dict[str, Side], *keys: str, vocabulary: int = 0) -> dict[str, object]:
    return dict(pairs_of("rows", keys, sides, SIDES, vocabulary))


# Ranks of the 95 % interval of a median as tables of the sign test give them, such as Conover, Practical
# Nonparametric Statistics, or Campbell and Gardner, BMJ 296 (1988).
@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (30, 10, 21)],
)
def test_ends_of_the_interval_are_the_ranks_of_the_tables(count: int, low: int, high: int) -> None:
    values = [float(rank) for rank in range(1, count + 1)]
    assert interval(values[::-1]) == (low, high)


@pytest.mark.parametrize("count", range(6))
def test_fewer_than_six_pairs_have_no_interval(count: int) -> None:
    assert interval([1.0] * count) is None


@pytest.mark.parametrize(
    ("ratios", "ok"),
    [
        ([0.90, 0.91, 0.92, 0.93, 0.94, 0.95], True),  # beats it
        ([1.02, 1.05, 1.06, 1.07, 1.08, 1.09], True),  # includes it
        ([LIMIT, 1.05, 1.06, 1.07, 1.08, 1.09], True),
        ([1.04, 1.05, 1.06, 1.07, 1.08, 1.09], False),
        ([0.90, 0.91, 0.92], None),
    ],
)
def test_a_row_is_worse_only_if_its_whole_interval_is(ratios: list[float], ok: bool | None) -> None:
    row = RowResult()
    for ratio in ratios:
        row.add([2.0], [2.0 * ratio])
    assert row.ok is ok
    row.failures.append("before: it ended")
    assert row.ok is None


def test_a_pair_is_the_median_of_its_turns() -> None:
    row = RowResult()
    row.add([1.0, 2.0, 4.0], [2.0, 2.0, 2.0])  # ratios of the turns: 2, 1, 0.5
    assert (row.before, row.after, row.ratios) == ([2.0], [2.0], [1.0])


def test_sides_run_by_turns_after_one_untimed_call_of_each(sides: dict[str, Side], tmp_path: Path) -> None:
    assert one_pair(sides, "turns") == {"turns": {"before": [2.0, 2.0], "after": [3.0, 3.0]}}
    assert untimed(tmp_path) == ["after", "before"]
    assert (tmp_path / "trace").read_text().split()[2:] == ["before", "after"] * 2


def untimed(tmp_path: Path) -> list[str]:
    """Return the first call of each side; these are made at once."""
    return sorted((tmp_path / "trace").read_text().split()[:2])


def test_every_second_pair_begins_with_the_other_side(sides: dict[str, Side], tmp_path: Path) -> None:
    *_, (result, notes) = rounds(["turns"], 2, sides, 0, Quickstart("fedavg"))
    ran = (tmp_path / "trace").read_text().split()
    assert ran[2:6] == ["before", "after"] * 2
    assert ran[8:] == ["after", "before"] * 2
    assert result["turns"].ratios == [1.5, 1.5]
    assert not notes


def test_no_pairs_begin_when_time_is_up(sides: dict[str, Side]) -> None:
    assert len(list(rounds(["once"], 5, sides, 0, Quickstart("fedavg"), seconds=0.0))) == 1


def test_a_single_measurement_is_a_pair_by_itself(sides: dict[str, Side]) -> None:
    assert one_pair(sides, "once") == {"once": {"before": [2.0], "after": [3.0]}}


def test_models_have_the_same_vocabulary_on_both_sides(sides: dict[str, Side]) -> None:
    assert one_pair(sides, "vocabulary") == {"vocabulary": {"before": [100.0], "after": [200.0]}}
    both = one_pair(sides, "vocabulary", vocabulary=300)
    assert both == {"vocabulary": {"before": [300.0], "after": [300.0]}}


def test_a_failed_row_has_a_reason_and_the_next_is_measured(sides: dict[str, Side]) -> None:
    rows = one_pair(sides, "broken", "half", "absent", "turns")
    assert rows["broken"] == "before: ValueError: no such model; after: ValueError: no such model"
    assert rows["half"] == "before: ValueError: only here"
    assert "absent" in str(rows["absent"])
    assert rows["turns"] == {"before": [2.0, 2.0], "after": [3.0, 3.0]}


def test_a_process_that_ends_fails_its_row(sides: dict[str, Side]) -> None:
    rows = one_pair(sides, "dying", "turns")
    assert "before: the process ended with status 3" in str(rows["dying"])
    assert "before: the process ended" in str(rows["turns"])  # the module's other rows share the process


def test_a_side_that_does_not_start_fails_every_row(sides: dict[str, Side]) -> None:
    (sides["after"].folder / "benchmarks" / "models.py").write_text("raise ImportError('no models')")
    rows = one_pair(sides, "turns", "once")
    assert all(
        "after: the process ended" in str(reason) and "no models" in str(reason) for reason in rows.values()
    )
    assert set(rows) == {"turns", "once"}


def test_a_failed_row_has_no_verdict_and_its_reason_in_the_table(sides: dict[str, Side]) -> None:
    *_, (result, _) = rounds(["broken"], 1, sides, 0, Quickstart("fedavg"))
    assert result["broken"].ok is None
    assert line("broken", result["broken"]).endswith("FAIL")
    assert "no such model" in against.detail("broken", result["broken"])


def test_a_side_that_runs_other_sources_is_refused(sides: dict[str, Side]) -> None:
    moved = Side("after", sides["before"].folder.parent / "elsewhere", sides["after"].cache)
    moved.folder.mkdir()
    (moved.folder / "src").symlink_to(sides["before"].folder / "src")
    (moved.folder / "benchmarks").symlink_to(sides["before"].folder / "benchmarks")
    with pytest.raises(Failed, match="fedloom comes from"), opened([moved]):
        pass


def test_the_quickstart_is_a_whole_command_with_a_cache_of_its_own(sides: dict[str, Side]) -> None:
    figures, scores = Quickstart("fedavg").run(sides["after"])
    assert set(figures) == {key for key, row in ROWS.items() if not row.module}
    assert all(value > 0 for value in figures.values())
    assert scores == {"fedavg, full": 0.5}
    assert (sides["after"].cache / "kept").exists() and not (sides["before"].cache / "kept").exists()


def test_a_failed_quickstart_has_a_reason(sides: dict[str, Side]) -> None:
    with pytest.raises(Failed, match="before: the quickstart ended with status 1: nothing is no method"):
        Quickstart("nothing").run(sides["before"])


def test_accuracies_that_differ_are_named(sides: dict[str, Side]) -> None:
    _, same = against.quickstart_pair(Quickstart("fedavg"), sides, SIDES)
    _, other = against.quickstart_pair(Quickstart("pace"), sides, SIDES)
    assert same is None
    assert other is not None and "fedavg, full" in other


def test_the_quickstart_has_a_model_set_only_where_sides_differ(tmp_path: Path) -> None:
    assert Quickstart("all").settings == []
    assert Quickstart("fedavg", tmp_path).settings == ["methods=[fedavg]", f"model.path={tmp_path}"]
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "README.md").write_text(folder.name)
    assert same_files(one, other)
    (other / "config.json").write_text("[]")
    assert not same_files(one, other)
    (other / "config.json").write_text("{}")
    (other / "more.json").write_text("{}")
    assert not same_files(one, other)


def test_methods_without_slices_have_no_accuracy() -> None:
    assert accuracies({"scores": {"local": {}, "fedavg": {"slices": {"full": {"accuracy": 0.5}}}}}) == {
        "fedavg, full": 0.5
    }


def test_what_is_compared_with_is_a_checkout_or_a_commit(sides: dict[str, Side], tmp_path: Path) -> None:
    with checkout(str(sides["before"].folder), tmp_path / "place") as folder:
        assert folder == sides["before"].folder
    (tmp_path / "empty").mkdir()
    for wrong, reason in ((str(tmp_path / "empty"), "has no src/fedloom"), ("no such commit", "git")):
        with pytest.raises(SystemExit, match=reason), checkout(wrong, tmp_path / "place"):
            pass


def test_the_harness_lets_requests_through() -> None:
    ticks, answers = iter([1.0, 3.0, 3.0, 8.0]), []
    pairs = against_worker.serving(
        iter(["run\n", "run\n", "done\n", "run\n"]), lambda **said: answers.append(said)
    )
    calls: list[str] = []

    def measure() -> harness.Measured:
        return pairs(
            lambda: calls.append("ours"), lambda: calls.append("rival"), 9, clock=lambda: next(ticks)
        )

    with pytest.raises(against_worker.Done):
        harness.measured(harness.Bench("a title", 1.0, None, measure))
    assert answers == [{"ready": True}, {"figure": 2.0}, {"figure": 5.0}]
    assert calls == ["ours"] * 3


def test_this_checkout_is_a_side(tmp_path: Path) -> None:
    with opened([Side("after", harness.ROOT, tmp_path)]) as workers:
        about = workers["after"].about
    assert (Path(about["model"]) / "model.safetensors").is_file()
    assert about["vocabulary"] > 0


def test_every_row_is_one_of_the_benchmarks() -> None:
    for key, row in ROWS.items():
        if row.module:
            module = importlib.import_module(f"benchmarks.{row.module}")
            assert callable(against_worker.bench_of(harness, module, key).measure)
    groups = {key.split("-")[0] for key in ROWS}
    assert groups == {"P1", "P1b", "P2", "P4", "P6", "P7", "P8", "quickstart"}


def test_lines_fit_the_table() -> None:
    pairs = RowResult()
    for _ in range(6):
        pairs.add([1.0], [1.0])
    assert all(len(line(key, pairs)) <= 80 and len(row.title) <= 34 for key, row in ROWS.items())
