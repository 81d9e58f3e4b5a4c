"""`fedloom verify` finds every file that is not as it was written, wherever the folder is taken."""

from __future__ import annotations

import json
import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.adapter_files import import_adapter
from tests.shares import share
from typer.testing import CliRunner, Result

from campaign.damage import begun, scored
from campaign.world import World, make_world, outcome
from fedloom.cli.run_commands import app
from fedloom.client.client_memory import Files
from fedloom.engine import checkpoints
from fedloom.engine.checkpoints import last_checkpoint
from fedloom.experiment.grid import load_grid
from fedloom.models.load_model import load_vlm
from fedloom.run_log import RunLog, head_of, read_lines
from fedloom.runs.finished_sweep import load_sweep
from fedloom.runs.sweep import run_sweep
from fedloom.runs.verify_files import head_fault, log_heads, verify
from fedloom.system.errors import UserError
from fedloom.system.manifest import read_manifest, read_sealed, write_sealed
from fedloom.system.progress import Progress
from fedloom.tuning.adapters import prepare
from fedloom.tuning.strategies import LoRA, stage


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("verify") / "world", "scaffold")


@pytest.fixture(scope="module")
def finished(world: World) -> Path:
    world.run(world.place.parent / "finished")
    return world.place.parent / "finished"


@pytest.fixture(scope="module")
def unfinished(world: World) -> Path:
    begun(world, world.place.parent / "unfinished", {})
    return world.place.parent / "unfinished"


def files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]


def last_memories(folder: Path) -> list[Path]:
    """The files of clients' memories that the last checkpoint uses."""
    (training,) = {place.parent for place in folder.rglob("memory")}
    training_state, memory = last_checkpoint(training), Files(training.parent)
    assert training_state is not None
    return [memory.file((training.name, client, round)) for client, round in training_state.since.items()]


@pytest.mark.parametrize("kind", ["finished", "unfinished"])
def test_every_file_that_counts_is_checked(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(kind)
    count, faults = verify(folder)
    assert count > 5 and faults == []
    used = {file for file in files(folder) if "memory" not in file.parts} | {*last_memories(folder)}
    assert len(used) > 10
    for file in used:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        place = copy / file.relative_to(folder)
        content = bytearray(place.read_bytes())
        content[len(content) // 2] ^= 4
        place.write_bytes(content)
        _, faults = verify(copy)
        assert len(faults) >= 1 and place.name in " ".join(faults), file
        shutil.rmtree(copy)


def test_a_missing_file_is_reported(finished: Path, tmp_path: Path) -> None:
    manifest = read_manifest(finished)
    assert manifest is not None
    for name in manifest.files:
        shutil.copytree(finished, tmp_path / "copy")
        (tmp_path / "copy" / name).unlink()
        assert {name in fault for fault in verify(tmp_path / "copy")[1]} == {True}, name
        shutil.rmtree(tmp_path / "copy")


def test_an_adapter_can_be_verified_in_any_folder(world: World, finished: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "elsewhere"
    shutil.copytree(finished / "adapter", adapter)
    assert verify(adapter)[1] == []
    tuned = prepare(load_vlm(str(world.model)), stage("both", LoRA(2)), seed=0)
    import_adapter(tuned, adapter)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        content = (adapter / name).read_bytes()
        for bit in range(0, 8 * len(content), max(1, 8 * len(content) // 40)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            (adapter / name).write_bytes(damaged)
            assert name in verify(adapter)[1][0]
            with pytest.raises(UserError, match=name):
                import_adapter(tuned, adapter)
        (adapter / name).write_bytes(content)


def test_scores_edited_in_a_methods_result_are_not_handed_out(
    unfinished: Path, world: World, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(unfinished, copy)
    file = copy / "methods/zero-shot/result.json"
    value = json.loads(file.read_text())
    true = value["scores"]["accuracy"]
    value["scores"]["accuracy"] = 0.99
    file.write_text(json.dumps(value))
    world.go_on(copy)
    assert json.loads((copy / "result.json").read_text())["scores"]["zero-shot"]["accuracy"] == true
    assert '"damaged"' in (copy / "record.jsonl").read_text()


def test_a_damaged_checkpoint_of_a_finished_method_exports_no_older_round(
    finished: Path, world: World, tmp_path: Path
) -> None:
    scored(world, tmp_path / "scored", {})
    checkpoints = sorted((tmp_path / "scored/methods").glob("*/round-*"))[-2:]
    assert [file.suffix for file in checkpoints] == [".json", ".safetensors"]
    wanted = outcome(finished)
    for file in checkpoints:
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "scored", copy)
        place = copy / file.relative_to(tmp_path / "scored")
        content = bytearray(place.read_bytes())
        content[len(content) // 2] ^= 4
        place.write_bytes(content)
        world.go_on(copy)
        assert outcome(copy) == wanted
        shutil.rmtree(copy)


def test_files_of_another_run_do_not_pass_for_a_runs_own(
    world: World, finished: Path, tmp_path: Path
) -> None:
    scored(world, tmp_path / "run", {})
    begun(World(world.place, "scaffold", seed=1), tmp_path / "other", {})
    shutil.rmtree(tmp_path / "run/methods")
    shutil.copytree(tmp_path / "other/methods", tmp_path / "run/methods")
    world.go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(finished)


def test_a_line_that_a_crash_cut_short_is_no_damage(world: World, finished: Path, tmp_path: Path) -> None:
    begun(world, tmp_path / "run", {})
    record = tmp_path / "run/record.jsonl"
    record.write_bytes(record.read_bytes() + b'{"kind": "round", "met')
    assert verify(tmp_path / "run")[1] == []
    world.go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(finished)


@pytest.mark.parametrize("state", ["scored", "unfinished"])
def test_a_record_that_lost_lines_is_named(state: str, world: World, tmp_path: Path) -> None:
    {"scored": scored, "unfinished": begun}[state](world, tmp_path / "run", {})
    content = (tmp_path / "run/record.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    for kept in (0, len(lines[0]), len(content) // 2, len(content) - len(lines[-1]), len(content) - 9):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        (tmp_path / "copy/record.jsonl").write_bytes(content[:kept])
        assert "record.jsonl" in " ".join(verify(tmp_path / "copy")[1])
        with pytest.raises(UserError, match=r"record\.jsonl is damaged"):
            world.go_on(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize(
    "name", ["experiment.json", "plan.json", "manifest.json", "record.jsonl", "result.json"]
)
def test_reports_name_what_is_damaged(name: str, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    place = copy / name
    content = place.read_text()
    digit = next(k for k, letter in enumerate(content) if letter.isdigit())
    place.write_text(f"{content[:digit]}{(int(content[digit]) + 1) % 10}{content[digit + 1 :]}")
    result = CliRunner().invoke(app, ["report", str(copy)])
    assert result.exit_code == 2 and name in result.stderr
    assert CliRunner().invoke(app, ["verify", str(copy)]).exit_code == 1


def change_a_digit(file: Path) -> None:
    """Change the first digit in a file, so that it stays valid JSON."""
    content = file.read_text()
    digit = next(k for k, letter in enumerate(content) if letter.isdigit())
    file.write_text(f"{content[:digit]}{(int(content[digit]) + 1) % 10}{content[digit + 1 :]}")


@pytest.mark.parametrize("name", ["experiment.json", "plan.json", "record.jsonl", "result.json"])
def test_commands_on_a_run_name_what_is_damaged(name: str, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    change_a_digit(copy / name)
    for words in (
        ["reproduce", str(copy)],
        ["ask", str(copy), "--question", "?", "--text", "a"],
        ["export", str(copy), "--out", str(tmp_path / "exported")],
    ):
        result = CliRunner().invoke(app, [*words, "--quiet"])
        assert result.exit_code == 2 and f"{name} is damaged" in result.stderr, words
    assert not (tmp_path / "exported").exists() and not (tmp_path / "copy-again").exists()
    if name in ("experiment.json", "result.json"):
        assert f"{name} is damaged" in CliRunner().invoke(app, ["runs", str(copy)]).stdout


def test_a_sweep_is_checked_with_its_cells(world: World, tmp_path: Path) -> None:
    recipe = tmp_path / "grid.yaml"
    recipe.write_text(
        f"data: {{name: folder, root: {world.data}, test_share: 0.3}}\n"
        f"model: {{path: {world.model}, threads: 1}}\n"
        "scenario: {clients: 2}\ntrain: {rounds: 1, batch_size: 4}\nevaluate: {every: 0}\n"
        "engine: {workers: 1, side_by_side: 1}\n"
        "methods: [fedavg]\ngrid: {seed: [0, 1]}\n"
    )
    folder = tmp_path / "sweep"

    def sweep(*, rerun: bool = False) -> list[str]:
        lines: list[str] = []
        run_sweep(load_grid(str(recipe)), folder, lines.append, lambda: Progress(None), rerun=rerun)
        return [line for line in lines if not line.endswith(": begins")]

    sweep()
    assert verify(folder)[1] == []
    assert sweep() == ["2 of 2 cells are done already"]

    cell = next(folder.glob("cells/*/result.json"))
    content = cell.read_text()
    cell.write_text(content.replace('"main": "fedavg"', '"main": "fedavh"'))
    assert [cell.name in fault for fault in verify(folder)[1]] == [True]
    with pytest.raises(UserError, match=r"1 cell .*result\.json is damaged.*--rerun"):
        sweep()
    again = sweep(rerun=True)
    assert again[0] == "1 of 2 cells is done already" and len(again) == 2
    assert cell.read_text() != content.replace('"main": "fedavg"', '"main": "fedavh"')

    rows = (world.data / "data.jsonl").read_text()
    try:
        (world.data / "data.jsonl").write_text(rows.replace("note 1", "note one"))
        with pytest.raises(UserError, match=r"2 cells .*this has changed: .*examples"):
            sweep()
    finally:
        (world.data / "data.jsonl").write_text(rows)
    assert sweep() == ["2 of 2 cells are done already"]

    value = read_sealed(folder / "sweep.json")
    (folder / "sweep.json").write_text(json.dumps({**value, "sha256": "0"}))
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 2 and "sweep.json is damaged" in result.stderr
    write_sealed(folder / "sweep.json", value)


@pytest.fixture(scope="module")
def swept(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of two cells, and the folder of its finished sweep."""
    place = tmp_path_factory.mktemp("swept")
    (place / "grid.yaml").write_text(
        f"data: {{name: folder, root: {world.data}, test_share: 0.3}}\n"
        f"model: {{path: {world.model}, threads: 1}}\n"
        "scenario: {clients: 2}\ntrain: {rounds: 1, batch_size: 4}\nevaluate: {every: 0}\n"
        "methods: [fedavg]\ngrid: {seed: [0, 1]}\n"
    )
    go(place / "grid.yaml", place / "sweep")
    return place / "grid.yaml", place / "sweep"


def go(recipe: Path, folder: Path, *, rerun: bool = False) -> list[str]:
    lines: list[str] = []
    run_sweep(load_grid(str(recipe)), folder, lines.append, lambda: Progress(None), rerun=rerun)
    return [line for line in lines if not line.endswith(": begins")]


def swap(one: Path, other: Path) -> None:
    """Give two folders each other's name."""
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)


def test_cells_that_changed_places_or_are_gone_are_noticed(swept: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = swept
    for change in (lambda one, other: swap(one, other), lambda one, other: shutil.rmtree(one)):
        folder = tmp_path / "sweep"
        shutil.copytree(whole, folder)
        change(*sorted((folder / "cells").iterdir()))
        assert len(verify(folder)[1]) == len(verify(folder.parent)[1]) == 1
        result = CliRunner().invoke(app, ["report", str(folder)])
        assert result.exit_code == 2 and "result.json" in result.stderr
        go(recipe, folder)
        assert verify(folder)[1] == []
        assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "gone"),
    share(
        product(
            ("manifest.json", "experiment.json", "plan.json", "result.json", "record.jsonl"), (False, True)
        ),
        every=3,
    ),
)
def test_rerun_helps_a_sweep_whichever_file_of_a_cell_is_damaged(
    name: str, gone: bool, swept: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, whole = swept
    folder = tmp_path / "sweep"
    shutil.copytree(whole, folder)
    file = sorted((folder / "cells").iterdir())[0] / name
    content = file.read_bytes()
    file.unlink() if gone else file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    assert verify(folder)[1] != []
    with pytest.raises(UserError, match=r"1 cell .*--rerun"):
        go(recipe, folder)
    assert len(go(recipe, folder, rerun=True)) == 2
    assert verify(folder)[1] == []


@pytest.mark.parametrize("name", share(["record.jsonl", "machine.json", "plan.json"], every=3))
def test_rerun_helps_a_sweep_whichever_file_of_an_unfinished_cell_is_damaged(
    name: str, swept: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = swept
    folder = tmp_path / "sweep"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_atomic", _stopping)
        with pytest.raises(KeyboardInterrupt):
            go(recipe, folder)
    (next(folder.glob("cells/*")) / name).write_text("{}\n")
    with pytest.raises(UserError, match=rf"1 cell .*{name}.*--rerun"):
        go(recipe, folder)
    assert len(go(recipe, folder, rerun=True)) == 2
    assert verify(folder)[1] == []


def _stopping(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_a_kill_leaves_and_what_others_put_there_is_no_damage(
    unfinished: Path, finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(unfinished, copy)
    shutil.copy(finished / "result.json", copy)  # killed between this and the manifest
    (copy / "notes.json").write_text("{}")
    assert verify(copy)[1] == []


def test_the_manifest_of_an_adapter_cannot_go_unnoticed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy/adapter/manifest.json").unlink()
    assert verify(tmp_path / "copy")[1] != []


def test_a_checkpoint_under_another_rounds_name_is_skipped(unfinished: Path, tmp_path: Path) -> None:
    shutil.copytree(unfinished, tmp_path / "copy")
    folder = tmp_path / "copy/methods/scaffold"
    before = last_checkpoint(folder).state.round
    for kind in ("json", "safetensors"):
        shutil.copy(folder / f"round-{before - 1:04}.{kind}", folder / f"round-{before + 1:04}.{kind}")
    assert last_checkpoint(folder).state.round == before


def test_a_folder_without_anything_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        result = CliRunner().invoke(app, ["verify", str(folder)])
        assert result.exit_code == 2


def rewrite_log(folder: Path) -> None:
    """Change what a log states, without changing its length, and compute all its checksums anew."""
    log = folder / "record.jsonl"
    lines = [line for _, line in read_lines(log)]
    log.unlink()
    for line in lines:
        changed = {"version": "9" * len(line["version"])} if "version" in line else {}
        RunLog(log).append(line.pop("kind"), {**line, **changed})


def test_a_rewritten_log_is_noticed_by_the_manifest_or_the_kept_head(
    unfinished: Path, finished: Path, tmp_path: Path
) -> None:
    def verified(folder: Path, *words: str) -> Result:
        return CliRunner().invoke(app, ["verify", str(folder), *words])

    for number, folder in enumerate((finished, unfinished)):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        (head,) = json.loads(verified(copy, "--json").stdout)[0]["log_heads"].values()
        assert f"log head: {head}" in verified(copy).stdout
        assert verified(copy, "--log-head", head).exit_code == 0
        rewrite_log(copy)
        # The manifest of a finished run has the digest of the log; of a run that goes on, only its owner can keep it.
        assert verified(copy).exit_code == (1 if folder == finished else 0)
        found = verified(copy, "--log-head", head)
        assert found.exit_code == 1
        assert found.stderr.count("rewritten or cut since") == 1


def test_a_list_of_what_left_a_site_has_a_head_too(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "left-this-site.jsonl")
    log.append("left", {"bytes": 10, "sha256": "ab"})
    assert verify(tmp_path) == (1, [])
    assert log_heads(tmp_path) == {"left-this-site.jsonl": head_of(log.path)}
    log.path.write_bytes(log.path.read_bytes().replace(b"10", b"11"))
    assert len(verify(tmp_path)[1]) == 1


def test_a_kept_head_belongs_to_one_folder_with_a_log(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no log"):
        head_fault(finished / "adapter", "ab" * 32)
    found = CliRunner().invoke(app, ["verify", str(finished), str(finished), "--log-head", "ab" * 32])
    assert found.exit_code == 2


@pytest.mark.parametrize("name", ["experiment.json", "record.jsonl", "result.json"])
def test_reports_of_a_sweep_name_what_is_damaged_in_a_cell(
    name: str, swept: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept[1], copy)
    cell = next((copy / "cells").iterdir())
    change_a_digit(cell / name)
    result = CliRunner().invoke(app, ["report", str(copy)])
    assert result.exit_code == 2 and f"{cell / name} is damaged" in result.stderr
    if name != "result.json":  # results that were copied alone still make a page
        (cell / name).unlink()
        assert CliRunner().invoke(app, ["report", str(copy)]).exit_code == 0


def test_a_damaged_result_or_state_of_a_sweep_is_named(swept: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept[1], copy)
    change_a_digit(copy / "result.json")
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        load_sweep(copy)
    change_a_digit(copy / "sweep.json")
    assert "sweep.json is damaged" in CliRunner().invoke(app, ["runs", str(copy)]).stdout
    assert "sweep.json is damaged" in CliRunner().invoke(app, ["watch", str(copy), "--once"]).stderr


def test_a_folder_that_may_not_be_read_is_no_silent_gap(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open", "closed"):
        shutil.copytree(finished, tmp_path / name)
    original = os.scandir

    def refused(place: Any) -> Any:
        if os.fspath(place) == str(tmp_path / "closed"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return original(place)

    monkeypatch.setattr(os, "scandir", refused)
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert (
        result.exit_code == 1 and f"{tmp_path / 'closed'}: " in result.stderr and "1 fault" in result.stdout
    )
    assert "allow this user to read it" in result.stderr
    board = CliRunner().invoke(app, ["leaderboard", str(tmp_path)])
    assert f"{tmp_path / 'closed'} is left out" in board.stderr
    missing = CliRunner().invoke(app, ["verify", str(tmp_path / "none")])
    assert missing.exit_code == 2 and f"{tmp_path / 'none'}: it does not exist" in missing.stderr


def test_a_file_that_may_not_be_read_hides_no_fault(
    unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(unfinished, copy)
    change_a_digit(copy / "plan.json")
    original = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path == copy / "record.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    result = CliRunner().invoke(app, ["verify", str(copy)])
    assert result.exit_code == 1 and "2 faults" in result.stdout
    assert "record.jsonl" in result.stderr and "plan.json is damaged" in result.stderr


def test_what_lies_on_another_disk_is_checked_too(
    world: World, finished: Path, swept: tuple[Path, Path], tmp_path: Path
) -> None:
    """A run whose checkpoints, and a sweep whose cell, were moved and linked to."""
    begun(world, tmp_path / "run", {})
    (tmp_path / "run/methods").rename(tmp_path / "checkpoints")
    (tmp_path / "run/methods").symlink_to(tmp_path / "checkpoints", target_is_directory=True)
    (tmp_path / "run/methods/above").symlink_to(tmp_path / "run", target_is_directory=True)
    world.go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(finished)
    here, there = read_manifest(tmp_path / "run"), read_manifest(finished)
    assert here is not None and there is not None and here.files.keys() == there.files.keys()
    change_a_digit(tmp_path / "checkpoints/zero-shot/result.json")
    assert ["zero-shot/result.json is damaged" in fault for fault in verify(tmp_path / "run")[1]] == [True]

    shutil.copytree(swept[1], tmp_path / "sweep")
    cell = next((tmp_path / "sweep/cells").iterdir())
    cell.rename(tmp_path / "cell")
    cell.symlink_to(tmp_path / "cell", target_is_directory=True)
    assert verify(tmp_path / "sweep") == verify(swept[1])
    change_a_digit(tmp_path / "cell/plan.json")
    assert len(verify(tmp_path / "sweep")[1]) == 1
