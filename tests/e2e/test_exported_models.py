"""Exported models are those of the run in stock libraries too, or their cards show how they are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.tiny import CLIP, tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

import fedloom
from fedloom.runs.export_models import export_from_run
from fedloom.runs.finished_run import FinishedRun
from fedloom.system.errors import UserError

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


KINDS = {
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
    for option, choices in (("--merged", {"merged": True}), ("--with-base", {"with_base": True})):
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
