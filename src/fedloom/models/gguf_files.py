"""Read a language model from a GGUF file: Llama's tensors in full precision, and its tokenizer.

GGUF uses the names and the layout of llama.cpp. It permutes the rows of the query and key matrices, because
llama.cpp rotates neighboring values where transformers rotates the halves of a head; here the order is restored. Quantized
values are dequantized: Q4_1 stores a scale and a minimum for each block of 32 four-bit values.

Needs the package gguf (`pip install 'fedloom[models]'`). Nothing in a GGUF file is run.

Shape legend: H heads, D width of a head, E width of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.system.errors import UserError

EXTRA = "models"
"""The extra of this package that installs gguf."""

CONTROL = 3
"""The token type of control tokens in GGUF, which are not text."""

RENAMED = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""Names of tensors in GGUF, without layer and suffix → names in transformers."""

SINGLE_DIGITS = {"smollm": True, "gpt-2": False}
"""Value of `tokenizer.ggml.pre` → whether the pre-tokenizer separates the digits of a number."""


def read_llama(file: Path) -> tuple[Any, Any]:
    """Read a Llama with its tokenizer from a GGUF file.

    Args:
        file: Holds a model of architecture llama without biases and a byte-level tokenizer.

    Returns:
        A `LlamaForCausalLM` in float32, in evaluation mode, and a fast tokenizer with the file's chat template.

    Raises:
        UserError: gguf is not installed, or the file is damaged or holds something else.
    """
    gguf = gguf_library()
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        if fields.get("general.architecture") != "llama":
            raise UserError(
                f"{file} holds {fields.get('general.architecture')!r}; only llama is read from GGUF"
            )
        tensors = {
            tensor.name: torch.from_numpy(
                np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
            )
            for tensor in reader.tensors
        }
        return _model(fields, tensors), build_tokenizer(fields)
    except UserError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read as GGUF ({reason[:300]})") from error


def gguf_library() -> Any:
    """Return the package gguf.

    Raises:
        UserError: It is not installed.
    """
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"reading GGUF needs the package gguf: pip install 'fedloom[{EXTRA}]'") from error
    return gguf


def _model(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Build the model that the fields describe, with exactly these tensors."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    heads, groups = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    special: dict[str, Any] = {
        f"{name}_token_id": fields.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    config = LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=_shortest(fields["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(fields.get("llama.rope.freq_base", 10_000.0)),
        },
        tie_word_embeddings="output.weight" not in tensors,
        **special,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    weights = dict(_renamed(tensors, heads, groups))
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(
        config
    )  # its frequencies are no tensors of the file
    model.tie_weights()
    model.generation_config = GenerationConfig(**special)
    return model.requires_grad_(False).eval()


def _shortest(value: float) -> float:
    """Return the shortest decimal number that rounds to a float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _renamed(tensors: Mapping[str, Tensor], heads: int, groups: int) -> Iterator[tuple[str, Tensor]]:
    """Yield GGUF's tensors with the names and the order of rows of transformers."""
    for name, value in tensors.items():
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        key = layer[2] if layer else name.removesuffix(".weight")
        if key not in RENAMED:
            raise ValueError(f"the tensor {name[:80]} is unknown")
        rows = {"attn_q": heads, "attn_k": groups}.get(key)
        path = f"model.layers.{layer[1]}.{RENAMED[key]}" if layer else RENAMED[key]
        yield f"{path}.weight", value if rows is None else unpermuted(value, rows)


def unpermuted(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows [H · D, E] of a query or key matrix, from pairs of neighbors to halves of a head.

    Example:
        >>> halves(torch.tensor([[0], [2], [1], [3]]), 1).flatten().tolist()
        [0, 1, 2, 3]
    """
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def build_tokenizer(fields: Mapping[str, Any]) -> Any:
    """Build the byte-level tokenizer that the fields of a GGUF file describe.

    Raises:
        UserError: The tokenizer is of another kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in SINGLE_DIGITS:
        raise UserError(
            f"a GGUF tokenizer of kind {kind!r}, {split!r} is not supported; supported is gpt2 with {', '.join(SINGLE_DIGITS)}"
        )
    names, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, merges))
    pieces = [pre_tokenizers.Digits(individual_digits=True)] if SINGLE_DIGITS[split] else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *pieces,
            pre_tokenizers.ByteLevel(add_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix"))),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    marks = [name for name, type_ in zip(names, kinds, strict=True) if type_ == CONTROL]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in marks])
    special = {
        f"{name}_token": names[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.get("tokenizer.chat_template"),
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )
