"""Put encoder and decoder together: train connector and decoder on pictured questions, encoder frozen.

Questions ask for names, WordNet classes and hypernyms, words that go with a picture, and about drawn
scenes; the federated question (which of Unicode's groups?) is never asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from fedloom.client.evaluate import judge
from fedloom.data import load_data
from fedloom.data.shapes import MAKERS
from fedloom.measure import SLICES
from fedloom.models.families import FAMILIES
from fedloom.models.load import Vlm, load_vlm
from fedloom.seeds import stream, torch_stream
from fedloom.tasks import AGNOSTIC, TASKS
from fedloom.tasks.scoring import each
from fedloom.types import Conversation, Example, Presence
from pretrain import corpus, language, vision
from pretrain.fit import Budget, fit

BATCH = 48
SHARES = (0.19, 0.15, 0.08, 0.06, 0.06)
"""Of a batch, for each source of `corpus.pictured`; `SCENES` questions more are about drawn scenes, the rest, some thirteen, about words."""
SCENES = 8
LAYERS = [3, 6]
"""Which hidden states of the encoder the connector reads: edges and colors in the middle, kinds at the end."""


@dataclass(frozen=True)
class Shown:
    """An augmented picture, used once."""

    key: str
    array: NDArray[np.uint8]

    def pixels(self) -> NDArray[np.uint8]:
        return self.array


def assemble(work: Path) -> Vlm:
    """Join the trained encoder and decoder with a fresh connector."""
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision.CONFIG),
        text_config=LlamaConfig(**language.CONFIG),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=LAYERS,
        vision_feature_select_strategy="full",
        image_seq_length=16,
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.trained(work).state_dict())
    model.model.language_model.load_state_dict(language.trained(work).model.state_dict())
    images = SiglipImageProcessor(size={"height": 64, "width": 64}, resample=3)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=language.TEMPLATE,
    )
    with torch.no_grad():  # features of unit size, so that the connector starts where its activation bends
        sample = torch.cat([vision.unit(corpus.emoji().pixels[:64])])
        spread = FAMILIES["llava"].encode(model, {"pixel_values": sample}).std()
        model.model.multi_modal_projector.linear_1.weight.div_(spread)
    model.requires_grad_(False).eval()
    return Vlm("shipped", model, processor, FAMILIES["llava"], "")


def picture_questions(
    source: corpus.Pictured, meanings: corpus.Meanings, rng: np.random.Generator, index: int
) -> tuple[str, str, bool]:
    """Choose a question about one picture: (question, answer, whether the words may be shown as text)."""
    name, words = source.names[index], source.words[index]
    sense = meanings.head(name)
    kind = rng.random()
    if sense is not None and kind < 0.3:
        return "What class is it?", sense.lexname, True
    if sense is not None and kind < 0.5 and sense.hypernyms:
        return "What kind of thing is it?", ", ".join(sense.hypernyms[: int(rng.integers(1, 4))]), True
    if kind < 0.75 and name:
        return "What is its name?", name, bool(source.texts[index] != name)
    chosen = sorted(words[k] for k in rng.permutation(len(words))[:5])
    return "Which words go with it?", ", ".join(chosen) or name, False


def make_batch(
    sources: list[tuple[corpus.Pictured, float]],
    senses: tuple[list[corpus.Sense], NDArray[np.float64]],
    meanings: corpus.Meanings,
    step: int,
) -> list[Conversation]:
    """Draw one batch of conversations from pictures, drawn scenes and words."""
    rng, generator = stream(0, "align", step=step), torch_stream(0, "align", step=step)
    render: Callable[..., Conversation] = TASKS["vqa"].render
    batch: list[Conversation] = []
    for number, (source, share) in enumerate(sources):
        picks = rng.integers(len(source.kinds), size=round(share * BATCH))
        moved = vision.augment(vision.unit(source.pixels[picks]), generator)
        arrays = ((moved + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for place, index in enumerate(picks):
            question, answer, may_read = picture_questions(source, meanings, rng, int(index))
            seen = rng.random()
            present = Presence(seen < 0.75 or not may_read, may_read and seen > 0.4)
            picture = Shown(f"{step}/{number}/{place}", arrays[place])
            example = Example("", question, answer, picture, source.texts[index], task="vqa")
            clause = AGNOSTIC if rng.random() < 0.3 else None
            batch.append(render(example, present, clause=clause, answer_form="text"))
    kinds = list(MAKERS)
    for _ in range(SCENES):
        example = MAKERS[kinds[rng.integers(len(kinds))]](rng, "", "pretrain")
        clause = AGNOSTIC if rng.random() < 0.3 else None
        batch.append(render(example, Presence(True, False), clause=clause, answer_form="text"))
    while len(batch) < BATCH:
        sense = senses[0][min(int(np.searchsorted(senses[1], rng.random())), len(senses[0]) - 1)]
        batch.append(Conversation(*language.exercise(sense, rng)))
    return batch


def batches(work: Path) -> Callable[[int], list[Conversation]]:
    """Gather all sources and return the batch of each step."""
    words = corpus.wordnet()
    weight = np.array(
        [(s.count + 0.3) ** 0.6 * (1.0 if s.lexname in corpus.NOUN_CLASSES else 0.35) for s in words]
    )
    senses, meanings = (words, np.cumsum(weight / weight.sum())), corpus.Meanings(words)
    sources = list(zip(corpus.pictured(work), SHARES, strict=True))
    return lambda step: make_batch(sources, senses, meanings, step)


def train(work: Path, minutes: float, steps: int = 6000) -> None:
    """Train connector and decoder until `steps` or `minutes` are used up."""
    vlm = assemble(work)
    groups = [
        {"params": list(vlm.model.model.multi_modal_projector.parameters()), "peak": 1.5e-3},
        {"params": list(vlm.model.model.language_model.parameters()), "peak": 8e-4},
    ]
    fit(vlm, groups, batches(work), (work, "align"), Budget(minutes, steps))


def export(work: Path, folder: Path) -> None:
    """Write what `train` kept to a folder in the standard layout, in bfloat16."""
    vlm = assemble(work)
    vlm.model.load_state_dict(load_file(work / "align.safetensors"), strict=False)
    vlm.model.to(torch.bfloat16).save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    print({file.name: file.stat().st_size for file in sorted(folder.iterdir())})


@dataclass(frozen=True)
class Settings:
    """What the loaders and the judge read."""

    name: str
    task: str = "classification"
    root: None = None
    test_share: float = 0.5
    validation: float = 0.0
    limit: int | None = None
    max_rejected: float = 0.0
    answer: str = "text"
    scoring: str = "likelihood"


def score(model: str) -> None:
    """Print a model's zero-shot accuracy by question type beside the most frequent answer's share."""
    vlm = load_vlm(model)
    print(
        "| question | evidence | examples | most frequent answer | zero-shot |\n| --- | --- | --- | --- | --- |"
    )
    emoji = load_data(Settings("emoji"), 0)
    for name in SLICES:
        _row(vlm, "which of Unicode's eight groups (federated emoji)", name, [*emoji.train, *emoji.test])
    digits = load_data(Settings("digits"), 0)
    _row(vlm, "which digit is shown", "image", digits.test)
    for task in ("classification", "vqa", "captioning", "grounding"):
        found = load_data(Settings("shapes", task, limit=300), 0).test
        kinds = sorted({example.group or "" for example in found}) if task == "vqa" else [None]
        for kind in kinds:
            some = [example for example in found if kind is None or example.group == kind]
            _row(vlm, f"drawn scenes: {task}{f', {kind}' if kind else ''}", "image", some)


def _row(vlm: Vlm, title: str, name: str, examples: Sequence[Example]) -> None:
    judged = judge(vlm, examples, [SLICES[name]] * len(examples), Settings(""))
    accuracy = float(each(examples, judged, headline=False).mean())
    prior = Counter(example.answer for example in examples).most_common(1)[0][1] / len(examples)
    print(f"| {title} | {name} | {len(examples)} | {prior:.3f} | {accuracy:.3f} |", flush=True)
