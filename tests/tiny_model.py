"""A tiny random model in the standard layout, for tests and for the campaign of faults."""

from __future__ import annotations

from pathlib import Path

import torch


def make_tiny(folder: Path) -> Path:
    """Save a LLaVA of SigLIP and Llama with random weights, the same ones each time, and the bundled tokenizer."""
    from transformers import (
        AutoModelForImageTextToText,
        AutoProcessor,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    from fedloom.models.load_model import BUNDLED

    processor = AutoProcessor.from_pretrained(BUNDLED["bundled"])
    processor.image_processor.size = {"height": 64, "width": 64}
    processor.patch_size = 16
    bundled = AutoModelForImageTextToText.from_pretrained(BUNDLED["bundled"]).config
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=64, patch_size=16, vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=bundled.text_config.vocab_size, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=bundled.image_token_id, image_seq_length=16,
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_llama(folder: Path, template: str | None = None) -> Path:
    """Save a Llama with random weights, the same ones each time, and the bundled model's vocabulary.

    Args:
        folder: Where to.
        template: Its chat template; None keeps that of the bundled model.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from fedloom.models.load_model import BUNDLED

    words = AutoTokenizer.from_pretrained(BUNDLED["bundled"])
    words.chat_template = template or words.chat_template
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
