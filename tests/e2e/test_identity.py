"""A run is what decided it: whatever of that changes is named, and old results are never handed out for new ones."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.shares import each_once, share
from typer.testing import CliRunner

import fedloom
from fedloom.algorithms.fedavg import fedavg
from fedloom.cli.run_commands import app
from fedloom.data.images import FileImage
from fedloom.experiment.experiment import Experiment
from fedloom.plugins.code_digest import source_digest
from fedloom.plugins.plugins import Plugins
from fedloom.run_log import RunLog
from fedloom.runs import run_folder, run_identity, run_setup, single_run
from fedloom.runs.run_folder import HELD, begin_run, discard, folder_state
from fedloom.runs.single_run import resume_run, run_experiment
from fedloom.runs.verify_files import verify
from fedloom.system.errors import UserError
from fedloom.system.manifest import Manifest, read_manifest
from fedloom.system.progress import Progress
from fedloom.types import Example


class World:
    """What a run is made of, in a folder that a test may change."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data, self.model, self.out = place / "data", place / "model", place / "run"

    def fill(self, model: Path, encoded: Callable[..., bytes]) -> None:
        """Write the data and copy the model."""
        shutil.copytree(model, self.model)
        self.data.mkdir()
        rows = [
            {"image": f"{n}.png", "text": f"note {n}", "question": "Which?", "answer": "ab"[n % 2]}
            for n in range(12)
        ]
        for n in range(12):
            (self.data / f"{n}.png").write_bytes(encoded(n))
        self.write(rows)

    def write(self, rows: list[dict[str, str]]) -> None:
        (self.data / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.data / "data.jsonl").read_text().splitlines()]

    @property
    def experiment(self) -> Experiment:
        return Experiment.from_json(
            json.dumps(
                {
                    "name": "world",
                    "data": {"name": "folder", "root": str(self.data), "test_share": 0.3},
                    "scenario": {"clients": 2},
                    "model": {"path": str(self.model), "threads": 1},
                    "strategy": {"name": "lora", "rank": 2},
                    "train": {"rounds": 2, "batch_size": 4},
                    "methods": ["scaffold"],
                    "evaluate": {"every": 0},
                    "engine": {"workers": 1, "side_by_side": 1},
                }
            )
        )

    def run(self) -> dict[str, object]:
        return run_experiment(self.experiment, self.out, Progress(None))

    def interrupt(self) -> None:
        """Begin the run and stop it in its second round."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunLog, "append", _stopping(RunLog.append))
            with pytest.raises(KeyboardInterrupt):
                self.run()


def _stopping(append: Callable[..., None]) -> Callable[..., None]:
    def stopping(record: RunLog, kind: str, values: dict[str, object]) -> None:
        if kind == "round" and values["round"] == 1:
            raise KeyboardInterrupt
        append(record, kind, values)

    return stopping


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, encoded: Callable[..., bytes]
) -> tuple[Path, dict[str, Path]]:
    """Where each test finds its world, and copies for it: without a run, with a finished and with an unfinished one."""
    place, kept = tmp_path_factory.mktemp("identity"), dict[str, Path]()
    world = World(place / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_identity, "_editable", lambda: True)
        for state, work in (("new", None), ("finished", world.run), ("unfinished", world.interrupt)):
            world.place.mkdir()
            world.fill(tiny_model, encoded)
            if work is not None:
                work()
            kept[state] = world.place.rename(place / state)
    return world.place, kept


@pytest.fixture(autouse=True)
def sources_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code of fedloom be among what decided a run, as where it is being worked on."""
    monkeypatch.setattr(run_identity, "_editable", lambda: True)


@pytest.fixture
def begun(made: tuple[Path, dict[str, Path]]) -> Iterator[Callable[[str], World]]:
    """Return a function that makes the world anew, with a run in some state."""
    place, kept = made

    def begin(state: str) -> World:
        shutil.copytree(kept[state], place)
        return World(place)

    yield begin
    shutil.rmtree(place)


@pytest.fixture
def world(begun: Callable[[str], World]) -> World:
    return begun("new")


@pytest.fixture
def finished(begun: Callable[[str], World]) -> World:
    return begun("finished")


@pytest.fixture
def unfinished(begun: Callable[[str], World]) -> World:
    return begun("unfinished")


def answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = world.rows()
    world.write([{**row, "answer": {"a": "b", "b": "a"}[row["answer"]]} for row in rows])


def texts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write([{**row, "text": row["text"] + "!"} for row in world.rows()])


def images(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in world.data.glob("*.png"):
        before = file.stat()
        size = Image.open(file).size
        Image.new("RGB", size, (int(file.stem), 5, 5)).save(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of change gives it away


def weights(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file = world.model / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] * 2}, file, metadata={"format": "pt"})


def version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run_identity, run_setup):
        monkeypatch.setattr(module, "__version__", "0.9.0")


def sources(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_identity, "_sources_digest", lambda: "f" * 64)


CHANGES = {
    answers: "training examples.*test examples",
    texts: "training examples.*test examples",
    images: "images",
    weights: "base model",
    version: "code",
    sources: "code",
}


@pytest.mark.parametrize(("change", "state"), each_once(CHANGES, ("finished", "unfinished")))
def test_what_changed_is_named_and_nothing_old_is_handed_out(
    change: Callable[..., None],
    state: str,
    begun: Callable[[str], World],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = begun(state)
    assert folder_state(world.out, world.experiment) == state
    before = {file: file.read_bytes() for file in world.out.rglob("*") if file.is_file()}
    change(world, monkeypatch)
    for again in (
        world.run,
        lambda: resume_run(world.out, Progress(None)),
        lambda: fedloom.run(world.experiment, world.out, quiet=True),
    ):
        with pytest.raises(UserError, match=f"{CHANGES[change]}.*--rerun.*--out"):
            again()
    told = CliRunner().invoke(app, ["resume", str(world.out)])
    assert told.exit_code == 2 and re.search(CHANGES[change], told.stderr)
    assert {file: file.read_bytes() for file in world.out.rglob("*") if file.is_file()} == before
    rerun = fedloom.run(world.experiment, world.out, quiet=True, rerun=True)
    assert rerun == fedloom.run(world.experiment, world.out, quiet=True)


def test_data_and_models_may_move(unfinished: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("data", "model"):
        setattr(unfinished, place, getattr(unfinished, place).rename(tmp_path / f"moved-{place}"))
    result = unfinished.run()
    assert unfinished.run() == result
    with pytest.raises(UserError):  # the folder still names the old places
        resume_run(unfinished.out, Progress(None))


def test_the_command_line_goes_on_with_data_and_models_that_moved(
    unfinished: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("data", "model"):
        setattr(unfinished, place, getattr(unfinished, place).rename(tmp_path / f"{place} moved"))
    (tmp_path / "mine.json").write_text(unfinished.experiment.to_json())
    assert CliRunner().invoke(app, ["resume", str(unfinished.out)]).exit_code == 2
    for change in ("train.lr=0.5", "engine.workers=2", "name=other"):
        told = CliRunner().invoke(app, ["resume", str(unfinished.out), "--set", change])
        assert told.exit_code == 2 and "data.root" in told.stderr
    went_on = CliRunner().invoke(app, ["run", str(tmp_path / "mine.json"), "--out", str(unfinished.out)])
    assert went_on.exit_code == 0, went_on.output
    assert "holds a part of this run, which is continued" in went_on.stderr
    assert folder_state(unfinished.out, unfinished.experiment) == "finished"


def test_a_damaged_record_is_named_before_a_step_is_trained(
    unfinished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = unfinished.out / "record.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join([lines[0], *lines[2:]]))
    before = {file: file.read_bytes() for file in unfinished.out.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"record\.jsonl, line 2.*--rerun"):
        unfinished.run()
    assert {file: file.read_bytes() for file in unfinished.out.rglob("*") if file.is_file()} == before


ALGORITHM = """
from helper import FACTOR
from fedloom.algorithms.fedavg import fedavg

def mine():
    return fedavg()
"""


def test_another_algorithms_code_and_what_it_imports_count(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(ALGORITHM)
    (tmp_path / "helper.py").write_text("FACTOR = 1\n")
    (tmp_path / "stranger.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine  # type: ignore[import-not-found]

    before = source_digest(mine.mine)
    (tmp_path / "stranger.py").write_text("X = 1\n")
    assert source_digest(mine.mine) == before
    (tmp_path / "helper.py").write_text("FACTOR = 2\n")
    assert source_digest(mine.mine) != before

    def code(make: Callable[..., object]) -> dict[str, str]:
        plugins = [Plugins.of(algorithms={"mine": make})]
        return run_identity.code(Experiment(plugins=plugins, methods=["mine", "fedavg"]))  # type: ignore[arg-type]

    assert code(mine.mine).keys() == {"code", "code of mine"}
    assert code(mine.mine)["code of mine"] == source_digest(mine.mine)
    factor = 2.0
    for make in (functools.partial(mine.mine), lambda: fedavg(lr=factor)):  # what no file holds
        assert "without source" in code(make)["code of mine"]


HELPERS = {
    "beside": ("mine.py", "import helper", "helper.py"),
    "name beside": ("mine.py", "from parts import helper", "parts/helper.py"),
    "same package": ("own/mine.py", "from own.helper import *", "own/helper.py"),
    "relative": ("own/mine.py", "from . import helper", "own/helper.py"),
    "two levels up": ("own/algorithms/mine.py", "from ..helper import *", "own/helper.py"),
    "from the top": ("own/algorithms/mine.py", "from own.parts import helper", "own/parts/helper.py"),
    "package itself": ("own/algorithms/mine.py", "from .. import VALUE", "own/__init__.py"),
    "installed": ("site-packages/own/a/mine.py", "import own.b.helper", "site-packages/own/b/helper.py"),
}


@pytest.mark.parametrize("case", HELPERS)
def test_helpers_count_wherever_a_package_has_them(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, line, helper = HELPERS[case]
    other = tmp_path / "site-packages/torch/__init__.py" if case == "installed" else tmp_path / "other.py"
    for place in (tmp_path / file, tmp_path / helper, other):
        place.parent.mkdir(parents=True, exist_ok=True)
        for above in place.relative_to(tmp_path).parents:
            if above.name not in ("", "site-packages"):
                (tmp_path / above / "__init__.py").touch()
    (tmp_path / file).write_text(f"{line}\nimport torch\n\ndef mine():\n    return 1\n")
    made: dict[str, Callable[..., object]] = {}
    # As a module would be: only the name of its file is asked for.
    exec(compile("def mine(): pass", str(tmp_path / file), "exec"), made)
    before = source_digest(made["mine"])
    assert "without source" not in before
    other.write_text("VALUE = 1\n")
    assert source_digest(made["mine"]) == before
    (tmp_path / helper).write_text("VALUE = 2\n")
    assert source_digest(made["mine"]) != before
    (tmp_path / helper).write_text("this is no Python \0")
    assert source_digest(made["mine"]) != before


def test_a_decorated_algorithms_own_code_counts(tmp_path: Path) -> None:
    made: dict[str, Callable[..., object]] = {}
    (tmp_path / "mine.py").write_text("def mine(): pass")
    exec(compile("def mine(): pass", str(tmp_path / "mine.py"), "exec"), made)

    @functools.wraps(made["mine"])
    def wrapped() -> None: ...

    before = source_digest(wrapped)
    (tmp_path / "mine.py").write_text("def mine(): return 1")
    assert source_digest(wrapped) != before


def test_a_spare_image_counts(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    digests = set[tuple[str, str]]()
    for number in (1, 2):
        (tmp_path / "spare.png").write_bytes(encoded(number))
        digests.add(
            run_identity.content([Example("1", "?", "a", spare=(FileImage(tmp_path / "spare.png"),))])
        )
    assert len(digests) == 2


def test_what_changed_before_the_report_was_written_is_named_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(single_run, "write_pages", _interrupting)
        with pytest.raises(KeyboardInterrupt):
            world.run()
    assert folder_state(world.out, world.experiment) == "unfinished"
    before = world.rows()
    answers(world, monkeypatch)
    with pytest.raises(UserError, match="training examples"):
        resume_run(world.out, Progress(None))
    world.write(before)
    resume_run(world.out, Progress(None))


def _interrupting(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_another_run_that_began_meanwhile_is_not_handed_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, working = world.experiment.model_copy(update={"seed": 5}), single_run.open_run_folder

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        monkeypatch.setattr(single_run, "open_run_folder", working)
        run_experiment(other, folder, Progress(None))
        with working(folder):
            yield

    monkeypatch.setattr(single_run, "open_run_folder", late)
    with pytest.raises(UserError, match="another experiment"):
        world.run()


@pytest.mark.parametrize(
    "lost", share(["manifest.json", "experiment.json", "record.jsonl", "plan.json"], every=2)
)
def test_rerun_helps_whichever_file_is_lost(lost: str, finished: World) -> None:
    world, before = finished, finished.run()
    (world.out / lost).unlink()
    with pytest.raises(UserError, match=lost.replace(".", r"\.")):
        world.run()
    again = fedloom.run(world.experiment, world.out, quiet=True, rerun=True)
    assert again["scores"] == before["scores"]


def test_a_discard_that_is_killed_is_done_by_the_next_one(
    finished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink
    for kept in range(len(HELD)):
        left = [kept]

        def remove(real: Callable[..., None], place: Path, left: list[int] = left, **named: object) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(place, **named)

        copy = finished.out.with_name(f"copy-{kept}")
        shutil.copytree(finished.out, copy)
        with monkeypatch.context() as patch:
            patch.setattr(run_folder.shutil, "rmtree", functools.partial(remove, shutil.rmtree))
            patch.setattr(
                Path, "unlink", lambda one, missing_ok=False: remove(unlink, one, missing_ok=missing_ok)
            )
            with pytest.raises(KeyboardInterrupt):
                discard(copy)
        discard(copy)
        assert folder_state(copy, finished.experiment) == "new"


def test_a_start_that_fails_leaves_nothing_behind(world: World) -> None:
    shutil.rmtree(world.model)
    with pytest.raises(UserError):
        world.run()
    assert not world.out.exists()


@pytest.mark.parametrize("left", [[], [".experiment.json.77-77.tmp"], ["experiment.json"], ["plan.json"]])
def test_what_a_kill_leaves_before_a_run_has_begun_is_taken_over(left: list[str], world: World) -> None:
    world.out.mkdir()
    (world.out / ".lock").touch()
    for name in left:
        (world.out / name).write_text(world.experiment.to_json())
    assert folder_state(world.out, world.experiment) == "new"
    if left == ["experiment.json"]:
        resume_run(world.out, Progress(None))
    else:
        world.run()
    assert folder_state(world.out, world.experiment) == "finished"


def test_a_folder_of_version_0_1_is_reported_on_and_not_resumed(finished: World) -> None:
    (finished.out / "manifest.json").unlink()
    lines = [{**line} for line in RunLog(finished.out / "record.jsonl")]
    lines[0]["version"] = "0.1.0"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (finished.out / "record.jsonl").write_text(text)
    report = CliRunner().invoke(app, ["report", str(finished.out)])
    assert report.exit_code == 0, report.output
    for words in (["resume", str(finished.out)],):
        told = CliRunner().invoke(app, words)
        assert told.exit_code == 2 and "fedloom 0.1.0" in told.stderr
    with pytest.raises(UserError, match=r"fedloom 0\.1\.0"):
        finished.run()


def test_a_manifest_that_is_gone_or_damaged_is_no_older_version(finished: World) -> None:
    file = finished.out / "manifest.json"
    content = file.read_text()
    file.write_text(content.replace("scaffold", "scafford"))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        finished.run()
    file.unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        finished.run()


def test_discarding_removes_a_run_and_leaves_what_others_wrote(world: World) -> None:
    begin_run(_made(world.out), world.experiment, {}, Manifest("0.2.0"))
    notes = world.out / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        fedloom.run(world.experiment, world.out, quiet=True, rerun=True)
    assert notes.read_text() == "mine" and (world.out / "experiment.json").is_file()
    notes.unlink()
    discard(world.out)
    assert [file.name for file in world.out.iterdir()] == [".lock"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_every_file_of_a_finished_run_is_listed_or_proves_itself(finished: World) -> None:
    manifest = read_manifest(finished.out)
    assert manifest is not None
    there = {file.relative_to(finished.out).as_posix() for file in finished.out.rglob("*") if file.is_file()}
    proven = {name for name in there if name == "manifest.json" or "/memory/" in name}
    assert set(manifest.files) == there - proven - {".lock"}


def test_what_others_put_into_a_run_folder_is_theirs(
    unfinished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("notes.txt", ".draft.tmp"):
        (unfinished.out / name).write_text("mine")
    result = unfinished.run()
    (unfinished.out / "notes.txt").write_text("mine, and longer")
    assert unfinished.run() == result
    assert verify(unfinished.out)[1] == []
    assert (unfinished.out / ".draft.tmp").read_text() == "mine"


def test_a_manifest_that_is_removed_meanwhile_ends_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunLog.append

    def removing(record: RunLog, kind: str, values: dict[str, object]) -> None:
        if kind == "round":
            (world.out / "manifest.json").unlink(missing_ok=True)
        append(record, kind, values)

    monkeypatch.setattr(RunLog, "append", removing)
    with pytest.raises(UserError, match=r"manifest\.json was removed"):
        world.run()


def test_a_run_whose_folder_is_removed_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    append = RunLog.append

    def removing(record: RunLog, kind: str, values: dict[str, object]) -> None:
        if kind == "round" and world.out.exists():
            shutil.rmtree(world.out)
        append(record, kind, values)

    monkeypatch.setattr(RunLog, "append", removing)
    with pytest.raises(UserError, match="was removed"):
        world.run()
    assert not world.out.exists()
