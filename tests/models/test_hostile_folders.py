"""Hostile model folders: one sentence at load, and nothing in them is ever run or unpickled."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedloom.models import chat_template_process, chat_templates
from fedloom.models.batches import encode
from fedloom.models.load_model import load_vlm
from fedloom.system.errors import UserError
from fedloom.types import Conversation

from ..hostile.models import BAD, GOOD, MARKED, TEMPLATES, hub_cache
from .tiny import save


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llava", tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


@pytest.fixture(autouse=True)
def unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every way to open a pickle end the test, and hostile templates end soon."""

    def refuse(*given: Any, **more: Any) -> None:
        raise AssertionError("a pickle was opened")

    for module, name in ((torch, "load"), (pickle, "Unpickler"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(chat_templates, "SECONDS", 1)
    monkeypatch.setattr(chat_templates, "MEMORY", 2**28)


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 40


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_folder_is_one_clear_sentence(folder: Path, name: str) -> None:
    build, expected = BAD[name]
    build(folder)
    with pytest.raises(UserError) as raised:
        load_vlm(str(folder))
    message = str(raised.value)
    assert message.startswith("model.path: ")
    assert str(folder) in message
    assert re.search(expected, message), message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_but_whole_folder_loads(folder: Path, good: Path, name: str) -> None:
    GOOD[name](folder)
    state, expected = load_vlm(str(folder)).model.state_dict(), load_vlm(str(good)).model.state_dict()
    tolerance = 1e-3 if name == "half precision" else 0
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=tolerance)


def test_a_model_in_the_layout_of_the_hubs_cache_loads(good: Path, folder: Path) -> None:
    hub_cache(folder)
    state = load_vlm(str(next((folder / "snapshots").iterdir()))).model.state_dict()
    assert all(torch.equal(state[key], one) for key, one in load_vlm(str(good)).model.state_dict().items())


def test_a_hub_id_is_found_in_the_hubs_cache(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(good, tmp_path / "hub" / "models--some--model"))
    hub_cache(place)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    vlm = load_vlm("some/model")
    assert vlm.digest == load_vlm(str(good)).digest


@pytest.mark.parametrize("place", TEMPLATES)
def test_the_chat_template_is_that_of_the_stock_processor(folder: Path, place: str) -> None:
    """Wherever it is kept, it is found; the language model's own, which writes no images, is not taken for it."""
    from transformers import LlavaProcessor

    TEMPLATES[place](folder)
    stock: Any = (
        LlavaProcessor.from_pretrained(folder).chat_template or MARKED
    )  # some read the tokenizer's, some none
    assert load_vlm(str(folder)).tokenizer.chat_template == MARKED
    assert (stock["default"] if isinstance(stock, dict) else stock) == MARKED


def test_a_language_model_uses_the_template_of_its_tokenizer(llama: Path, tmp_path: Path) -> None:
    """A processor's file beside it is read only if the tokenizer has none."""
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    own = load_vlm(str(folder)).tokenizer.chat_template
    other = own + "{# other #}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": other}))
    assert load_vlm(str(folder)).tokenizer.chat_template == own
    (folder / "chat_template.jinja").unlink()
    assert load_vlm(str(folder)).tokenizer.chat_template == other


def test_a_prompt_does_not_depend_on_the_day(folder: Path) -> None:
    """The date is the one that Llama 3.2's template names for want of a clock."""
    GOOD["a template with the date"](folder)
    vlm = load_vlm(str(folder))
    prompt = vlm.tokenizer.decode(encode(vlm, Conversation("Which?", "yes"), []).prompt)
    assert "26 Jul 2024" in prompt


def test_a_template_that_fails_on_one_text_is_one_clear_message(folder: Path) -> None:
    vlm = load_vlm(str(folder))
    vlm.tokenizer.chat_template = "{{ raise_exception('not this') }}"
    with pytest.raises(UserError, match=r"chat template fails .*not this"):
        encode(vlm, Conversation("Which?", "yes"), [])


@pytest.mark.parametrize("split", [False, True])
def test_only_what_is_read_is_fetched_from_a_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool
) -> None:
    """First everything but weights, then the safetensors that the index names; a stand-in copies instead of fetching."""
    hub, asked = tmp_path / "hub", list[list[str]]()
    hub.mkdir()
    if split:
        GOOD["two shards"](folder)
    GOOD["a pickle beside"](folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same again")

    def fetch(name: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
        assert (name, local_files_only) == ("some/model", False)
        asked.append(allow_patterns)
        for file in folder.iterdir():
            if file.name in allow_patterns:
                shutil.copy(file, hub)
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_vlm("some/model", network=True).digest == load_vlm(str(folder)).digest
    settings, weights = asked
    assert not any("safetensors" in one and not one.endswith(".json") for one in settings)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert weights == (shards if split else ["model.safetensors"])
    assert not {path.suffix for path in hub.iterdir()} & {".bin", ".py"}


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (-2, b"Traceback\nKeyboardInterrupt", r"ended with code -2 \(KeyboardInterrupt\)"),
        (
            1,
            b"Traceback\nModuleNotFoundError: no jinja2",
            r"ended with code 1 \(ModuleNotFoundError: no jinja2\)",
        ),
        (-15, b"", "ended with code -15"),
        (-9, b"", "does not come to an end, or takes too much memory"),
    ],
)
def test_an_interrupted_check_is_no_fault_of_the_template(
    code: int, output: bytes, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.CompletedProcess([], code, b"", output)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    template = f"{{# {code} #}}{{{{ messages[0].content }}}}"  # another one each time, since results are kept
    assert re.search(expected, str(chat_templates.try_template(template, {}, flat=True)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not limit processor time")
@pytest.mark.parametrize("used", [0.001, 0.999, 1.001, 7.5])
def test_a_check_has_all_of_its_processor_time(used: float, monkeypatch: pytest.MonkeyPatch) -> None:
    resource, limits = importlib.import_module("resource"), dict[int, Any]()
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_utime=used, ru_stime=0.0))
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    chat_template_process.limit_resources(1, 2**30)
    assert 1 <= limits[resource.RLIMIT_CPU][0] - used < 2
