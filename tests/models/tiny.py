"""A tiny random variant of every family: the real classes with a tiny configuration and a byte tokenizer.

Images are a few dozen pixels wide, so that tiles, windows and merged patches all occur.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    CLIPImageProcessor,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    FuyuConfig,
    FuyuForCausalLM,
    FuyuImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VImageProcessor,
    GotOcr2ImageProcessor,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2ImageProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PixtralImageProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipImageProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from fedloom.models.load_model import Vlm

BASE = ["<pad>", "<s>", "</s>", "<user>", "<assistant>", "<end>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{% for part in message['content'] %}"
    "{{ 'IMAGE' if part['type'] == 'image' else part['text'] }}{% endfor %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


FLAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A chat template of a plain language model: what a turn says is one text."""


def tokenizer(image: str, more: list[str], named: dict[str, str], template: str | None) -> Any:
    """Make a tokenizer of bytes and special tokens; with an image token if one is named."""
    names = [*BASE, *dict.fromkeys([*filter(None, [image]), *more])]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*names, *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="<end>", pad_token="<pad>",
        extra_special_tokens={**({"image_token": image} if image else {}), **named},
    )  # fmt: skip
    wrapped.chat_template = template
    return wrapped


Stock = Callable[[Any, torch.Tensor, int, dict[str, Any]], dict[str, Any]]
"""(model, ids [1, L], length of the prompt, what the image processor gave) → inputs of the stock model."""


def as_given(model: Any, ids: torch.Tensor, prompt: int, images: dict[str, Any]) -> dict[str, Any]:
    """Hand the stock model what the image processor returns, without what only its processor reads."""
    dropped = ("rows", "cols", "num_patches", "num_crops", "num_tiles", "grids")
    return {name: value for name, value in images.items() if name not in dropped}


def image_types(model: Any, ids: torch.Tensor, prompt: int, images: dict[str, Any]) -> dict[str, Any]:
    """Mark image tokens, as Qwen's processors do."""
    return {**images, "mm_token_type_ids": (ids == model.config.image_token_id).int()}


def gemma_types(model: Any, ids: torch.Tensor, prompt: int, images: dict[str, Any]) -> dict[str, Any]:
    """Mark image tokens, as Gemma 3's processor does."""
    given = as_given(model, ids, prompt, images)
    return {**given, "token_type_ids": (ids == model.config.image_token_id).int()}


def gemma4_types(model: Any, ids: torch.Tensor, prompt: int, images: dict[str, Any]) -> dict[str, Any]:
    """Mark image tokens, as Gemma 4's processor does."""
    given = {name: value for name, value in images.items() if name != "num_soft_tokens_per_image"}
    return {**given, "mm_token_type_ids": (ids == model.config.image_token_id).int()}


def suffix_types(model: Any, ids: torch.Tensor, prompt: int, images: dict[str, Any]) -> dict[str, Any]:
    """Mark what follows the prompt, as PaliGemma's processor does."""
    return {**images, "token_type_ids": (torch.arange(ids.shape[1]) >= prompt).int()[None]}


def crossed(model: Any, ids: torch.Tensor, prompt: int, images: dict[str, Any]) -> dict[str, Any]:
    """Say which tokens see which image, as Mllama's processor does."""
    if not images:
        return {}
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    ranges = get_cross_attention_token_mask(ids[0].tolist(), model.config.image_token_id)
    tiles = [[int(count) for count in images["aspect_ratio_mask"][0].sum(1)]]
    dense = convert_sparse_cross_attention_mask_to_dense([ranges], tiles, 4, ids.shape[1])
    return {**as_given(model, ids, prompt, images), "cross_attention_mask": torch.tensor(dense)}


def patched(model: Any, ids: torch.Tensor, prompt: int, images: dict[str, Any]) -> dict[str, Any]:
    """Cut images into patches, as Fuyu's processor does."""
    if not images:
        return {}
    processor, patches = FuyuImageProcessor(patch_size={"height": 8, "width": 8}), []
    padded = [one for nested in images["images"] for one in nested]
    heights, widths = (
        [int(torch.as_tensor(one).flatten()[0]) for one in images[f"image_unpadded_{side}"]]
        for side in ("heights", "widths")
    )
    for image, height, width in zip(padded, heights, widths, strict=True):
        cut = np.asarray(image)[:, : -(-height // 8) * 8, : -(-width // 8) * 8]
        patches.append(torch.as_tensor(processor.patchify_image(cut)))
    return {"pixel_values": torch.cat(patches)[None].float()}


@dataclass(frozen=True)
class Tiny:
    """How a family's tiny variant is made.

    Attributes:
        build: Vocabulary (token → id) and image token id → model.
        images: The image processor; None for a language model without images.
        image: The image token; "" for none.
        more: Further special tokens.
        named: Names of special tokens that processors ask for.
        shown: What the chat template writes for an image; None for families without a chat template.
        stock: How the stock model's inputs are made.
    """

    build: Callable[[dict[str, int], int], Any]
    images: Callable[[], Any] | None
    image: str = "<image>"
    more: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    shown: str | None = "<image>"
    stock: Stock = as_given


CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}


def text(vocabulary: dict[str, int], kind: str = "llama", **more: Any) -> dict[str, Any]:
    """Describe a tiny decoder."""
    return {
        "model_type": kind, "vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 5, "max_position_embeddings": 512, **more,
    }  # fmt: skip


def louder(model: Any, std: float, *parts: str) -> Any:
    """Draw matrices of some parts anew: those of a new model are so small that nothing of an image comes through."""
    for name, value in model.named_parameters():
        if value.dim() == 2 and any(part in name for part in parts):
            torch.nn.init.normal_(value, std=std)
    return model


def llava(vocabulary: dict[str, int], image: int) -> Any:
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIP, text_config=text(vocabulary), image_token_id=image)
    )


def vipllava(vocabulary: dict[str, int], image: int) -> Any:
    config = VipLlavaConfig(
        vision_config=CLIP, text_config=text(vocabulary), image_token_id=image, vision_feature_layer=[-2, 1]
    )
    return VipLlavaForConditionalGeneration(config)


def mistral3(vocabulary: dict[str, int], image: int) -> Any:
    vision = {**CLIP, "model_type": "pixtral", "image_size": 40, "patch_size": 4, "head_dim": 8}
    config = Mistral3Config(
        vision_config=vision, text_config=text(vocabulary, "mistral", head_dim=8), image_token_id=image,
        spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    return louder(Mistral3ForConditionalGeneration(config), 0.3, "multi_modal_projector")


EFFICIENTNET = {
    "model_type": "efficientnet", "width_coefficient": 1 / 80, "depth_coefficient": 1.0, "in_channels": [640, 640],
    "out_channels": [640, 1280], "kernel_sizes": [3, 5], "strides": [1, 2], "num_block_repeats": [1, 2],
    "expand_ratios": [1, 2], "hidden_dim": 16, "hidden_size": 16, "image_size": 16, "hidden_act": "relu6",
}  # fmt: skip


def fast_vlm(vocabulary: dict[str, int], image: int) -> Any:
    model = FastVlmForConditionalGeneration(
        FastVlmConfig(vision_config=EFFICIENTNET, text_config=text(vocabulary, "qwen2"), image_token_id=image)
    )
    with torch.no_grad():
        for name, value in model.named_buffers():  # a batch norm that has seen nothing does nothing
            if name.endswith(("running_mean", "running_var")):
                value.add_(torch.rand(value.shape) * 0.5)
        for name, value in model.named_parameters():  # small weights would let nothing of the image through
            if "vision_tower" in name and value.dim() == 4:
                torch.nn.init.kaiming_normal_(value)
            if "vision_tower" in name and value.dim() == 1 and name.endswith("weight"):
                value.fill_(1.0)
            if "multi_modal_projector" in name and value.dim() == 2:
                torch.nn.init.normal_(value, std=0.5)
    return model


PINPOINTS = [[16, 32], [32, 16], [32, 32]]


def llava_next(vocabulary: dict[str, int], image: int) -> Any:
    config = LlavaNextConfig(
        vision_config=CLIP, text_config=text(vocabulary), image_token_id=image, image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextForConditionalGeneration(config)


def llava_onevision(vocabulary: dict[str, int], image: int) -> Any:
    config = LlavaOnevisionConfig(
        vision_config=SIGLIP, text_config=text(vocabulary, "qwen2"), image_token_id=image,
        image_grid_pinpoints=PINPOINTS, vision_aspect_ratio="anyres_max_1",
    )  # fmt: skip
    return LlavaOnevisionForConditionalGeneration(config)


IDEFICS = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
ROWS = [f"<row_{row + 1}_col_{column + 1}>" for row in range(3) for column in range(3)]
EDGES = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *ROWS]


def idefics(kind: type, config: type) -> Callable[[dict[str, int], int], Any]:
    """Return a function that makes a tiny Idefics3 or SmolVLM."""

    def build(vocabulary: dict[str, int], image: int) -> Any:
        made = config(
            vision_config=IDEFICS, text_config=text(vocabulary), image_token_id=image, scale_factor=2,
            pad_token_id=0,
        )  # fmt: skip
        return kind(made)

    return build


def internvl(vocabulary: dict[str, int], image: int) -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [16, 16], "patch_size": [4, 4],
    }  # fmt: skip
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=text(vocabulary, "qwen2"), image_token_id=image)
    )


def aya_vision(vocabulary: dict[str, int], image: int) -> Any:
    config = AyaVisionConfig(
        vision_config={**SIGLIP, "patch_size": 4}, image_token_index=image, downsample_factor=2,
        text_config=text(vocabulary, "cohere2", logit_scale=0.5, sliding_window=8, layer_types=TWO_KINDS),
    )  # fmt: skip
    return AyaVisionForConditionalGeneration(config)


OVIS = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]


def ovis2(vocabulary: dict[str, int], image: int, **more: Any) -> Any:
    vision = {**IDEFICS, "hidden_stride": 2, "vocab_size": 24, "num_visual_indicator_tokens": 5, **more}
    config = Ovis2Config(
        vision_config=vision, text_config=text(vocabulary, "qwen2"), image_token_id=image, hidden_size=16,
        visual_indicator_token_ids=[vocabulary[mark] for mark in OVIS], vocab_size=len(vocabulary),
    )  # fmt: skip
    model = Ovis2ForConditionalGeneration(config)
    # Small weights would give every visual word the same probability.
    return louder(model, 1.0, "head_linear", "visual_embeddings_table")


def idefics2(vocabulary: dict[str, int], image: int) -> Any:
    perceiver = {
        "hidden_size": 16, "resampler_n_latents": 3, "resampler_depth": 2, "resampler_n_heads": 2,
        "resampler_head_dim": 8, "num_key_value_heads": 1,
    }  # fmt: skip
    config = Idefics2Config(
        vision_config=IDEFICS, perceiver_config=perceiver, image_token_id=image, pad_token_id=0,
        text_config=text(vocabulary, "mistral", head_dim=8),
    )  # fmt: skip
    return louder(Idefics2ForConditionalGeneration(config), 0.5, "model.connector")


def granite4_vision(vocabulary: dict[str, int], image: int) -> Any:
    vision = {**SIGLIP, "hidden_size": 64, "patch_size": 4, "num_attention_heads": 2}
    config = Granite4VisionConfig(
        vision_config=vision, image_token_index=image, image_grid_pinpoints=PINPOINTS, downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [1, 2]], spatial_vision_layer=-2, spatial_target_layers=[1, 2, 3, 4],
        vision_feature_select_strategy="full",
        qformer_config={"num_hidden_layers": 1, "intermediate_size": 24, "cross_attention_frequency": 1,
                        "use_qformer_text_input": False},
        text_config=text(vocabulary, "granite4_vision_text", num_hidden_layers=6, embedding_multiplier=2.0,
                         logits_scaling=3.0),
    )  # fmt: skip
    return louder(Granite4VisionForConditionalGeneration(config), 0.2, "_projectors")


ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN = {"image": "<|image_pad|>", "more": ["<|vision_start|>", "<|vision_end|>", "<|video_pad|>"],
        "shown": "<|vision_start|><|image_pad|><|vision_end|>", "stock": image_types}  # fmt: skip


def qwen(
    kind: type, config: type, vision: dict[str, Any], which: str, **more: Any
) -> Callable[[dict[str, int], int], Any]:
    def build(vocabulary: dict[str, int], image: int) -> Any:
        marks = {f"{name}_token_id": vocabulary[f"<|{name}|>"] for name in ("vision_start", "vision_end")}
        return kind(
            config(
                vision_config=vision, image_token_id=image, video_token_id=vocabulary["<|video_pad|>"], **marks,
                text_config=text(vocabulary, which, rope_parameters=ROPE, head_dim=8, **more),
            )
        )  # fmt: skip

    return build


GLM = {
    "image": "<|image|>", "more": [f"<|{edge}_of_{what}|>" for what in ("image", "video") for edge in ("begin", "end")],
    "shown": "<|begin_of_image|><|image|><|end_of_image|>", "stock": image_types,
}  # fmt: skip


def glm(kind: type, config: type) -> Callable[[dict[str, int], int], Any]:
    def build(vocabulary: dict[str, int], image: int) -> Any:
        marks = {
            f"{what}_{name}_token_id": vocabulary[f"<|{edge}_of_{what}|>"]
            for what in ("image", "video")
            for name, edge in (("start", "begin"), ("end", "end"))
        }
        vision = {
            "model_type": "glm4v_vision", "depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "image_size": 16,
            "out_hidden_size": 16, "intermediate_size": 24,
        }  # fmt: skip
        decoder = text(
            vocabulary, "glm4v_text", rope_parameters={**ROPE, "partial_rotary_factor": 1.0}, head_dim=8
        )
        return kind(
            config(vision_config=vision, text_config=decoder, image_token_id=image, video_token_id=0, **marks)
        )

    return build


def paligemma(vocabulary: dict[str, int], image: int) -> Any:
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config={**SIGLIP, "projection_dim": 16}, image_token_id=image, projection_dim=16,
            text_config=text(vocabulary, "gemma", head_dim=8),
        )
    )  # fmt: skip


def gemma3(vocabulary: dict[str, int], image: int) -> Any:
    decoder = text(vocabulary, "gemma3_text", head_dim=8, sliding_window=8, query_pre_attn_scalar=8,
                   layer_types=["sliding_attention", "full_attention", "sliding_attention"])  # fmt: skip
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(vision_config={**SIGLIP, "image_size": 32}, text_config=decoder, image_token_id=image,
                     mm_tokens_per_image=4)
    )  # fmt: skip
    # Its projection starts at zero, which would hide what the encoder does.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    return model


def gemma4(vocabulary: dict[str, int], image: int, **more: Any) -> Any:
    decoder = text(
        vocabulary, "gemma4_text", num_hidden_layers=5, head_dim=8, global_head_dim=16, sliding_window=8,
        num_key_value_heads=1, final_logit_softcapping=0.5, vocab_size_per_layer_input=len(vocabulary),
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        **{"hidden_size_per_layer_input": 4, "num_kv_shared_layers": 2, **more},
    )  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 2, "patch_size": 2, "pooling_kernel_size": 2, "position_embedding_size": 300,
    }  # fmt: skip
    audio = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 16,
             "subsampling_conv_channels": [4, 4]}  # fmt: skip
    marks = {f"{name}_token_id": vocabulary[f"<{name}>"] for name in ("boi", "eoi", "boa", "audio", "video")}
    model = Gemma4ForConditionalGeneration(
        Gemma4Config(vision_config=vision, text_config=decoder, audio_config=audio, image_token_id=image,
                     eoa_token_index=vocabulary["<eoa>"], **marks)
    )  # fmt: skip
    for name, value in model.named_parameters():  # small weights would let nothing of the image through
        if "embed_vision" in name or ("per_layer" in name and value.dim() == 2):
            torch.nn.init.normal_(value, std=0.5)
    return model


def janus(vocabulary: dict[str, int], image: int) -> Any:
    vision = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
        "projection_dim": 16, "mlp_ratio": 2.0, "num_image_tokens": 4,
    }  # fmt: skip
    vq = {
        "embed_dim": 4, "num_embeddings": CODES, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1],
        "num_res_blocks": 1, "num_patches": 2, "projection_dim": 16, "image_token_embed_dim": 16,
    }  # fmt: skip
    return JanusForConditionalGeneration(
        JanusConfig(vision_config=vision, vq_config=vq, text_config=text(vocabulary), image_token_id=image)
    )


def mllama(vocabulary: dict[str, int], image: int) -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_global_layers": 1,
        "attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_output_dim": 32, "max_num_tiles": 4,
        "intermediate_layers_indices": [0],
    }  # fmt: skip
    decoder = text(
        vocabulary, "mllama_text_model", cross_attention_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=decoder, image_token_index=image)
    )
    with torch.no_grad():  # gates start at zero, which would hide the image
        for name, value in model.named_parameters():
            if "gate" in name and value.numel() == 1:
                value.fill_(0.7)
    return model


def fuyu(vocabulary: dict[str, int], image: int) -> Any:
    decoder = text(vocabulary, "persimmon")
    return FuyuForCausalLM(FuyuConfig(text_config=decoder, image_token_id=image, patch_size=8, image_size=16))


CODES = 16


def chameleon(vocabulary: dict[str, int], image: int) -> Any:
    vq = {
        "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8, "resolution": 16, "base_channels": 32,
        "channel_multiplier": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [],
    }  # fmt: skip
    decoder = text(vocabulary)
    decoder.pop("model_type")
    return ChameleonForConditionalGeneration(
        ChameleonConfig(**decoder, vq_config=vq, vocabulary_map=vocabulary)
    )


def emu3(vocabulary: dict[str, int], image: int) -> Any:
    vq = {
        "codebook_size": CODES, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "hidden_size": 32,
        "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "num_attention_heads": 1,
    }  # fmt: skip
    return Emu3ForConditionalGeneration(
        Emu3Config(vq_config=vq, text_config=text(vocabulary, "emu3_text_model"), vocabulary_map=vocabulary)
    )


def letters(code: int) -> str:
    """Write a number as Chameleon's vocabulary does: A for 0, B for 1, …"""
    return "".join(chr(ord("A") + int(digit)) for digit in str(code))


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
SMALL = {"height": 16, "width": 16}
VISION2 = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
VISION25 = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "out_hidden_size": 16,
    "window_size": 16, "fullatt_block_indexes": [1],
}  # fmt: skip
VISION3 = {
    "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "out_hidden_size": 16,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
}  # fmt: skip


def qwen_images() -> Any:
    return Qwen2VLImageProcessor(patch_size=4, min_pixels=64, max_pixels=40 * 40)


TINY: dict[str, Tiny] = {
    "llava": Tiny(llava, lambda: CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SMALL)),
    "fast_vlm": Tiny(
        fast_vlm, lambda: CLIPImageProcessor(size=SMALL, do_center_crop=False), more=["<|endoftext|>"]
    ),
    "vipllava": Tiny(vipllava, lambda: CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SMALL)),
    "mistral3": Tiny(
        mistral3, lambda: PixtralImageProcessor(size={"longest_edge": 40}, patch_size={"height": 4, "width": 4}),
        image="[IMG]", more=["[IMG_BREAK]", "[IMG_END]"], shown="[IMG]",
    ),
    "llava_next": Tiny(
        llava_next,
        lambda: LlavaNextImageProcessor(
            size={"shortest_edge": 16}, crop_size=SMALL, image_grid_pinpoints=PINPOINTS
        ),
    ),
    "llava_onevision": Tiny(
        llava_onevision, lambda: LlavaOnevisionImageProcessor(size=SMALL, image_grid_pinpoints=PINPOINTS)
    ),
    "idefics3": Tiny(
        idefics(Idefics3ForConditionalGeneration, Idefics3Config),
        lambda: Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        more=EDGES,
    ),
    "smolvlm": Tiny(
        idefics(SmolVLMForConditionalGeneration, SmolVLMConfig),
        lambda: SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        more=EDGES,
    ),
    "internvl": Tiny(
        internvl, lambda: GotOcr2ImageProcessor(size=SMALL, min_patches=1, max_patches=4),
        image="<IMG_CONTEXT>", more=["<img>", "</img>", "<video>"],
        named={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
               "video_token": "<video>"},
        shown="<IMG_CONTEXT>\n",
    ),
    "aya_vision": Tiny(
        aya_vision, lambda: GotOcr2ImageProcessor(size=SMALL, min_patches=1, max_patches=4),
        image="<|IMG_PATCH|>", more=["<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE", "TILE_GLOBAL"], shown="<image>",
    ),
    "ovis2": Tiny(
        ovis2, lambda: Ovis2ImageProcessor(size=SMALL, max_patches=4, crop_to_patches=True), image="<IMG_ATOM>",
        more=[*OVIS, "<|endoftext|>"],
    ),
    "idefics2": Tiny(
        idefics2,
        lambda: Idefics2ImageProcessor(size={"shortest_edge": 8, "longest_edge": 33}, do_image_splitting=True),
        more=["<fake_token_around_image>", "<end_of_utterance>"],
        named={"image_boundary_token": "<fake_token_around_image>"},
    ),
    "granite4_vision": Tiny(
        granite4_vision,
        lambda: LlavaNextImageProcessor(
            size={"shortest_edge": 16}, crop_size=SMALL, image_grid_pinpoints=PINPOINTS
        ),
    ),
    "qwen2_vl": Tiny(
        qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig, VISION2, "qwen2_vl_text"), qwen_images, **QWEN
    ),
    "qwen2_5_vl": Tiny(
        qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, VISION25, "qwen2_5_vl_text"), qwen_images,
        **QWEN,
    ),
    "qwen3_vl": Tiny(
        qwen(Qwen3VLForConditionalGeneration, Qwen3VLConfig, VISION3, "qwen3_vl_text"), qwen_images, **QWEN
    ),
    "qwen3_vl_moe": Tiny(
        qwen(Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig, VISION3, "qwen3_vl_moe_text", **EXPERTS),
        qwen_images, **QWEN,
    ),
    "glm4v": Tiny(
        glm(Glm4vForConditionalGeneration, Glm4vConfig),
        lambda: Glm4vImageProcessor(patch_size=4, size={"shortest_edge": 64, "longest_edge": 2 * 40 * 40}), **GLM,
    ),
    "glm46v": Tiny(
        glm(Glm46VForConditionalGeneration, Glm46VConfig),
        lambda: Glm46VImageProcessor(patch_size=4, size={"shortest_edge": 64, "longest_edge": 2 * 40 * 40}), **GLM,
    ),
    "paligemma": Tiny(paligemma, lambda: SiglipImageProcessor(size=SMALL), shown=None, stock=suffix_types),
    "gemma3": Tiny(
        gemma3, lambda: Gemma3ImageProcessor(size={"height": 32, "width": 32}), image="<image_soft_token>",
        more=["<start_of_image>", "<end_of_image>"],
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}, shown="<start_of_image>",
        stock=gemma_types,
    ),
    "gemma4": Tiny(
        gemma4, lambda: Gemma4ImageProcessor(patch_size=2, pooling_kernel_size=2, max_soft_tokens=70),
        image="<|image|>", more=["<boi>", "<eoi>", "<boa>", "<eoa>", "<audio>", "<video>", "<|video|>"],
        named={"boi_token": "<boi>", "eoi_token": "<eoi>", "boa_token": "<boa>", "eoa_token": "<eoa>",
               "audio_token": "<audio>"},
        shown="<|image|>", stock=gemma4_types,
    ),
    "janus": Tiny(
        janus, lambda: JanusImageProcessor(size=SMALL), image="<image_placeholder>",
        more=["<begin_of_image>", "<end_of_image>"],
        named={"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}, shown="<image_placeholder>\n",
    ),
    "mllama": Tiny(
        mllama, lambda: MllamaImageProcessor(size=SMALL, max_image_tiles=4), image="<|image|>",
        shown="<|image|>", stock=crossed,
    ),
    "fuyu": Tiny(
        fuyu, lambda: FuyuImageProcessor(size={"height": 32, "width": 32}, patch_size={"height": 8, "width": 8}),
        image="|SPEAKER|", more=["|NEWLINE|"], shown=None, stock=patched,
    ),
    "chameleon": Tiny(
        chameleon, lambda: ChameleonImageProcessor(size={"shortest_edge": 16}, crop_size=SMALL),
        more=["<racm3:break>", "<eoss>", *[f"IMGIMG{letters(code)}Z" for code in range(CODES)]],
        named={"boi_token": "<racm3:break>", "eoi_token": "<eoss>"},
    ),
    "emu3": Tiny(
        emu3, lambda: Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=32 * 32),
        more=["<boi>", "<eoi>", "<img>", "<eof>", "<|extra_200|>",
              *[f"<|visual token {code:06}|>" for code in range(CODES)]],
        named={"boi_token": "<boi>", "eoi_token": "<eoi>", "image_wrapper_token": "<img>", "eof_token": "<eof>"},
    ),
}  # fmt: skip


def decoder(kind: str, **more: Any) -> Callable[[dict[str, int], int], Any]:
    """Return a function that makes a tiny language model of a kind."""

    def build(vocabulary: dict[str, int], image: int) -> Any:
        wanted = text(vocabulary, kind, **more)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(wanted.pop("model_type"), **wanted))

    return build


TWO_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": TWO_KINDS}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {"sliding_window": 8}, "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma": {"head_dim": 8},
    "gemma2": {**GEMMA, "final_logit_softcapping": 0.2}, "gemma3_text": GEMMA, "phi": {}, "phi3": {"sliding_window": 8},
    "smollm3": {"no_rope_layers": [1, 0, 1]}, "olmo2": {}, "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "cohere2": {"logit_scale": 0.5, "sliding_window": 8, "layer_types": TWO_KINDS}, "starcoder2": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 8, "mlp_only_layers": [1]},
    "qwen3_moe": {**EXPERTS, "head_dim": 8}, "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
"""Language models by `model_type`, and what differs in their configuration."""

BARE = ("gemma", "phi", "starcoder2")
"""Those that are saved without a chat template, as models are that were never tuned to follow instructions."""

# transformers reads every tokenizer of a Qwen 2 as one that has this token.
PLAIN_WORDS = {"image": "", "more": ["<|endoftext|>"], "shown": None}
TINY.update({name: Tiny(decoder(name, **more), None, **PLAIN_WORDS) for name, more in DECODERS.items()})


def template_of(name: str) -> str | None:
    """Return the chat template of a family's tiny variant, or None where it has none."""
    shown = TINY[name].shown
    if TINY[name].images is None:
        return None if name in BARE else FLAT
    return TEMPLATE.replace("IMAGE", shown.replace("\n", "\\n")) if shown else None


def save(name: str, folder: Path) -> Path:
    """Write a family's tiny variant in the standard layout."""
    tiny = TINY[name]
    words = tokenizer(tiny.image, tiny.more, tiny.named, template_of(name))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny.build(words.get_vocab(), words.convert_tokens_to_ids(tiny.image) if tiny.image else -1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if tiny.images is not None:
        tiny.images().save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Drawn:
    """An image of random pixels."""

    key: str
    height: int = 20
    width: int = 20

    def pixels(self) -> np.ndarray:
        generator = np.random.default_rng(sum(self.key.encode()))
        return generator.integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)


def calm(vlm: Vlm) -> Vlm:
    """Return a model whose gradient does not turn when its weights are rounded, as that of the tiny Gemma 4 does.

    Gemma 4 leaves the scale of attention to the weights of two norms, which are ones in a new model, and the tiny one has
    inputs of each layer that are drawn 25 times as large. Rounding the weights alone, with float32 everywhere else, turns
    its gradient to a cosine of about .95.
    """
    for name, value in vlm.model.named_parameters():
        if vlm.model.config.model_type == "gemma4" and name.endswith(("q_norm.weight", "k_norm.weight")):
            value.data *= len(value) ** -0.5
        if vlm.model.config.model_type == "gemma4" and "per_layer_input_gate" in name:
            value.data /= 25
    return vlm
