"""The benchmarks' harness: its arithmetic, its results file, and that no row of the table is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.__main__ import benches
from benchmarks.harness import (
    HEAD,
    Bench,
    Disagreement,
    Missing,
    Pairs,
    Row,
    agree,
    chosen,
    line,
    measured,
    pairs,
    save,
    span,
)


def bench(measure: Callable[[], tuple[list[float], str]], *, higher: bool = True) -> Bench:
    return Bench("a title", target=2.0, gate=1.5 if higher else 3.0, measure=measure, higher=higher)


def test_pairs_are_interleaved_and_paired() -> None:
    calls: list[str] = []
    ticks = iter([0.0, 1.0, 1.0, 3.0, 3.0, 5.0, 5.0, 13.0])
    times = pairs(lambda: calls.append("a"), lambda: calls.append("b"), 2, clock=lambda: next(ticks))
    assert calls == ["a", "b"] * 3  # the first pair is not timed
    assert times == Pairs((1.0, 2.0), (2.0, 8.0))
    assert times.gain == (2.0, 4.0)
    assert times.cost == (0.5, 0.25)


def test_no_budget_cuts_below_five_pairs() -> None:
    assert len(pairs(lambda: None, lambda: None, 9, clock=_counter(), budget=0.0).ours) == 5


def _counter() -> Callable[[], float]:
    numbers = iter(range(1000))
    return lambda: float(next(numbers))


@pytest.mark.parametrize(
    ("higher", "ratios", "ok", "passed"),
    [
        (True, (1.0, 2.0, 9.0), True, True),
        (True, (1.0, 1.9, 9.0), False, True),
        (True, (1.0, 1.4, 9.0), False, False),
        (False, (1.0, 2.0, 9.0), True, True),
        (False, (1.0, 2.1, 9.0), False, True),
        (False, (1.0, 3.1, 9.0), False, False),
    ],
)
def test_the_median_decides_the_verdict(
    higher: bool, ratios: tuple[float, ...], ok: bool, passed: bool
) -> None:
    row = measured(bench(lambda: (list(ratios), "said"), higher=higher))
    assert (row.ok, row.passed) == (ok, passed)


def test_rows_without_a_figure_have_a_reason() -> None:
    def missing() -> tuple[list[float], str]:
        raise Missing("no GPU")

    def disagreeing() -> tuple[list[float], str]:
        agree("losses", 0.5, 0.1)
        return [100.0], ""

    absent, wrong = measured(bench(missing)), measured(bench(disagreeing))
    assert (absent.ratio, absent.ok, absent.passed) == (None, False, True)
    assert "no GPU" in absent.detail
    assert (wrong.ratio, wrong.ok, wrong.passed) == (None, False, False)
    assert "losses differ by 0.5" in wrong.detail


def test_not_a_number_never_agrees() -> None:
    with pytest.raises(Disagreement):
        agree("losses", float("nan"), 1.0)


def test_saving_updates_only_the_rows_given(tmp_path: Path) -> None:
    file, about = tmp_path / "latest.json", {"date": "today"}
    row = Row(bench(lambda: ([], "")), (1.0, 3.0, 2.0), "said")
    save({"P1": row}, about, file)
    save({"P4-T16": Row(row.bench, (), "not measured: no reason")}, about, file)
    saved = json.loads(file.read_text(encoding="utf-8"))
    figures = {key: saved["P1"][key] for key in ("ratio", "min", "max", "target", "gate", "ok")}
    assert figures == {"ratio": 2.0, "min": 1.0, "max": 3.0, "target": 2.0, "gate": 1.5, "ok": True}
    assert (saved["P4-T16"]["ratio"], saved["P4-T16"]["ok"]) == (None, False)
    assert saved["machine"] == about


def test_names_choose_rows_and_groups() -> None:
    one = bench(lambda: ([], ""))
    known = dict.fromkeys(("P1", "P1b", "P4-T16", "P4-T32", "P4g", "P10"), one)
    known["slow"] = Bench("", 1.0, None, one.measure, on_demand=True)
    assert chosen(known, ["P4"]) == ["P4-T16", "P4-T32"]
    assert chosen(known, ["P1"]) == ["P1"]
    assert chosen(known, ["P4g", "P4-T16"]) == ["P4-T16", "P4g"]
    assert chosen(known, ["slow"]) == ["slow"]
    assert chosen(known, []) == [key for key in known if key != "slow"]
    with pytest.raises(SystemExit, match="P99"):
        chosen(known, ["P99"])


def test_every_row_of_the_table_exists_and_fits_it() -> None:
    known = benches()
    ids = {key.split("-")[0] for key in known}
    assert ids == {"P1b", "P4g", "headline"} | {f"P{number}" for number in range(1, 18)}
    sides = {"P3-noop", "P3-pfl-sequential", "P3-pfl-cohort", "P4-T16", "P4-T32", "P4-T64"}
    assert sides <= set(known)
    for key, one in known.items():
        text = line(key, Row(one, (one.target,) * 3, ""))
        assert len(text) <= 80, text
        assert len(key) < HEAD.index("what") and len(one.title) <= 26, text
        assert one.gate is None or one.reaches(one.target, one.gate), f"{key}: the gate is above the target"


@pytest.mark.parametrize(("seconds", "text"), [(2.5e-5, "25 us"), (0.0125, "12.5 ms"), (3.25, "3.25 s")])
def test_durations(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_the_gpu_script_runs_on_a_processor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import gpu

    assert gpu.main(["--tiny", "--results", str(tmp_path / "gpu.json")]) == 0
    figures = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["models"][0]
    assert set(figures["rows"]) == {"1", "4"}
    assert all(row["utilization"] > 0 for row in figures["rows"].values())
    assert "tiny" in capsys.readouterr().out
    assert all(len(text) <= 80 for text in gpu.table([figures]).splitlines())


def test_step_operations_by_hand() -> None:
    from benchmarks.gpu import TINY, on_device, step_flops
    from benchmarks.models import Size

    size: Size = TINY["tiny"]
    tuned = on_device(size, "cpu", torch.float32)
    # Two layers: four 64 × 64 attention matrices and three 64 × 192 of the MLP each; 10 tokens.
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 192)
    assert step_flops(tuned, size, 10) == 4 * weights * 10 + 6 * 2 * 64 * 10**2
