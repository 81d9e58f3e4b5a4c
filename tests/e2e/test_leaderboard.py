"""`fedloom leaderboard` finds what finished runs have in common, and `fedloom reproduce` gets the same bytes again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedloom
from campaign.world import World, make_world
from fedloom.cli.run_commands import app
from fedloom.report.run_results import at
from fedloom.runs.leaderboard_results import read_results
from fedloom.runs.reproduce import comparisons, run_of
from fedloom.system.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of two seeds, and one that is not finished."""
    world = make_world(tmp_path_factory.mktemp("leaderboard") / "world", "fedavg")
    folder = world.place.parent / "runs"
    for seed in (0, 1):
        World(world.place, "fedavg", seed).run(folder / f"seed-{seed}")
    shutil.copytree(folder / "seed-0", folder / "begun")
    (folder / "begun" / "manifest.json").unlink()
    return folder


def test_seeds_of_a_method_are_one_entry(runs: Path, tmp_path: Path) -> None:
    out = CliRunner().invoke(app, ["leaderboard", str(runs), "--json", "--csv", str(tmp_path / "all.csv")])
    assert out.exit_code == 0, out.output
    value = json.loads(out.stdout)
    (board,) = value["boards"]
    assert {entry["method"]: entry["seeds"] for entry in board["entries"]} == {
        "zero-shot": [0, 1],
        "fedavg": [0, 1],
    }
    for entry in board["entries"]:
        scores = [
            at(json.loads((Path(run) / "result.json").read_text()), "scores", entry["method"])
            for run in entry["runs"]
        ]
        assert entry["score"] == pytest.approx(sum(one["accuracy"] for one in scores) / 2)
    assert [Path(one["folder"]).name for one in value["skipped"]] == ["begun"]
    assert (tmp_path / "all.csv").read_text().count("\n") == 3
    shown = CliRunner().invoke(app, ["leaderboard", str(runs)])
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "begun is left out" in shown.stderr


def test_python_has_the_rows_of_the_command(runs: Path) -> None:
    found = fedloom.leaderboard(runs)
    out = CliRunner().invoke(app, ["leaderboard", str(runs), "--json"])
    (board,) = json.loads(out.stdout)["boards"]
    assert [(row.rank, row.entry, row.score, list(row.seeds), list(row.runs)) for row in found.rows] == [
        (entry["rank"], entry["entry"], entry["score"], entry["seeds"], entry["runs"])
        for entry in board["entries"]
    ]
    for row, entry in zip(found.rows, board["entries"], strict=True):
        lead = entry["ahead_of_next"] or {"difference": None, "p": None, "significant": None}
        assert (row.ahead, row.p, row.significant) == (lead["difference"], lead["p"], lead["significant"])
        assert (row.board, row.question, row.metric) == (1, board["about"], board["metric"])
        assert (row.clients_better, row.own_data, row.bytes) == (
            entry["clients_better"], entry["own_data"], entry["bytes"],
        )  # fmt: skip
        assert fedloom.load_run(row.runs[0])["scores"].keys() >= {row.method}
    (only,) = found.rows.where(method="fedavg")
    assert found.rows.to_dicts()[only.rank - 1]["entry"] == only.entry
    assert [Path(one.folder).name for one in found.skipped] == ["begun"]
    assert fedloom.leaderboard([runs / "seed-0", runs / "seed-1"]).rows.where(board=1)[0].seeds == (0, 1)
    with pytest.raises(UserError, match="none is not a folder"):
        fedloom.leaderboard(runs / "none")
    for wrong in (3, [3], None):
        with pytest.raises(UserError, match="expected a folder or a list of folders"):
            fedloom.leaderboard(wrong)  # type: ignore[arg-type]


def test_a_damaged_result_is_left_out_with_the_reason(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs / "seed-0", copy)
    (copy / "result.json").write_text((copy / "result.json").read_text().replace("fedavg", "fedprox"))
    results, ((folder, reason),) = read_results([tmp_path])
    assert results == []
    assert folder == copy
    assert "damaged" in reason


def test_an_entry_is_reproduced_byte_for_byte(runs: Path, tmp_path: Path) -> None:
    results, _ = read_results([runs])
    (entry,) = {one.entry for one in results if one.method == "fedavg"}
    assert run_of(entry, [runs]) == runs / "seed-0"
    assert run_of(entry, [runs], 1) == runs / "seed-1"
    words = [
        "reproduce",
        entry,
        "--runs",
        str(runs),
        "--seed",
        "1",
        "--out",
        str(tmp_path / "again"),
        "--quiet",
    ]
    out = CliRunner().invoke(app, [*words, "--json"])
    assert out.exit_code == 0, out.output
    value = json.loads(out.stdout)
    assert value["reproduced"] is True
    assert {"scores of fedavg", "predictions.jsonl", "adapter/adapter_model.safetensors"} <= set(
        value["equal"]
    )
    other = [*words, "--json"]
    other[other.index("--seed") + 1] = "0"
    out = CliRunner().invoke(app, other)
    assert out.exit_code == 2, "the folder holds another experiment"
    out = CliRunner().invoke(app, [*other, "--rerun"])
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["reproduced"] is True


@pytest.mark.parametrize("place", [".", ".."])
def test_a_repetition_is_beside_its_run_however_that_is_named(
    place: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "seed-0", tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine" / (place if place == "." else "methods"))
    out = CliRunner().invoke(app, ["reproduce", place, "--quiet"])
    assert out.exit_code == 0, out.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "mine-again"]


def test_what_differs_is_named(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs / "seed-0", other)
    value = json.loads((other / "result.json").read_text())
    value["scores"]["fedavg"]["accuracy"] = -1
    (other / "result.json").write_text(json.dumps(value))
    weights = other / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (other / "predictions.jsonl").unlink()
    faults = [fault for _, fault in comparisons(runs / "seed-0", other) if fault]
    assert len(faults) == 3
    for words, fault in zip(
        ("scores of fedavg differ", "adapter_model", "predictions.jsonl is in one"), faults, strict=True
    ):
        assert words in fault


def test_unknown_entries_and_the_run_itself_are_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="neither the folder of a run nor an entry"):
        run_of("0000", [runs])
    empty = runs.parent / "empty"
    empty.mkdir()
    out = CliRunner().invoke(app, ["reproduce", str(empty), "--out", str(runs.parent / "again")])
    assert out.exit_code == 2 and "empty is not the folder of a run: it has no experiment.json" in out.stderr
    out = CliRunner().invoke(app, ["reproduce", str(runs / "seed-0"), "--out", str(runs / "seed-0")])
    assert out.exit_code == 2
    assert "is the run itself" in out.stderr
