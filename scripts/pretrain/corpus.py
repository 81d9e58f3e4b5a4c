"""Gather what the shipped model is pretrained on; none of it is in a federated training or test set.

emoji     pictures, names and keywords of the pool "pretrain" of the shipped emoji file
clip art  public-domain drawings with folder and file names (Debian package openclipart-png), without
          national flags, because those show what flag emoji show
stamps    drawings and photos with folder and file names (Debian package tuxpaint-stamps-default), without
          flags and letters
words     WordNet 3.0 nouns, verbs and adjectives: glosses, hypernyms, classes (Debian package wordnet-base)
scenes    drawn shapes of the pool "pretrain" (fedloom.data.shapes)
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedloom.data.emoji import picture_of, pretraining_records

CLIP_ART = Path("/usr/share/openclipart/png")
STAMPS = Path("/usr/share/tuxpaint/stamps")
WORDNET = Path("/usr/share/wordnet")
# Folders with hundreds of near-equal pictures give at most this many each.
PER_FOLDER = 120
# National flags stay out; buttons, gradients and patterns show nothing with a name.
LEFT_OUT = (
    *("signs_and_symbols/flags", "special", "computer/buttons", "shapes/flowchart", "unsorted", "logos"),
    *("town/flags", "symbols/alphabets"),
)
# Words in file names that say who drew it or how, not what.
NOISE = set(
    "01 02 03 04 05 architetto francesco franc frances archite bw arc svg icon icons clipart drawn with the a of "
    "and by in on gerald ganson gerard g st r art simple theme flat lemon etiquette action actions apps "
    "applications mimetypes filesystems devices device stock white ornamental bordered machovka johnny automatic "
    "rrze liftarn jon phillips lumen design ryanlerch".split()
)
LEXNAMES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body "
    "noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive "
    "noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation "
    "noun.shape noun.state noun.substance noun.time verb.body verb.change verb.cognition verb.communication "
    "verb.competition verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception "
    "verb.possession verb.social verb.stative verb.weather adj.ppl"
).split()


@dataclass(frozen=True)
class Pictured:
    """Pictures of one source: pixels [N, 64, 64, 3] uint8, and what is known of each."""

    pixels: torch.Tensor
    kinds: list[str]
    words: list[list[str]]
    names: list[str]


def square(image: Image.Image, side: int = 64) -> np.ndarray:
    """Put a picture of any size on a white square."""
    image = image.convert("RGBA")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas.convert("RGB"))


def split_words(text: str) -> list[str]:
    """Lower-case words of at least three letters that say something about the picture."""
    found = re.findall(r"[a-z]{3,}", text.lower().replace("_", " "))
    return list(dict.fromkeys(word for word in found if word not in NOISE))


def drawings(root: Path, work: Path) -> Pictured:
    """Read a tree of named pictures once and keep it in the work folder."""
    tensors, texts = work / f"{root.name}.safetensors", work / f"{root.name}.json"
    if not tensors.exists():
        pixels, rows, per_folder = [], [], Counter()
        for path in sorted(root.rglob("*.png")):
            folder = "/".join(path.parent.relative_to(root).parts[:2])
            if (
                folder.startswith(LEFT_OUT)
                or per_folder[folder] >= PER_FOLDER
                or path.stem.endswith("_mirror")
            ):
                continue
            try:
                with Image.open(path) as image:
                    if image.width * image.height > 4_000_000:
                        continue
                    pixels.append(square(image))
            except (OSError, Image.DecompressionBombError):
                continue
            per_folder[folder] += 1
            rows.append([folder, split_words(path.stem)])
        save_file({"pixels": torch.from_numpy(np.stack(pixels))}, tensors)
        texts.write_text(json.dumps(rows))
    rows = json.loads(texts.read_text())
    # A word in many top folders is an artist's name or a style, not what a picture shows.
    places: dict[str, set[str]] = {}
    for folder, found in rows:
        for word in found:
            places.setdefault(word, set()).add(folder.split("/")[0])
    rows = [[folder, [word for word in found if len(places[word]) < 7]] for folder, found in rows]
    words = [list(dict.fromkeys([*split_words(folder.replace("/", " ")), *found])) for folder, found in rows]
    kinds = [f"{root.name}/{row[0]}" for row in rows]
    return Pictured(load_file(tensors)["pixels"], kinds, words, [" ".join(row[1]) for row in rows])


def emoji() -> Pictured:
    """Read the emoji of the pretraining pool."""
    records = pretraining_records()
    pixels = torch.from_numpy(np.stack([picture_of(record).pixels() for record in records]))
    words = [split_words(" ".join([record["name"], *record["keywords"]])) for record in records]
    return Pictured(pixels, [record["subgroup"] for record in records], words, [r["name"] for r in records])


@dataclass(frozen=True)
class Sense:
    """One meaning: synonyms, how often each is used in it, class, gloss, hypernyms (nearest first)."""

    words: tuple[str, ...]
    counts: tuple[int, ...]
    lexname: str
    gloss: str
    hypernyms: tuple[str, ...]

    @property
    def count(self) -> int:
        """How often the most used synonym is used in this sense."""
        return max(self.counts)


def wordnet() -> list[Sense]:
    """Read WordNet's nouns, verbs and adjectives."""
    counts: Counter[str] = Counter()
    for line in (WORDNET / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        counts[":".join(key.split(":")[:3])] += int(count)  # lemma%kind:file:number, which names one sense
    raw: dict[str, tuple[tuple[str, ...], str, str, str | None, tuple[int, ...]]] = {}
    for kind, part in enumerate(("noun", "verb", "adj"), 1):
        for line in (WORDNET / f"data.{part}").read_text().splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            number = int(fields[3], 16)
            keys = [
                f"{fields[4 + 2 * k].lower()}%{kind}:{fields[1]}:{int(fields[5 + 2 * k], 16):02}"
                for k in range(number)
            ]
            words = tuple(
                re.sub(r"\(.*?\)", "", fields[4 + 2 * k]).replace("_", " ").lower() for k in range(number)
            )
            pointers = fields[4 + 2 * number + 1 :]
            above = next(
                (pointers[k + 1] for k in range(0, len(pointers) - 3, 4) if pointers[k] in ("@", "@i")), None
            )
            raw[part[0] + fields[0]] = (
                words,
                LEXNAMES[int(fields[1])].split(".")[1],
                gloss.split(";")[0].split('"')[0].strip(),
                None if above is None else part[0] + above,
                tuple(counts[key] for key in keys),
            )
    senses = []
    for words, lexname, gloss, above, used in raw.values():
        chain: list[str] = []
        while above is not None and len(chain) < 6 and above in raw:
            chain.append(raw[above][0][0])
            above = raw[above][3]
        senses.append(Sense(words[:4], used[:4], lexname, gloss, tuple(chain)))
    return senses
