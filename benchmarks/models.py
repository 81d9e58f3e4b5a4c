"""Small random vision-language models of stated widths, and conversations of stated lengths.

The classes are those of transformers and the tokenizer is the bundled model's, so a benchmark runs the
code that a user's run does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import BUNDLED, Processor, Vlm
from fedloom.system.garbage_collection import without_garbage_collection
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategies import LoRA, stage
from fedloom.types import Conversation

WORD = " cat"


@dataclass(frozen=True)
class Size:
    """A language model of `layers` × `width` behind a tower of `tower_layers` × `tower_width`.

    The vocabulary is that of the bundled tokenizer. Zeros mean heads of width 64, as many key heads as heads, and an inner
    width of three times the width.
    """

    width: int = 256
    layers: int = 6
    vocabulary: int = 6144
    heads: int = 0
    key_heads: int = 0
    inner: int = 0
    tower_width: int = 32
    tower_layers: int = 1
    image: int = 64
    patch: int = 16

    @property
    def image_tokens(self) -> int:
        """The number of tokens of an image."""
        return (self.image // self.patch) ** 2


TINY = Size(width=64, layers=4)
SMALL = Size(width=256, layers=6)


@without_garbage_collection()
def random_model(size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Build a LLaVA of a size with random weights on a device, frozen, in evaluation mode."""
    from transformers import (
        AutoConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    bundled: Any = AutoConfig.from_pretrained(BUNDLED["bundled"])
    heads = size.heads or max(1, size.width // 64)
    vision = SiglipVisionConfig(
        hidden_size=size.tower_width,
        intermediate_size=4 * size.tower_width,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=max(1, size.tower_width // 64),
        image_size=size.image,
        patch_size=size.patch,
        vision_use_head=False,
    )
    text = LlamaConfig(
        hidden_size=size.width,
        intermediate_size=size.inner or 3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=size.key_heads or heads,
        head_dim=size.width // heads,
        vocab_size=size.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=bundled.image_token_id,
        image_seq_length=size.image_tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(dtype)  # so that no float32 copy is made on the way
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False).eval()


def random_vlm(size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Vlm:
    """Wrap a random model as fedloom loads one."""
    from transformers import AutoImageProcessor, AutoTokenizer

    images = AutoImageProcessor.from_pretrained(BUNDLED["bundled"])
    images.size = {"height": size.image, "width": size.image}
    processor = Processor(AutoTokenizer.from_pretrained(BUNDLED["bundled"]), images, image="<image>")
    return Vlm("random", random_model(size, device, dtype), processor, FAMILIES["llava"], "random")


def tuned_model(size: Size, *, rank: int = 8) -> Tuned:
    """Insert adapters of a rank on all seven linear layers of every decoder layer, not all zero."""
    tuned = prepare(random_vlm(size), stage("lora", LoRA(rank=rank, alpha=2.0 * rank)), seed=0)
    generator = torch.Generator().manual_seed(1)
    tuned.start.flat.copy_(torch.randn(tuned.layout.size, generator=generator) * 0.02)
    tuned.write(tuned.start)
    return tuned


def conversation(vlm: Vlm, tokens: int, answer_tokens: int, which: int = 0, **more: Any) -> Conversation:
    """Build a conversation whose prompt and answer together have `tokens` tokens, end of sequence included.

    Args:
        vlm: The model, whose tokenizer counts the tokens.
        tokens: Length of the conversation, including an image's tokens.
        answer_tokens: Tokens of the answer, ≥ 2.
        which: Varies the text: conversations with different numbers differ in one token.
        more: An image, or options.
    """
    from fedloom.models.batches import encode

    names = ("dog", "sun", "car", "tree", "bird", "fish", "house", "hand", "moon", "ball", "red", "blue")
    first = names[which % len(names)] + WORD * (which // len(names) % 7)
    answer = WORD.strip() + WORD * (answer_tokens - 2)
    for extra in range(tokens):
        user = first + WORD * extra
        one = Conversation(user, answer, **more)
        encoded = encode(vlm, one, [answer])
        if len(encoded.prompt) + len(encoded.answers[0]) == tokens:
            if len(encoded.answers[0]) != answer_tokens:
                break
            return one
    raise ValueError(f"no text of {tokens} tokens with {answer_tokens} in the answer")
