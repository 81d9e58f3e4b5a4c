"""Gather the pretraining data of the bundled model; none of it is in a federated training or test set.

emoji     images, names and keywords of the pool "pretrain" of the bundled emoji file
clip art  public-domain drawings with folder and file names (Debian package openclipart-png), without
          national flags, because those show what flag emoji show
stamps    drawings and photos with folder and file names (Debian package tuxpaint-stamps-default), without
          flags and letters
styles    the same pool's emoji as five other artists draw them (Twemoji, Fluent twice, EmojiOne, Noto 1)
icons     symbols with names from eight icon sets
words     WordNet 3.0 nouns, verbs and adjectives: glosses, hypernyms, classes (Debian package wordnet-base)
scenes    drawn shapes of the pool "pretrain" (fedloom.data.drawn_shapes)

Styles and icons are the npm packages `@iconify-json/NAME` of STYLES and ICONS, installed in the work folder
with `npm install --prefix DIR`, and drawn by rsvg-convert (Debian package librsvg2-bin).
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedloom.data.emoji import image_of, pool

CLIP_ART = Path("/usr/share/openclipart/png")
STAMPS = Path("/usr/share/tuxpaint/stamps")
WORDNET = Path("/usr/share/wordnet")
STYLES = ("twemoji", "fluent-emoji-flat", "fluent-emoji", "emojione", "noto-v1")
ICONS = (
    *("game-icons", "icon-park", "flat-color-icons", "streamline-ultimate-color", "streamline-plump-color"),
    *("streamline-kameleon-color", "streamline-stickies-color", "streamline-freehand-color"),
)
# Folders with hundreds of near-equal images give at most this many each.
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
    """Images of one source: pixels [N, 64, 64, 3] uint8, with their names, texts and topics.

    `texts` may be shown with an image: an emoji's keywords, or the words of a name. `topics` are the general terms
    by which a collection sorts its images, such as "animals"; empty if there is none.
    """

    pixels: torch.Tensor
    kinds: list[str]
    words: list[list[str]]
    names: list[str]
    texts: list[str]
    topics: list[str]


def pictured(work: Path) -> list[Pictured]:
    """Gather emoji, the same in other styles, clip art, stamps and icons, in this order."""
    return [emoji(), styles(work), *(drawings(root, work) for root in (CLIP_ART, STAMPS)), icons(work)]


def square(image: Image.Image, side: int = 64) -> np.ndarray:
    """Return an image of any size on a white square."""
    image = image.convert("RGBA")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas.convert("RGB"))


def split_words(text: str) -> list[str]:
    """Return the informative lower-case words of at least three letters in a text."""
    all_words = re.findall(r"[a-z]{3,}", text.lower().replace("_", " "))
    return list(dict.fromkeys(word for word in all_words if word not in NOISE))


def drawings(root: Path, work: Path) -> Pictured:
    """Read a tree of named images once and keep it in the work folder."""
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
    # A word in many top folders is an artist's name or a style, not what an image shows.
    places: dict[str, set[str]] = {}
    for folder, own in rows:
        for word in own:
            places.setdefault(word, set()).add(folder.split("/")[0])
    rows = [[folder, [word for word in own if len(places[word]) < 7]] for folder, own in rows]
    words = [list(dict.fromkeys([*split_words(folder.replace("/", " ")), *own])) for folder, own in rows]
    kinds = [f"{root.name}/{row[0]}" for row in rows]
    names = [" ".join(row[1]) for row in rows]
    topics = [row[0].split("/")[0].replace("_", " ") for row in rows]
    return Pictured(
        load_file(tensors)["pixels"], kinds, words, names, [", ".join(row) for row in words], topics
    )


def emoji() -> Pictured:
    """Read the emoji of the pretraining pool."""
    records = pool("pretrain")
    pixels = torch.from_numpy(np.stack([image_of(record).pixels() for record in records]))
    return described(pixels, records)


def described(pixels: torch.Tensor, records: list[dict[str, Any]]) -> Pictured:
    """Combine images with the names and keywords of their emoji in Unicode."""
    words = [split_words(" ".join([record["name"], *record["keywords"]])) for record in records]
    kinds, names, texts = zip(
        *((one["subgroup"], one["name"], ", ".join(one["keywords"])) for one in records), strict=True
    )
    return Pictured(pixels, list(kinds), words, list(names), list(texts), [""] * len(names))


def icon_sets(
    names: tuple[str, ...], file: Path, wanted: frozenset[str] | None
) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Draw icon sets once and keep them in `file`: pixels [N, 64, 64, 3], (set, icon) of each.

    Args:
        names: The sets, installed in the folder of `file`.
        file: `NAME.safetensors`, next to `NAME.json`.
        wanted: The names of icons; None for all of them.
    """
    if not file.exists():
        drawings = [
            (name, icon, _svg(body, icon_set))
            for name in names
            for icon_set in [
                json.loads((file.parent / f"node_modules/@iconify-json/{name}/icons.json").read_text())
            ]
            for icon, body in sorted(icon_set["icons"].items())
            if (wanted is None or icon in wanted) and not body.get("hidden")
        ]
        with ThreadPoolExecutor(2) as workers:
            pixels = list(workers.map(_drawn, (svg for _, _, svg in drawings)))
        save_file({"pixels": torch.from_numpy(np.stack(pixels))}, file)
        file.with_suffix(".json").write_text(json.dumps([(name, icon) for name, icon, _ in drawings]))
    return load_file(file)["pixels"], json.loads(file.with_suffix(".json").read_text())


def _svg(icon: dict[str, Any], icon_set: dict[str, Any]) -> str:
    width, height = (icon.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
    left, top = icon.get("left", icon_set.get("left", 0)), icon.get("top", icon_set.get("top", 0))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _drawn(svg: str) -> np.ndarray:
    command = ["rsvg-convert", "--width=64", "--height=64", "--keep-aspect-ratio", "--background-color=white"]
    png = subprocess.run(command, input=svg.encode(), capture_output=True, check=True).stdout
    with Image.open(io.BytesIO(png)) as image:
        return square(image)


def styles(work: Path) -> Pictured:
    """Draw the emoji of the pretraining pool, and no others, in the styles of other artists."""
    records = {slug(record["name"]): record for record in pool("pretrain")}
    wanted = frozenset(records.keys() - {slug(record["name"]) for record in pool("federated")})
    pixels, drawn = icon_sets(STYLES, work / "styles.safetensors", wanted)
    return described(pixels, [records[icon] for _, icon in drawn])


def icons(work: Path) -> Pictured:
    """Draw the icons of all sets; an icon's kind is its set, its words are those of its name."""
    pixels, drawn = icon_sets(ICONS, work / "icons.safetensors", None)
    names = [re.sub(r"[\d-]+", " ", icon).strip() for _, icon in drawn]
    words = [split_words(name) for name in names]
    texts = [", ".join(row) for row in words]
    return Pictured(pixels, [name for name, _ in drawn], words, names, texts, [""] * len(names))


def slug(name: str) -> str:
    """Write an emoji's name as icon sets do: "red apple" is `red-apple`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Sense:
    """One meaning: synonyms, how often each is used in it, class, gloss, hypernyms (nearest first), usage examples."""

    words: tuple[str, ...]
    counts: tuple[int, ...]
    lexname: str
    gloss: str
    hypernyms: tuple[str, ...]
    examples: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of uses of the most frequent synonym in this sense."""
        return max(self.counts)


def wordnet() -> list[Sense]:
    """Read WordNet's nouns, verbs and adjectives."""
    counts: Counter[str] = Counter()
    for line in (WORDNET / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        counts[":".join(key.split(":")[:3])] += int(count)  # lemma%kind:file:number, which names one sense
    raw: dict[str, tuple[tuple[str, ...], str, str, str | None, tuple[int, ...], tuple[str, ...]]] = {}
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
                tuple(re.findall(r'"([^"]{8,80})"', gloss)),
            )
    senses = []
    for words, lexname, gloss, above, used, examples in raw.values():
        chain: list[str] = []
        while above is not None and len(chain) < 6 and above in raw:
            chain.append(raw[above][0][0])
            above = raw[above][3]
        senses.append(Sense(words[:4], used[:4], lexname, gloss, tuple(chain), examples))
    return senses


NOUN_CLASSES = {name.split(".")[1] for name in LEXNAMES if name.startswith("noun.")}


class Meanings:
    """Classes and hypernyms of nouns, by their most frequent sense."""

    def __init__(self, senses: list[Sense]) -> None:
        self.by_word: dict[str, Sense] = {}
        best: dict[str, int] = {}
        for sense in senses:
            if sense.lexname in NOUN_CLASSES:
                for word, count in zip(sense.words, sense.counts, strict=True):
                    if count > best.get(word, -1):
                        self.by_word[word], best[word] = sense, count

    def head(self, name: str) -> Sense | None:
        """Find the sense of a name's last noun before "with", "in", "of" or a colon."""
        core = name.lower().split(":")[0]
        for joint in (" with ", " in ", " of ", " on ", " and "):
            core = core.split(joint)[0]
        words = core.split()
        for start in range(len(words)):
            sense = self.by_word.get(" ".join(words[start:]))
            if sense is not None:
                return sense
        return None
