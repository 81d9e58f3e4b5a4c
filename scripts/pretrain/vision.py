"""Train the vision encoder from scratch: what is it, which words belong to it, what do its patches look like.

Five losses on one ViT: kind (emoji subgroup, clip-art folder, icon set; cross-entropy), class (WordNet's, of the
name, where it has one; cross-entropy), words (binary cross-entropy), shape / color / size of the object in each patch of a drawn scene (cross-entropy), and for
every patch its colors and edge directions (regression; the target of MaskFeat, Wei et al., arXiv
2112.09133, without masking).

Shape legend: B pictures, T = 16 patches, D = hidden size.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from fedloom.data.shapes import COLORS, SHAPES, SIZES, Scene, draw_scene
from fedloom.seeds import stream, torch_stream
from pretrain import corpus

CONFIG = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "image_size": 64,
    "patch_size": 16,
    "vision_use_head": False,
}
GRID = 4
CLASSES = sorted(corpus.NOUN_CLASSES)
BATCH = (22, 22, 10, 6, 12)
"""Pictures of each source of `corpus.pictured` in a step."""
SCENES = 8
UNKNOWN = -100
"""The class of what has none; cross-entropy leaves it out."""


def build() -> SiglipVisionModel:
    """Make the encoder with its own named initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SiglipVisionModel(SiglipVisionConfig(**CONFIG))


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shift, flip, recolor, add noise and cut out; in and out [B, 3, 64, 64] in −1…1."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.35, 0.35), uniform(0.85, 1.35)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [
            torch.stack([cos * flip, -sin, uniform(-0.2, 0.2)], 1),
            torch.stack([sin * flip, cos, uniform(-0.2, 0.2)], 1),
        ],
        1,
    )
    moved = F.grid_sample(
        pixels,
        F.affine_grid(theta, list(pixels.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    gain, bias = uniform(0.75, 1.15, 3, 1, 1), uniform(-0.15, 0.15, 3, 1, 1)
    moved = (moved * gain + bias + 0.04 * torch.randn(moved.shape, generator=generator)).clamp(-1, 1)
    rows, place = torch.arange(64), torch.randint(0, 64, (count, 2), generator=generator)
    size = torch.randint(0, 24, (count, 1), generator=generator)
    inside_y = ((rows - place[:, :1]).abs() * 2 < size)[:, None, :, None]
    inside_x = ((rows - place[:, 1:]).abs() * 2 < size)[:, None, None, :]
    return torch.where(inside_y & inside_x, torch.zeros(()), moved)


def patch_targets(pixels: Tensor) -> Tensor:
    """Describe each patch by 4 × 4 mean colors and edges in 8 directions on 2 × 2 cells: [B, T, 80]."""
    colors = F.avg_pool2d(pixels, 4)  # [B, 3, 16, 16]
    grey = pixels.mean(1, keepdim=True)
    dx = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1, 0, 0))
    dy = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    strength, angle = (dx**2 + dy**2).sqrt(), torch.atan2(dy, dx)
    sector = ((angle + math.pi) / (2 * math.pi) * 8).long().clamp(0, 7)  # [B, 1, 64, 64]
    edges = torch.zeros(len(pixels), 8, 64, 64).scatter_(1, sector, strength)
    edges = F.avg_pool2d(edges, 8) * 4  # [B, 8, 8, 8]
    split = [
        maps.unflatten(3, (GRID, -1))
        .unflatten(2, (GRID, -1))
        .permute(0, 2, 4, 1, 3, 5)
        .flatten(1, 2)
        .flatten(2)
        for maps in (colors, edges)
    ]
    return torch.cat(split, 2)


def scene_targets(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Number shape, color and size (0 = nothing there) of each cell of each scene: three of [B, T]."""
    found = torch.zeros(3, len(scenes), GRID * GRID, dtype=torch.long)
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            row, column = thing.cell
            cell = (row - 1) * GRID + column - 1
            found[0, index, cell] = SHAPES.index(thing.shape) + 1
            found[1, index, cell] = list(COLORS).index(thing.color) + 1
            found[2, index, cell] = SIZES.index(thing.size) + 1
    return found[0], found[1], found[2]


class Heads(nn.Module):
    """The linear heads of the losses, thrown away afterwards."""

    def __init__(self, kinds: int, words: int, hidden: int) -> None:
        super().__init__()
        self.kind = nn.Linear(2 * hidden, kinds)
        self.sense = nn.Linear(2 * hidden, len(CLASSES))
        self.words = nn.Linear(2 * hidden, words)
        self.patch = nn.Linear(hidden, 80)
        self.cell = nn.Linear(hidden, 9 + 9 + 3)


def pooled(tokens: Tensor) -> Tensor:
    """Mean and maximum over patches: [B, 2 D]."""
    return torch.cat([tokens.mean(1), tokens.amax(1)], 1)


def unit(pixels: Tensor) -> Tensor:
    """Turn uint8 [B, 64, 64, 3] into float [B, 3, 64, 64] in −1…1, as the processor does."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def train(work: Path, minutes: float, steps: int = 12_000) -> None:
    """Train until `steps` or `minutes` are used up; the learning rate falls with whichever is nearer.

    Goes on from `vision.safetensors` if there is one, at a lower rate and with other draws.
    """
    pictured, meanings = corpus.pictured(work), corpus.Meanings(corpus.wordnet())
    kinds = {
        kind: number for number, kind in enumerate(sorted({k for source in pictured for k in source.kinds}))
    }
    frequency = Counter(word for source in pictured for words in source.words for word in words)
    vocabulary = {word: n for n, word in enumerate(sorted(word for word, c in frequency.items() if c >= 4))}
    sources = []
    for source in pictured:
        labels = torch.tensor([kinds[kind] for kind in source.kinds])
        targets = torch.zeros(len(labels), len(vocabulary))
        for row, words in enumerate(source.words):
            targets[row, [vocabulary[word] for word in words if word in vocabulary]] = 1
        heads_of = [meanings.head(name) for name in source.names]
        classes = [UNKNOWN if sense is None else CLASSES.index(sense.lexname) for sense in heads_of]
        sources.append((source.pixels, labels, torch.tensor(classes), targets))
    print(
        f"{[len(source.kinds) for source in pictured]} pictures, {len(kinds)} kinds, {len(vocabulary)} words",
        flush=True,
    )
    again = (work / "vision.safetensors").exists()
    encoder, peak, purpose = (trained(work).train(), 5e-4, "vision/2") if again else (build(), 1e-3, "vision")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        heads = Heads(len(kinds), len(vocabulary), CONFIG["hidden_size"])
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    begun, step, shown = time.time(), 0, []
    while True:
        done = max(step / steps, (time.time() - begun) / 60 / minutes)
        if done >= 1:
            break
        rng, generator = stream(0, purpose, step=step), torch_stream(0, purpose, step=step)
        optimizer.param_groups[0]["lr"] = (
            peak * min(1, (step + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        )
        picks = [
            torch.from_numpy(rng.integers(len(source[0]), size=size))
            for source, size in zip(sources, BATCH, strict=True)
        ]
        pixels, labels, classes, targets = (
            torch.cat([source[part][pick] for source, pick in zip(sources, picks, strict=True)])
            for part in range(4)
        )
        images = unit(pixels)
        scenes = [draw_scene(rng, int(rng.integers(1, 7)), "pretrain") for _ in range(SCENES)]
        drawn = unit(torch.stack([torch.from_numpy(scene.pixels().copy()) for scene in scenes]))
        batch = torch.cat([augment(images, generator), drawn])
        with torch.autocast("cpu", torch.bfloat16):
            tokens = encoder(batch, output_hidden_states=True).hidden_states[-1]  # [B, T, D]
        tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])
        summary, cells = pooled(tokens[: len(images)]), heads.cell(tokens[len(images) :])
        shape, color, size = scene_targets(scenes)
        parts = {
            "kind": F.cross_entropy(heads.kind(summary), labels, label_smoothing=0.1),
            "class": F.cross_entropy(heads.sense(summary), classes, label_smoothing=0.1),
            "words": 20 * F.binary_cross_entropy_with_logits(heads.words(summary), targets),
            "patch": 4 * F.mse_loss(heads.patch(tokens), patch_targets(batch)),
            "cell": sum(
                F.cross_entropy(logits.flatten(0, 1), truth.flatten())
                for logits, truth in zip(cells.split((9, 9, 3), 2), (shape, color, size), strict=True)
            ),
        }
        optimizer.zero_grad()
        sum(parts.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            on = shape > 0
            shown.append(
                [
                    *(float(part) for part in parts.values()),
                    float((heads.kind(summary).argmax(1) == labels).float().mean()),
                    float((cells[..., :9].argmax(2) == shape)[on].float().mean()),
                    float((cells[..., 9:18].argmax(2) == color)[on].float().mean()),
                ]
            )
        step += 1
        if step % 100 == 0:
            mean = torch.tensor(shown[-100:]).mean(0)
            figures = " ".join(
                f"{name} {value:.3f}"
                for name, value in zip(
                    ("kind", "class", "words", "patch", "cell", "| kind acc", "shape acc", "color acc"),
                    mean.tolist(),
                    strict=True,
                )
            )
            print(f"step {step} {(time.time() - begun) / 60:.1f} min ({done:.0%}) {figures}", flush=True)
        if step % 300 == 0:
            save(encoder, work)
    save(encoder, work)
    (work / "vision.json").write_text(json.dumps({"steps": step, "minutes": (time.time() - begun) / 60}))


def save(encoder: SiglipVisionModel, work: Path) -> None:
    """Keep the encoder, and the last one if the writing is cut short."""
    temporary = work / "vision.tmp"
    save_file(encoder.state_dict(), temporary)
    temporary.replace(work / "vision.safetensors")


def trained(work: Path) -> SiglipVisionModel:
    """Load the encoder that `train` kept."""
    encoder = build()
    encoder.load_state_dict(load_file(work / "vision.safetensors"))
    return encoder.eval()
