"""Build and train a small model without a vision encoder, which embeds patches of pixels linearly.

It is a Fuyu of stock transformers classes with the decoder that the stage `align` trained. Two tokens are added to its
vocabulary: one for a patch, one for the end of a row of patches. All of the model is trained, on the same
questions as the encoder-based model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, FuyuConfig, FuyuForCausalLM, FuyuImageProcessor, LlamaConfig

from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Processor, Vlm
from pretrain import align, language
from pretrain.fit import Budget, fit

PATCH, SIDE = 16, 64
IMAGE, LINE = "|SPEAKER|", "|NEWLINE|"


def assemble(work: Path) -> Vlm:
    """Combine an untrained embedding of patches with the trained decoder."""
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    tokenizer.init_kwargs.pop("processor_class", None)  # the one it came with is for a model with an encoder
    tokenizer._set_processor_class(None)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE, LINE]}, replace_extra_special_tokens=False
    )
    tokenizer.chat_template = language.TEMPLATE.replace("<image>", IMAGE)
    config = FuyuConfig(
        text_config=LlamaConfig(**{**language.CONFIG, "vocab_size": len(tokenizer)}),
        patch_size=PATCH,
        image_size=SIDE,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = FuyuForCausalLM(config)
    known = align.decoder(work)
    words = known.pop("embed_tokens.weight")
    model.model.language_model.load_state_dict(known, strict=False)
    with torch.no_grad():  # the new tokens start as the mean of the others
        embedded = model.get_input_embeddings().weight
        embedded.copy_(torch.cat((words, words.mean(0).expand(len(embedded) - len(words), -1))))
    images = FuyuImageProcessor(
        size={"height": SIDE, "width": SIDE}, patch_size={"height": PATCH, "width": PATCH}
    )
    model.requires_grad_(False).eval()
    return Vlm("free", model, Processor(tokenizer, images, image=IMAGE), FAMILIES["fuyu"], "")


def train(work: Path, minutes: float, steps: int = 9000) -> None:
    """Train until `steps` or `minutes` are used up."""
    vlm = assemble(work)
    fit(vlm, groups(vlm), align.batches(work), (work, "free"), Budget(minutes, steps), work / align.HEAD)


def groups(vlm: Vlm) -> list[dict]:
    """Return the groups of parameters: the embedding of patches learns faster than the decoder, which is trained already."""
    return [
        {"params": list(vlm.model.model.vision_embed_tokens.parameters()), "peak": 1.5e-3},
        {"params": list(vlm.model.model.language_model.parameters()), "peak": 8e-4},
    ]


def export(work: Path, folder: Path) -> None:
    """Write the model that `train` saved in the Hugging Face layout, in bfloat16."""
    vlm = assemble(work)
    vlm.model.load_state_dict(load_file(work / "free.safetensors"), strict=False)
    vlm.model.to(torch.bfloat16).save_pretrained(folder)
    vlm.tokenizer.save_pretrained(folder)
    vlm.processor.image_processor.save_pretrained(folder)
    print({file.name: file.stat().st_size for file in sorted(folder.iterdir())})
