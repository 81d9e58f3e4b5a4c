"""Our prompts are those of transformers' own processors, for every family whose processor can be made here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from tests.shares import each_once

from fedloom.models.batches import encode
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import load_vlm
from fedloom.types import Conversation

from .tiny import Drawn, save

PLAIN = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1, "patch_size": 8}
SHAPES = {"square": Drawn("a"), "wide": Drawn("b", 16, 40)}


class AnyVideoProcessor:
    """Stands for a class that transformers cannot name without torchvision; never asked for a video."""

    model_input_names: list[str] = []
    merge_size = temporal_patch_size = 2


NO_VIDEO = {"video_processor": AnyVideoProcessor()}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": ("LlavaProcessor", PLAIN),
    "vipllava": ("LlavaProcessor", PLAIN),
    "fast_vlm": (
        "LlavaProcessor",
        {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0, "patch_size": 4},
    ),
    "mistral3": ("PixtralProcessor", {"patch_size": 4, "spatial_merge_size": 2}),
    "llava_next": ("LlavaNextProcessor", PLAIN),
    "llava_onevision": (
        "LlavaOnevisionProcessor",
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_1", **NO_VIDEO},
    ),
    "idefics3": ("Idefics3Processor", {"image_seq_len": 4}),
    "idefics2": ("Idefics2Processor", {"image_seq_len": 3}),
    "aya_vision": ("AyaVisionProcessor", {"patch_size": 4, "img_size": 16, "downsample_factor": 2}),
    "ovis2": ("Ovis2Processor", {"image_seq_length": 4}),
    "granite4_vision": (
        "Granite4VisionProcessor",
        {"patch_size": 4, "vision_feature_select_strategy": "full", "downsample_rate": "1/2"},
    ),
    "gemma4": ("Gemma4Processor", NO_VIDEO),
    "internvl": ("InternVLProcessor", {"image_seq_length": 4, **NO_VIDEO}),
    "qwen2_vl": ("Qwen2VLProcessor", NO_VIDEO),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", NO_VIDEO),
    "qwen3_vl": ("Qwen3VLProcessor", NO_VIDEO),
    "qwen3_vl_moe": ("Qwen3VLProcessor", NO_VIDEO),
    "glm4v": ("Glm4vProcessor", NO_VIDEO),
    "glm46v": ("Glm46VProcessor", NO_VIDEO),
    "paligemma": ("PaliGemmaProcessor", {}),
    "gemma3": ("Gemma3Processor", {"image_seq_length": 4}),
    "janus": ("JanusProcessor", {"num_image_tokens": 4}),
    "mllama": ("MllamaProcessor", {}),
    "chameleon": ("ChameleonProcessor", {"image_seq_length": 16}),
    "emu3": ("Emu3Processor", {}),
}  # fmt: skip
# SmolVLM's processor needs num2words and writes what Idefics3's writes; Fuyu's takes away the first image token
# unless the tokenizer puts a space before it.
LEFT_OUT = {"smolvlm", "fuyu"}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Make a stock processor, also one with a place for videos, which needs torchvision otherwise."""
    module = transformers.processing_utils.transformers_module
    monkeypatch.setattr(module, "VideoProcessorMixin", AnyVideoProcessor, raising=False)

    def make(name: str, words: Any, images: Any) -> Any:
        kind, choices = PROCESSORS[name]
        images.image_seq_length = 4  # read by PaliGemma's
        if name == "mistral3":  # it asks for torchvision's image processor, of which it uses nothing here
            from transformers.models.pixtral import image_processing_pil_pixtral as stand_in

            monkeypatch.setitem(sys.modules, "transformers.models.pixtral.image_processing_pixtral", stand_in)
            from transformers.models.pixtral.processing_pixtral import PixtralProcessor

            return PixtralProcessor(image_processor=images, tokenizer=words, **choices)
        if name == "gemma4":  # it asks for what reads sounds too
            choices = {"feature_extractor": transformers.Gemma4AudioFeatureExtractor(), **choices}
        return getattr(transformers, kind)(image_processor=images, tokenizer=words, **choices)

    return make


@pytest.mark.parametrize(("name", "shape"), each_once(PROCESSORS, tuple(SHAPES)))
def test_the_prompt_is_the_stock_processors(
    made: Callable[..., Any], saved: Callable[[str], Path], name: str, shape: str
) -> None:
    vlm, image = load_vlm(str(saved(name))), SHAPES[shape]
    ours = list(encode(vlm, Conversation("Which is it?", "", image), []).prompt)
    processor = made(name, vlm.tokenizer, vlm.processor.image_processor)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which is it?"}]}]
    text = vlm.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    if vlm.tokenizer.chat_template is None:
        text = "Which is it?"  # PaliGemma's processor puts the image before it
    more = {"return_for_text_completion": True} if name == "chameleon" else {}
    pixels = Image.fromarray(image.pixels()) if name == "idefics2" else image.pixels()
    theirs = processor(text=[text], images=[[pixels]], return_tensors="pt", **more)["input_ids"][0].tolist()
    begin = vlm.tokenizer.bos_token_id
    if theirs[0] != begin and ours[0] == begin:
        theirs = [begin, *theirs]  # a byte tokenizer adds none by itself
    assert ours == theirs


def test_images_that_touch_share_a_mark(made: Callable[..., Any], tmp_path: Path) -> None:
    """Idefics2 writes one mark between two images, and a space between an image and a word."""
    vlm, images = load_vlm(str(save("idefics2", tmp_path))), (Drawn("a"), Drawn("b", 16, 40), Drawn("c"))
    asked = Conversation("Is it?", "", images[0], more=images[1:], places=(0, 0, 3))
    ours = list(encode(vlm, asked, []).prompt)
    processor = made("idefics2", vlm.tokenizer, vlm.processor.image_processor)
    text = "<user><image><image>Is <image>it?<end><assistant>"
    pixels = [[Image.fromarray(one.pixels()) for one in images]]
    theirs = processor(text=[text], images=pixels, return_tensors="pt")["input_ids"][0].tolist()
    assert ours == [vlm.tokenizer.bos_token_id, *theirs]


def test_every_family_is_compared_or_left_out() -> None:
    """Language models without images have no processor but their tokenizer."""
    assert set(PROCESSORS) | LEFT_OUT == {name for name, row in FAMILIES.items() if row.images}
