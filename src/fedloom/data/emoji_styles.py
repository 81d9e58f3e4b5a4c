"""Emoji as several vendors draw them: one client for each vendor, each with a style and a choice of emoji of its own.

The emoji are those of the data set `emoji`, drawn by Noto, Twemoji, Fluent, EmojiOne and FxEmoji, and, once the user has
added them by `fedloom data add openmoji`, by OpenMoji in color and as lines (`data.variant: with-openmoji`). The group of
an example is its vendor, so that `scenario.partition: by_group` with as many clients as vendors gives each client one.

    data.task        question                         answer               evidence
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
"""Names of emoji that are right, or may pass for it, for others too whose keywords do not say so."""


def openmoji_folder() -> Path:
    """Return where OpenMoji's drawings lie unless the user chooses another folder."""
    return cache_folder() / "emoji-styles"


@dataclass(frozen=True, slots=True)
class Drawing:
    """An emoji as one vendor draws it: the record of the emoji, see `fedloom.data.emoji.pool`, and the image."""

    vendor: str
    record: dict[str, Any]
    image: ZipImage


def load_emoji_styles(settings: Data, seed: int) -> DataSet:
    """Load the drawings; all of one emoji are on the side on which the data set `emoji` has it for the same seed.

    Args:
        settings: `task`, `variant`, `root` and `test_share` are read. A root without a variant means
            "with-openmoji"; without a root, OpenMoji is looked for where `fedloom data add openmoji` puts it.
        seed: Decides the division and what is asked in the task vqa.

    Raises:
        UserError: An unknown task or variant, or OpenMoji is wanted and is not there or is damaged.
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
    listed = [one for folder, name in archives for one in _vendors(folder, name)]

    def side(examples: Sequence[Example]) -> tuple[Example, ...]:
        here = [records[example.id] for example in examples]
        drawings = [[Drawing("Noto", record, image_of(record)) for record in here]]
        for title, vendor, archive, known in listed:
            drawings.append(
                [
                    Drawing(title, one, ZipImage(archive, f"{vendor}/{one['id']}.webp"))
                    for one in here
                    if one["id"] in known
                ]
            )
        return tuple(one for mine in drawings for one in _examples(mine, settings.task, seed))

    return DataSet("emoji-styles", side(emoji.train), side(emoji.test))


def _vendors(folder: Path, name: str) -> Iterator[tuple[str, str, Path, frozenset[str]]]:
    """Yield title, vendor, archive and code points of each vendor of an archive, which is checked against its list."""
    listing, archive = folder / f"{name}.json", folder / f"{name}.zip"
    try:
        with zipfile.ZipFile(archive) as members:
            there = {one.filename for one in members.infolist() if one.compress_type == zipfile.ZIP_STORED}
        digest = file_digest(archive)
        vendors = json.loads(listing.read_text(encoding="utf-8"))
        if not isinstance(vendors, list) or not vendors:
            raise ValueError("no vendors")
        for one in vendors:
            title, vendor, known = str(one["title"]), str(one["vendor"]), frozenset(map(str, one["icons"]))
            if not known or any(f"{vendor}/{codes}.webp" not in there for codes in known):
                raise ValueError(vendor)
            if one.get("archive", digest) != digest:  # the list that comes with fedloom does not have it
                raise ValueError("the list of another archive")
            yield title, vendor, archive, known
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
    """Make the questions about one vendor's drawings of one side."""
    if task in ("classification", "all"):
        yield from map(_of_group, drawings)
    if task in ("captioning", "all"):
        yield from map(_of_name, drawings)
    if task in ("vqa", "all"):
        yield from _yes_or_no(drawings, seed)


def _id(drawing: Drawing, task: str) -> str:
    return f"{drawing.vendor}-{drawing.record['id']}-{task}".lower().replace(" ", "-")


def _of_group(drawing: Drawing) -> Example:
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


def _of_name(drawing: Drawing) -> Example:
    return Example(
        id=_id(drawing, "name"),
        question="What is it called?",
        answer=drawing.record["name"],
        image=drawing.image,
        group=drawing.vendor,
        base=drawing.record["base"],
        task="caption",
    )


def _yes_or_no(drawings: Sequence[Drawing], seed: int) -> Iterator[Example]:
    """Ask of each drawing whether it is what it is, or, of every second one, whether it is another emoji.

    Half of the other emoji are of the same group where there is one. All are on the same side as the drawing.
    """
    if not drawings:
        return
    # The stream is named by what is asked about, so that another vendor or side changes none of these draws.
    rng = stream(seed, f"emoji-styles/vqa/{drawings[0].vendor}/{min(one.record['id'] for one in drawings)}")
    names = [one.record for one in drawings]
    order = rng.permutation(len(drawings)).tolist()
    for place, index in enumerate(order):
        drawing, asked = drawings[index], drawings[index].record
        answer = "no" if place % 2 else "yes"
        if answer == "no":
            others = [one for one in names if may_distract(one, asked)]
            near = [one for one in others if one["group"] == asked["group"]]
            far = [one for one in others if one["group"] != asked["group"]]
            chosen = (near or far) if place % 4 == 1 else (far or near)
            if chosen:
                asked = chosen[int(rng.integers(len(chosen)))]
            else:
                answer = "yes"
        yield Example(
            id=_id(drawing, "is"),
            question=f"Is it {with_article(asked['name'])}?",
            answer=answer,
            image=drawing.image,
            group=drawing.vendor,
            base=drawing.record["base"],
            task="vqa",
            kind="closed",
        )


def may_distract(other: dict[str, Any], record: dict[str, Any]) -> bool:
    """Return whether the name of another emoji is surely wrong for an emoji.

    The other must have another base. Neither name may say the same with more words, as "cat" and "cat face" do, in
    whatever form, as "house" and "houses"; and the emoji must not be a kind of the other, as a taxi is an automobile.

    Args:
        other: The record of the emoji whose name is asked about.
        record: The record of the emoji that is seen.
    """
    theirs, ours = _stems(other["name"]), _stems(record["name"])
    told = ours | _stems(" ".join(record["keywords"]))
    if other["base"] == record["base"] or record["name"] in KINDS.get(other["name"], ()):
        return False
    return not theirs <= told and not ours <= theirs


def _stems(text: str) -> frozenset[str]:
    """Return the words of a text, each without an ending that makes a plural or a participle of it.

    Example:
        >>> sorted(_stems("Grinning faces")) == sorted(_stems("face, grin"))
        True
    """
    words = re.findall(r"\w+", text.lower())
    return frozenset(re.sub(r"(?<=\w{3})(?:e|e?s|(?:(?<=(\w))\1)?ing)$", "", word) for word in words)


def with_article(name: str) -> str:
    """Return a name of Unicode's as English has it in a sentence, with an article where one is wanted.

    Example:
        >>> with_article("owl"), with_article("flag: Albania"), with_article("woman: blond hair")
        ('an owl', 'the flag of Albania', 'a woman (blond hair)')
        >>> with_article("people hugging"), with_article("glasses"), with_article("Mount Fuji")
        ('people hugging', 'glasses', 'Mount Fuji')
    """
    head, _, rest = name.partition(": ")
    if head == "flag" and rest:
        return f"the flag of {rest}"
    told = f"{head} ({rest})" if rest else head
    noun = re.split(r" (?:with|in|of|on|and|without|at) |: ", head)[0].split()
    plural = noun[-1].endswith("s") and not noun[-1].endswith(("ss", "us"))
    if plural or noun[0] in ("people", "men", "women") or name[0].isupper():
        return told
    return f"{'an' if name[0] in 'aeio' else 'a'} {told}"
