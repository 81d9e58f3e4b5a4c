"""Write the table of docs/gpu.md: the memory that training takes on a GPU, computed from the shapes of models.

    python scripts/gpu_memory_table.py

Models are built without values from their published shapes. `tests/models/test_gpu_memory_table.py` compares what is
computed for the forward pass with the tensors that autograd keeps for the same widths and fewer layers.

Shape legend: B examples of a pass, L tokens of each, T = B · L, D width, F width of the feed-forward part, H heads of width d, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fedloom.models.empty_model import weight_bytes
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm
from fedloom.tuning.adapters import trained_shapes
from fedloom.tuning.strategies import LoRA, stage

PAGE = Path(__file__).parent.parent / "docs/gpu.md"
BEGIN, END = "<!-- table of scripts/gpu_memory_table.py -->", "<!-- end of the table -->"
GPUS, BATCHES, TOKENS = (16, 24, 48, 80), (1, 2, 4, 8), (1024, 2048)
ANSWER = 32
"""Tokens of an answer."""
WIDTH = 2
"""Bytes of a value in bfloat16."""
CONTEXT = 10**9
"""Bytes for what CUDA itself takes and for fragments of memory; assumed, not measured."""
LORA = LoRA(rank=8)

QWEN = {
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
TOWER = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "LLaVA-1.5-7B": {"family": "llava", "layers": 32, "text": {"vocab_size": 32064}},
    "Qwen2.5-VL-3B": {
        "family": "qwen2_5_vl", "layers": 36, "vision": {"out_hidden_size": 2048, **TOWER},
        "text": {"hidden_size": 2048, "intermediate_size": 11008, **QWEN},
    },
    "Qwen2.5-VL-7B": {
        "family": "qwen2_5_vl", "layers": 28, "vision": {"out_hidden_size": 3584, **TOWER},
        "text": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
                 "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    },
    "SmolLM2-135M": {
        "family": "llama", "layers": 30,
        "text": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
                 "vocab_size": 49152, "tie_word_embeddings": True},
    },
}  # fmt: skip
"""Shapes as in the published config.json of each model; what is left out is the default of transformers."""


def build(name: str, layers: int | None = None) -> Vlm:
    """Return a model without values, with its own number of layers or another one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    shape = SHAPES[name]
    text = {**shape["text"], "num_hidden_layers": layers or shape["layers"]}
    if shape["family"] == "llama":
        config, kind = AutoConfig.for_model("llama", **text), AutoModelForCausalLM
    else:
        default = AutoConfig.for_model(shape["family"])
        text = {**default.text_config.to_dict(), "layer_types": None, **text}
        vision = {**default.vision_config.to_dict(), **shape.get("vision", {})}
        config = AutoConfig.for_model(shape["family"], text_config=text, vision_config=vision)
        config.tie_word_embeddings = text.get("tie_word_embeddings", False)
        kind = AutoModelForImageTextToText
    with torch.device("meta"):
        model = kind.from_config(config, dtype=torch.bfloat16)
    model.requires_grad_(False).eval()
    return Vlm(name, model, SimpleNamespace(tokenizer=None), FAMILIES[shape["family"]], "")


@dataclass(frozen=True)
class Sizes:
    """What the forward pass keeps for its backward pass in bfloat16, for each token if nothing else is said.

    Attributes:
        layer: Bytes of a layer.
        last: Bytes of the last layer, whose feed-forward part is computed at answers only.
        end: Bytes of the norm behind the last layer.
        state: Bytes of a layer's input.
        layers: The number of layers.
        adapters: Bytes of all adapters in bfloat16, once.
    """

    layer: int
    last: int
    end: int
    state: int
    layers: int
    adapters: int

    def kept(self, batch: int, length: int, *, recompute: bool) -> int:
        """Return the bytes of B examples of L tokens; every layer keeps a mask of attention, [B, L, L]."""
        tokens, mask = batch * length, WIDTH * batch * length * length
        one = self.layer * tokens + mask
        last = (self.last + self.end) * tokens + mask + self.adapters
        if recompute:  # the inputs of layers, and one that is computed again
            return (self.layers - 1) * self.state * tokens + last + mask
        return (self.layers - 1) * one + last

    def again(self, batch: int, length: int) -> int:
        """Return the bytes of the one layer that the backward pass computes again."""
        return self.layer * batch * length


def sizes_of(vlm: Vlm) -> Sizes:
    """Return the sizes of a decoder with Llama's layers and adapters in all of their linear layers."""
    config = vlm.model.config.get_text_config()
    d, f, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    inner = heads * (getattr(config, "head_dim", None) or d // heads)
    norm = 4 * d + 4  # its input and its scale, in float32
    # Queries, keys and values, repeated for all heads, and the output; the logarithm of each sum in float32.
    attention = WIDTH * 4 * inner + 4 * heads
    seen = WIDTH * d  # the input of several linear layers, once
    low = WIDTH * LORA.rank
    layer = 2 * (norm + seen) + attention + WIDTH * 4 * f + 7 * low
    last = 2 * norm + seen + attention + 2 * low
    return Sizes(layer, last, norm, seen, config.num_hidden_layers, WIDTH * adapter_values(vlm))


def adapter_values(vlm: Vlm) -> int:
    """Return the number of values of all adapters."""
    shapes, _ = trained_shapes(vlm, stage("lora", LORA))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def total(vlm: Vlm, batch: int, length: int, *, quantize: str | None, recompute: bool) -> int:
    """Return the bytes of a step: weights, adapters with gradients and AdamW, what is kept, and the largest temporary values."""
    sizes, config = sizes_of(vlm), vlm.model.config.get_text_config()
    weights = sum(weight_bytes(vlm, "bfloat16", quantize).values())
    trained = 4 * 4 * adapter_values(vlm)  # values, gradients and two means of AdamW, in float32
    # The head's logits in float32, their logarithms and their gradient; two gradients of the feed-forward part.
    head = 3 * 4 * batch * ANSWER * config.vocab_size
    below = 2 * WIDTH * batch * length * config.intermediate_size
    below += sizes.again(batch, length) if recompute else 0
    # A layer's weights, computed from few bits.
    largest = WIDTH * config.intermediate_size * config.hidden_size if quantize else 0
    kept = sizes.kept(batch, length, recompute=recompute)
    return weights + trained + kept + max(head, below) + largest + CONTEXT


def table() -> Iterator[str]:
    """Yield the lines of the table."""
    yield (
        "| model | weights | tokens | recompute | "
        + " | ".join(f"B = {batch}" for batch in BATCHES)
        + " | "
        + (" | ".join(f"{gpu} GB" for gpu in GPUS) + " |")
    )
    yield "| --- | --- | ---: | --- | " + " | ".join(["---:"] * (len(BATCHES) + len(GPUS))) + " |"
    for name in SHAPES:
        vlm = build(name)
        for quantize in (None, "nf4"):
            for length in TOKENS:
                for recompute in (False, True):
                    need = {
                        batch: total(vlm, batch, length, quantize=quantize, recompute=recompute)
                        for batch in range(1, max(BATCHES) + 1)
                    }
                    sizes = [f"{need[batch] / 1e9:.1f}" for batch in BATCHES]
                    most = [max((b for b in need if need[b] <= gpu * 1e9), default=0) for gpu in GPUS]
                    fits = [str(count) if count else "–" for count in most]
                    cells = [name, quantize or "bfloat16", f"{length:,}", "always" if recompute else "never"]
                    yield f"| {' | '.join([*cells, *sizes, *fits])} |"


def main() -> None:
    """Write the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(table()) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
