"""Emoji drawn by several vendors: one client for each vendor, each with its own style and selection of emoji.

The emoji are those of the data set `emoji`, drawn by Noto, Twemoji, Fluent, EmojiOne and FxEmoji, and, after
`fedloom data add openmoji`, by OpenMoji in color and as lines (`data.variant: with-openmoji`). The group of
an example is its vendor, so that `scenario.partition: by_group` with as many clients as vendors gives each client one.

    data.task        question                         answer               modalities
    classification   Which group does it belong to?   one of eight groups  image and Unicode's keywords
    captioning       What is it called?               its name in Unicode  image
    vqa              Is it an owl?                    yes or no            image
    all              the three above

Keywords hold the words of the name, so only the first task shows them.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.data.emoji import GROUPS, QUESTION, image_of, load_emoji, pool
from fedloom.data.images import ZipImage
from fedloom.data.loading import FILES
from fedloom.seeds import stream
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import cache_folder, file_digest
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data

TASKS = ("classification", "captioning", "vqa", "all")
VARIANTS = ("bundled", "with-openmoji")
OPENMOJI = "openmoji"
"""The name of the archive and the list that `fedloom data add openmoji` writes."""

KINDS: Mapping[str, Sequence[str]] = {
    "automobile": ("ambulance", "oncoming police car", "police car", "racing car", "taxi"),
    "bear": ("panda",),
    "bird": ("dodo",),
    "black flag": ("pirate flag",),
    "blossom": ("hibiscus", "lotus", "rose", "sunflower", "tulip"),
    "bug": ("ant", "butterfly", "cockroach", "cricket", "fly", "honeybee", "microbe", "spider"),
    "bullet train": ("high-speed train",),
    "chair": ("motorized wheelchair",),
    "envelope": ("e-mail",),
    "glasses": ("goggles",),
    "herb": ("shamrock",),
    "high-speed train": ("bullet train",),
    "jar": ("amphora",),
    "place of worship": ("church", "hindu temple", "kaaba", "shinto shrine"),
    "sandwich": ("hamburger", "hot dog"),
    "warning": ("biohazard", "radioactive"),
    "watch": ("stopwatch",),
}
"""Name of an emoji → names of others for which it is also right, though their keywords do not include it."""


def openmoji_folder() -> Path:
    """Return the default folder of OpenMoji's drawings."""
    return cache_folder() / "emoji-styles"


@dataclass(frozen=True, slots=True)
class Drawing:
    """An emoji drawn by one vendor: its record (see `fedloom.data.emoji.pool`) and the image."""

    vendor: str
    record: dict[str, Any]
    image: ZipImage


def load_emoji_styles(settings: Data, seed: int) -> DataSet:
    """Load the drawings; each emoji is in the part in which the data set `emoji` has it for the same seed.

    Args:
        settings: `task`, `variant`, `root` and `test_share` are used. A root without a variant means
            "with-openmoji"; without a root, OpenMoji is in the folder of `fedloom data add openmoji`.
        seed: Seed of the division and of the questions of the task vqa.

    Raises:
        UserError: The task or the variant is unknown, or the variant needs OpenMoji, which is missing or damaged.
    """
    if settings.task not in TASKS:
        raise UserError(
            f"data.task is {settings.task}, but for emoji-styles it must be one of {', '.join(TASKS)}"
        )
    variant = settings.variant or (VARIANTS[0] if settings.root is None else VARIANTS[1])
    if variant not in VARIANTS:
        raise UserError(
            f"data.variant is {variant}, but for emoji-styles it must be one of {', '.join(VARIANTS)}"
        )
    records = {record["id"]: record for record in pool("federated")}
    emoji = load_emoji(settings, seed)
    archives = [(FILES, "emoji-styles")]
    if variant == VARIANTS[1]:
        archives.append((Path(settings.root) if settings.root is not None else openmoji_folder(), OPENMOJI))
    vendors = [vendor for folder, name in archives for vendor in _vendors(folder, name)]

    def draw_part(examples: Sequence[Example]) -> tuple[Example, ...]:
        part = [records[example.id] for example in examples]
        drawings = [[Drawing("Noto", record, image_of(record)) for record in part]]
        for title, vendor, archive, icons in vendors:
            drawings.append(
                [
                    Drawing(title, record, ZipImage(archive, f"{vendor}/{record['id']}.webp"))
                    for record in part
                    if record["id"] in icons
                ]
            )
        return tuple(example for own in drawings for example in _examples(own, settings.task, seed))

    return DataSet("emoji-styles", draw_part(emoji.train), draw_part(emoji.test))


def _vendors(folder: Path, name: str) -> Iterator[tuple[str, str, Path, frozenset[str]]]:
    """Yield title, vendor, archive and code points of each vendor, after checking the archive against its list."""
    listing, archive = folder / f"{name}.json", folder / f"{name}.zip"
    try:
        with zipfile.ZipFile(archive) as members:
            stored = {
                member.filename for member in members.infolist() if member.compress_type == zipfile.ZIP_STORED
            }
        digest = file_digest(archive)
        vendors = json.loads(listing.read_text(encoding="utf-8"))
        if not isinstance(vendors, list) or not vendors:
            raise ValueError("no vendors")
        for entry in vendors:
            title, vendor = str(entry["title"]), str(entry["vendor"])
            icons = frozenset(map(str, entry["icons"]))
            if not icons or any(f"{vendor}/{codes}.webp" not in stored for codes in icons):
                raise ValueError(vendor)
            if entry.get("archive", digest) != digest:  # the list that is bundled with fedloom lacks this key
                raise ValueError("the list of another archive")
            yield title, vendor, archive, icons
    except FileNotFoundError:
        raise UserError(
            f"data.root: {folder} holds no {name}.json with {name}.zip; `fedloom data add openmoji` puts OpenMoji's "
            "drawings there (see `fedloom data add --help`), or leave out data.variant for the bundled vendors"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile):
        raise UserError(
            f"data.root: {listing} or {archive} is damaged; `fedloom data add openmoji` writes both anew"
        ) from None


def _examples(drawings: Sequence[Drawing], task: str, seed: int) -> Iterator[Example]:
    """Yield the questions about one vendor's drawings of one part."""
    if task in ("classification", "all"):
        yield from map(_group_question, drawings)
    if task in ("captioning", "all"):
        yield from map(_name_question, drawings)
    if task in ("vqa", "all"):
        yield from _yes_no_questions(drawings, seed)


def _id(drawing: Drawing, task: str) -> str:
    return f"{drawing.vendor}-{drawing.record['id']}-{task}".lower().replace(" ", "-")


def _group_question(drawing: Drawing) -> Example:
    group = drawing.record["group"]
    return Example(
        id=_id(drawing, "group"),
        question=QUESTION,
        answer=group,
        image=drawing.image,
        text=", ".join(drawing.record["keywords"]),
        label=GROUPS.index(group),
        group=drawing.vendor,
        base=drawing.record["base"],
        options=GROUPS,
    )


def _name_question(drawing: Drawing) -> Example:
    return Example(
        id=_id(drawing, "name"),
        question="What is it called?",
        answer=drawing.record["name"],
        image=drawing.image,
        group=drawing.vendor,
        base=drawing.record["base"],
        task="caption",
    )


def _yes_no_questions(drawings: Sequence[Drawing], seed: int) -> Iterator[Example]:
    """Yield a question with the answer yes for every second drawing, and one about another emoji for the others.

    Half of the other emoji are of the same group if it has any. All are in the same part as the drawing.
    """
    if not drawings:
        return
    # The name of the stream depends on vendor and part, so that others do not change these draws.
    rng = stream(
        seed, f"emoji-styles/vqa/{drawings[0].vendor}/{min(drawing.record['id'] for drawing in drawings)}"
    )
    records = [drawing.record for drawing in drawings]
    order = rng.permutation(len(drawings)).tolist()
    for place, index in enumerate(order):
        drawing, subject = drawings[index], drawings[index].record
        answer = "no" if place % 2 else "yes"
        if answer == "no":
            others = [record for record in records if is_distractor(record, subject)]
            near = [record for record in others if record["group"] == subject["group"]]
            far = [record for record in others if record["group"] != subject["group"]]
            candidates = (near or far) if place % 4 == 1 else (far or near)
            if candidates:
                subject = candidates[int(rng.integers(len(candidates)))]
            else:
                answer = "yes"
        yield Example(
            id=_id(drawing, "is"),
            question=f"Is it {with_article(subject['name'])}?",
            answer=answer,
            image=drawing.image,
            group=drawing.vendor,
            base=drawing.record["base"],
            task="vqa",
            kind="closed",
        )


def is_distractor(other: dict[str, Any], record: dict[str, Any]) -> bool:
    """Return whether the name of another emoji is certainly wrong for an emoji.

    The other emoji must have another base. Neither name may contain the other, such as "cat" and "cat face", in
    any form, such as "house" and "houses"; and the emoji must not be a kind of the other, as a taxi is an automobile.

    Args:
        other: The record of the emoji whose name is in the question.
        record: The record of the emoji in the image.
    """
    if other["base"] == record["base"] or record["name"] in KINDS.get(other["name"], ()):
        return False
    theirs, ours = _stems(other["name"]), _stems(record["name"])
    words = ours | _stems(" ".join(record["keywords"]))
    return not theirs <= words and not ours <= theirs


@cache  # each drawing is compared with all others of its vendor
def _stems(text: str) -> frozenset[str]:
    """Return the words of a text without the endings of plurals and participles.

    Example:
        >>> sorted(_stems("Grinning faces")) == sorted(_stems("face, grin"))
        True
    """
    words = re.findall(r"\w+", text.lower())
    return frozenset(re.sub(r"(?<=\w{3})(?:e|e?s|(?:(?<=(\w))\1)?ing)$", "", word) for word in words)


def with_article(name: str) -> str:
    """Return a name from Unicode in the form that it has in a sentence, with an article if it needs one.

    Example:
        >>> with_article("owl"), with_article("flag: Albania"), with_article("woman: blond hair")
        ('an owl', 'the flag of Albania', 'a woman (blond hair)')
        >>> with_article("people hugging"), with_article("glasses"), with_article("Mount Fuji")
        ('people hugging', 'glasses', 'Mount Fuji')
    """
    head, _, rest = name.partition(": ")
    if head == "flag" and rest:
        return f"the flag of {rest}"
    phrase = f"{head} ({rest})" if rest else head
    noun = re.split(r" (?:with|in|of|on|and|without|at) |: ", head)[0].split()
    plural = noun[-1].endswith("s") and not noun[-1].endswith(("ss", "us"))
    if plural or noun[0] in ("people", "men", "women") or name[0].isupper():
        return phrase
    return f"{'an' if name[0] in 'aeio' else 'a'} {phrase}"
