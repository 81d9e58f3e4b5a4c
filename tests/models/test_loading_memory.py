"""The memory that loading a large checkpoint of 16 bits takes, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.models.tiny import FLAT, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from fedloom.system.memory import peak_bytes

SMALLEST = 500_000_000
"""Bytes of the checkpoint: large beside everything else that a process allocates while it loads a model."""

LOAD = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from fedloom.config.schema import Model
from fedloom.models.assemble_model import load_base
from fedloom.models.load_model import load_vlm, move_model
from fedloom.system.memory import forget_peak, peak_bytes, resident_bytes
large, small, precision = sys.argv[1:]
settings = lambda path: Model(path=path, precision=precision)
move_model(load_base(settings(small)), "cpu", precision)  # imports everything
forget_peak()
before = resident_bytes()
vlm = move_model(load_base(settings(large)), "cpu", precision)
print(json.dumps([peak_bytes() - before, sum(value.nbytes for value in vlm.model.parameters())]))
"""


def save(folder: Path, width: int, layers: int) -> int:
    """Save a Llama with few words in bfloat16; return the bytes of its weights."""
    words = tokenizer("", [], {}, FLAT)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=256, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    words.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not peak_bytes(), reason="the system does not report the peak of a process's memory")
def test_loading_takes_little_more_memory_than_the_file(tmp_path: Path) -> None:
    """In the precision of the file there is one copy of the weights; in float32 there is the file beside them."""
    save(tmp_path / "small", 64, 1)
    size = save(tmp_path / "large", 2048, 6)
    assert size >= SMALLEST

    def risen(precision: str) -> tuple[int, int]:
        folders = [str(tmp_path / name) for name in ("large", "small")]
        done = subprocess.run(
            [sys.executable, "-c", LOAD, *folders, precision], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        rise, held = json.loads(done.stdout.splitlines()[-1])
        return rise, held

    rise, held = risen("bfloat16")
    assert held < 1.01 * size
    assert rise <= 1.3 * size
    rise, held = risen("float32")  # the measurement sees copies: these are twice the file
    assert rise > 1.9 * size and held > 1.9 * size
