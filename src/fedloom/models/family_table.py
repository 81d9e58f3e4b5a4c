"""The model families: for each one, where its parts are and how an image becomes token embeddings."""

from __future__ import annotations

from fedloom.models import (
    encoder_free,
    gemma,
    image_bounds,
    mllama,
    ovis2,
    query_connectors,
    qwen_vl,
    text_only,
    vision_towers,
)
from fedloom.models.family_interface import Family
from fedloom.models.module_paths import Parts

__all__ = ["FAMILIES", "Family"]

_HEAD = ("model.language_model", "lm_head")
_LLAVA = Parts(("model.vision_tower",), ("model.multi_modal_projector",), _HEAD)
# The mark that ends a row of patches is an embedding of the language model, which no strategy trains.
_ANYRES = Parts(_LLAVA.encoder, _LLAVA.connector, (*_HEAD, "model.image_newline"))
_IDEFICS = Parts(("model.vision_model",), ("model.connector",), ("model.text_model", "lm_head"))
_QWEN = Parts(("model.visual",), ("model.visual.merger", "model.visual.deepstack_merger_list"), _HEAD)
_GLM = Parts(("model.visual",), ("model.visual.merger",), _HEAD)
_GENERATOR = tuple(
    f"model.{name}" for name in ("vqmodel", "generation_embeddings", "generation_aligner", "generation_head")
)
_OVIS = Parts(
    _LLAVA.encoder,
    ("model.vision_tower.head_linear", "model.vision_tower.head_norm", "model.visual_embeddings_table"),
    _HEAD,
)
_PROJECTOR, _SHUFFLED = "model.multi_modal_projector", "model.connector.modality_projection"

FAMILIES: dict[str, Family] = {
    "llava": Family(
        summary="LLaVA: vision encoder, MLP connector, decoder (the bundled model, LLaVA 1.5 and similar models)",
        parts=_LLAVA, encode=vision_towers.llava_encode, connect=vision_towers.project, swap=_PROJECTOR,
    ),
    "fast_vlm": Family(
        summary="FastVLM with an encoder from transformers, such as EfficientNet: as LLaVA, with convolutions",
        parts=_LLAVA, encode=vision_towers.last_map, connect=vision_towers.project, swap=_PROJECTOR,
    ),
    "vipllava": Family(
        summary="ViP-LLaVA: as LLaVA, with features of several layers of the encoder",
        parts=_LLAVA, encode=vision_towers.llava_encode, connect=vision_towers.project,
    ),
    "mistral3": Family(
        summary="Mistral Small 3.1 and 3.2: images of any size, four patches in one token, a mark after each row",
        parts=_LLAVA, encode=vision_towers.pixtral_encode, connect=vision_towers.pixtral_connect, spell=vision_towers.pixtral_spell,
        settings=vision_towers.whole_tokens, bound=image_bounds.by_edge,
    ),
    "llava_next": Family(
        summary="LLaVA-NeXT (1.6): as LLaVA, with tiles of larger images",
        parts=_ANYRES, encode=vision_towers.anyres_encode, connect=vision_towers.anyres_connect,
        spell=vision_towers.anyres_spell,
    ),
    "llava_onevision": Family(
        summary="LLaVA-OneVision: as LLaVA-NeXT, with a bound on image tokens",
        parts=_ANYRES, encode=vision_towers.anyres_encode, connect=vision_towers.anyres_connect,
        spell=vision_towers.anyres_spell,
    ),
    "granite4_vision": Family(
        summary="Granite 4 Vision: as LLaVA-NeXT, with features for several layers of the decoder",
        parts=Parts(
            _LLAVA.encoder, ("model.layerwise_projectors", "model.spatial_projectors"), _ANYRES.llm
        ),
        encode=query_connectors.granite4_encode, connect=query_connectors.granite4_connect, spell=query_connectors.granite4_spell,
        place=query_connectors.granite4_place, head=text_only.scaled_head,
    ),
    "idefics2": Family(
        summary="Idefics2: images of any size, read by learned queries",
        parts=_IDEFICS, encode=query_connectors.idefics2_encode, connect=query_connectors.idefics2_connect,
        spell=query_connectors.idefics2_spell, tidy=query_connectors.idefics2_tidy,
    ),
    "idefics3": Family(
        summary="Idefics3: tiles, four or more patches in one token",
        parts=_IDEFICS, encode=vision_towers.idefics_encode, connect=vision_towers.idefics_connect,
        spell=vision_towers.idefics_spell, settings=vision_towers.with_tile_counts, swap=_SHUFFLED,
    ),
    "smolvlm": Family(
        summary="SmolVLM: Idefics3 with a small decoder",
        parts=_IDEFICS, encode=vision_towers.idefics_encode, connect=vision_towers.idefics_connect,
        spell=vision_towers.idefics_spell, settings=vision_towers.with_tile_counts, swap=_SHUFFLED,
    ),
    "internvl": Family(
        summary="InternVL 2.5, 3 and 3.5 (their transformers checkpoints, named -hf): tiles, four patches in one token",
        parts=_LLAVA, encode=vision_towers.internvl_encode, connect=vision_towers.project,
        spell=vision_towers.internvl_spell, settings=vision_towers.with_tiles,
    ),
    "aya_vision": Family(
        summary="Aya Vision: tiles with their numbers, four patches in one token",
        parts=_LLAVA, encode=vision_towers.aya_encode, connect=vision_towers.aya_connect, spell=vision_towers.aya_spell,
        placeholder=vision_towers.aya_placeholder, settings=vision_towers.with_tiles,
    ),
    "ovis2": Family(
        summary="Ovis2: tiles become probabilities of visual words, with an embedding for each word",
        parts=_OVIS, encode=ovis2.ovis_encode, connect=ovis2.ovis_connect, spell=ovis2.ovis_spell,
        placeholder=ovis2.ovis_placeholder, place=ovis2.ovis_place,
    ),
    "qwen2_vl": Family(
        summary="Qwen2-VL: images of any size",
        parts=_QWEN, encode=qwen_vl.qwen_encode, connect=qwen_vl.qwen_connect, positions=qwen_vl.qwen_positions,
        bound=image_bounds.by_area,
    ),
    "qwen2_5_vl": Family(
        summary="Qwen2.5-VL: as Qwen2-VL, with windowed attention in the encoder",
        parts=_QWEN, encode=qwen_vl.windowed_encode, connect=qwen_vl.qwen_connect,
        positions=qwen_vl.qwen_positions,
        bound=image_bounds.by_area,
    ),
    "qwen3_vl": Family(
        summary="Qwen3-VL: as Qwen2-VL, with features of several layers of the encoder",
        parts=_QWEN, encode=qwen_vl.qwen_encode, connect=qwen_vl.qwen_connect, place=qwen_vl.deepstack_place,
        positions=qwen_vl.qwen_positions,
        bound=image_bounds.by_area,
    ),
    "qwen3_vl_moe": Family(
        summary="Qwen3-VL with a mixture of experts",
        parts=_QWEN, encode=qwen_vl.qwen_encode, connect=qwen_vl.qwen_connect, place=qwen_vl.deepstack_place,
        positions=qwen_vl.qwen_positions,
        bound=image_bounds.by_area,
    ),
    "glm4v": Family(
        summary="GLM-4.1V: images of any size; the encoder merges patches",
        parts=_GLM, encode=qwen_vl.glm_encode, connect=qwen_vl.glm_connect, positions=qwen_vl.qwen_positions,
        bound=image_bounds.by_area_of_frames,
    ),
    "glm46v": Family(
        summary="GLM-4.6V Flash: as GLM-4.1V",
        parts=_GLM, encode=qwen_vl.glm_encode, connect=qwen_vl.glm_connect, positions=qwen_vl.qwen_positions,
        bound=image_bounds.by_area_of_frames,
    ),
    "paligemma": Family(
        summary="PaliGemma 1 and 2: linear connector, bidirectional attention within the prompt",
        parts=_LLAVA, encode=vision_towers.last_states, connect=vision_towers.project, spell=vision_towers.paligemma_spell,
        blocks=vision_towers.prefix_block, across=True, head=vision_towers.capped_head,
        swap=_PROJECTOR,
    ),
    "gemma3": Family(
        summary="Gemma 3: pooled features, bidirectional attention within an image",
        parts=_LLAVA, encode=vision_towers.last_states, connect=vision_towers.project, spell=gemma.gemma_spell,
        placeholder=gemma.gemma_placeholder, blocks=gemma.gemma_blocks,
    ),
    "gemma4": Family(
        summary="Gemma 4: images of any size; the audio tower is frozen and not used",
        parts=Parts(
            ("model.vision_tower", "model.audio_tower", "model.embed_audio"), ("model.embed_vision",), _HEAD
        ),
        encode=gemma.gemma4_encode, connect=gemma.gemma4_connect, spell=gemma.gemma4_spell,
        place=gemma.gemma4_place, blocks=gemma.gemma4_blocks, near=True, head=vision_towers.capped_head,
    ),
    "janus": Family(
        summary="Janus and Janus-Pro: as LLaVA; the image generator is frozen and not used",
        parts=Parts(("model.vision_model", *_GENERATOR), ("model.aligner",), _HEAD),
        encode=vision_towers.janus_encode, connect=vision_towers.janus_connect, spell=vision_towers.janus_spell,
    ),
    "mllama": Family(
        summary="Mllama (Llama 3.2 Vision): layers of the decoder attend to the image",
        parts=Parts(("model.vision_model",), _LLAVA.connector, _HEAD),
        encode=mllama.crossed_encode, connect=vision_towers.project, spell=mllama.crossed_spell,
        place=mllama.crossed_place, later=mllama.crossed_later,
    ),
    "fuyu": Family(
        summary="Fuyu: no encoder, a linear layer embeds patches of pixels",
        parts=Parts((), ("model.vision_embed_tokens",), _HEAD),
        encode=encoder_free.fuyu_encode, connect=encoder_free.fuyu_connect, spell=encoder_free.fuyu_spell,
        swap="model.vision_embed_tokens",
    ),
    "chameleon": Family(
        summary="Chameleon: no encoder, images become tokens of the decoder",
        parts=Parts(
            ("model.vqmodel",), (), ("model.embed_tokens", "model.layers", "model.norm", "lm_head")
        ),
        encode=encoder_free.chameleon_encode, connect=encoder_free.embed_tokens, spell=encoder_free.chameleon_spell,
        head=encoder_free.chameleon_head,
    ),
    "emu3": Family(
        summary="Emu3: no encoder, images of any size become tokens of the decoder",
        parts=Parts(("model.vqmodel",), (), ("model.text_model", "lm_head")),
        encode=encoder_free.emu_encode, connect=encoder_free.embed_tokens, spell=encoder_free.emu_spell,
        bound=image_bounds.by_bounds,
    ),
    **dict.fromkeys(text_only.DECODERS, Family(
        summary="Language model without images: text only",
        parts=Parts((), (), ("model", "lm_head")), images=False,
        encode=text_only.no_features, connect=text_only.no_features, placeholder=text_only.no_placeholder,
        head=text_only.scaled_head,
    )),
}  # fmt: skip
"""`model_type` of the configuration → family. The frozen image tokenizer of Chameleon and Emu3 counts as an encoder;
these families have no connector."""
