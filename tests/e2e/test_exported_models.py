"""Exported models are those of the run in stock libraries too, or their cards show how they are loaded."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hostile.models import Build, content, document, hub_cache
from tests.models.tiny import CLIP, save, tokenizer
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

import fedloom
from fedloom.models.assemble_model import load_model
from fedloom.runs.export_models import export_from_run, processor_files
from fedloom.runs.finished_run import FinishedRun
from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("qwen2_vl", tmp_path_factory.mktemp("qwen") / "model")


IDS = torch.tensor([[5, 9, 30, 7]])


def assembled(folder: Path, kind: Any, config: Any) -> dict[str, str]:
    """Save an encoder and a language model, whose biases are not zero, and return the settings that join them."""
    words = tokenizer("<other>", [], {}, None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {key: value for key, value in CLIP.items() if key != "model_type"}
        CLIPVisionModel(CLIPVisionConfig(**vision)).save_pretrained(folder / "encoder")
        model = kind(
            config(
                vocab_size=len(words) + 1, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                num_attention_heads=2, eos_token_id=5, pad_token_id=0,
            )
        )  # fmt: skip
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(value)
    model.save_pretrained(folder / "llm")
    words.save_pretrained(folder / "llm")
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    images.save_pretrained(folder / "encoder")
    return {"encoder": str(folder / "encoder"), "llm": str(folder / "llm")}


def finished(model: dict[str, Any], folder: Path, strategy: str) -> FinishedRun:
    experiment = fedloom.Experiment(
        name="exported",
        data={"name": "emoji", "limit": 8, "test_share": 0.02},
        scenario={"clients": 1},
        model={"threads": 1, **model},
        strategy={"name": strategy, "rank": 2, "targets": ["q_proj"]},
        train={"rounds": 1, "lr": 0.05},
        methods=("fedavg",),
        engine={"workers": 1},
    )
    return fedloom.run(experiment, folder, quiet=True)


def logits_of(run: FinishedRun) -> torch.Tensor:
    model = run.model("fedavg")
    model.models.context.tuned.write(model.params)
    return logits(model.models.context.vlm.model)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


KINDS: dict[str, tuple[dict[str, Any] | None, str, str]] = {
    "another connector": ({"connector": "linear"}, "lora", "multi_modal_projector"),
    "a resampler that is trained": (
        {"connector": "resampler", "queries": 3},
        "connector",
        "multi_modal_projector",
    ),
    "a head with a bias": (None, "both", "lm_head.bias"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_no_class_can_hold_says_how_it_is_loaded(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Stock libraries would draw its connector at random or leave the bias out; its card loads the model of the run."""
    settings, strategy, named = KINDS[kind]
    model = (
        {"path": str(tiny_model), **settings} if settings else assembled(tmp_path, PhiForCausalLM, PhiConfig)
    )
    run = finished(model, tmp_path / "run", strategy)
    options: dict[str, dict[str, Any]] = {"--merged": {"merged": True}, "--with-base": {"with_base": True}}
    for option, choices in options.items():
        with pytest.raises(UserError, match=f"^{option}: Llava.* differ in .*{named}"):
            export_from_run(run.folder, tmp_path / "whole", **choices)
    assert not (tmp_path / "whole").exists()
    export_from_run(run.folder, tmp_path / "out")
    assert not (tmp_path / "out/base").exists()
    for folder in (tmp_path / "out", run.folder / "adapter"):
        card = (folder / "README.md").read_text()
        assert named in card and "AutoPeftModel" not in card
        found = re.search("```python\n(.*?)```", card, re.DOTALL)
        assert found is not None
        names: dict[str, Any] = {}
        exec(found[1].replace("path/to/this/folder", str(folder)), names)
        torch.testing.assert_close(logits(names.get("model", names["base"])), logits_of(run))


def test_an_assembled_model_names_its_parts_and_is_loaded_by_stock_libraries(tmp_path: Path) -> None:
    from peft import AutoPeftModel
    from transformers import AutoModelForImageTextToText

    model = assembled(tmp_path, LlamaForCausalLM, LlamaConfig)
    run = finished(model, tmp_path / "run", "both")
    expected = logits_of(run)
    for merged, load in ((False, AutoPeftModel), (True, AutoModelForImageTextToText)):
        out = tmp_path / f"merged {merged}"
        export_from_run(run.folder, out, merged=merged)
        torch.testing.assert_close(logits(load.from_pretrained(out).eval()), expected, rtol=1e-4, atol=1e-4)
        card = (out / "README.md").read_text()
        assert f"* **Base model:** `{model['encoder']}` + `{model['llm']}`, SHA-256" in card
        assert "base_model:" not in card


def nested(folder: Path) -> None:
    """Keep the image processor in the file of the processor, as transformers 5 does."""
    own = folder / "preprocessor_config.json"
    document("processor_config.json", partial(dict.update, image_processor=json.loads(own.read_text())))(
        folder
    )
    own.unlink()


LAYOUTS: dict[str, Build] = {
    "an image processor": lambda folder: None,
    "an image processor and a processor": document(
        "processor_config.json", partial(dict.update, patch_size=8)
    ),
    "a processor that holds all": nested,
    "further chat templates": lambda folder: write_atomic(
        folder / "additional_chat_templates/tools.jinja", b"{{ messages }}"
    ),
    "a processor of videos": content("video_preprocessor_config.json", "{}"),
}


@pytest.mark.parametrize("pixels", [None, 800])
@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_exported_model_has_the_processor_of_the_run(
    layout: str, hub: bool, pixels: int | None, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is lost, also if the model is in the hub's cache; images have at most as many pixels as in the run."""
    folder = tmp_path / "hub" / "models--some--model"
    shutil.copytree(qwen, folder)
    LAYOUTS[layout](folder)
    expected = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    if hub:
        hub_cache(folder)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("0" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    path = "some/model" if hub else str(folder)
    experiment = fedloom.Experiment(name="x", data={"name": "emoji"}, model={"path": path, "pixels": pixels})
    vlm = load_model(experiment.model, 0)
    files = processor_files(vlm, experiment)
    assert files.keys() - {"preprocessor_config.json"} == expected - {"preprocessor_config.json"}
    out = tmp_path / "out"
    out.mkdir()
    for name, value in files.items():
        write_atomic(out / name, value)
    assert AutoImageProcessor.from_pretrained(out).to_dict() == vlm.processor.image_processor.to_dict()
