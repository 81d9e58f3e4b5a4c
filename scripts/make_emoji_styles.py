"""Regenerate `emoji-styles.zip` and `emoji-styles.json`: the federated emoji as four other vendors draw them.

Needs Debian's librsvg2-bin and four npm packages of pinned version and digest in one folder:

    npm pack @iconify-json/twemoji@1.2.5 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/emojione@1.2.3 \
        @iconify-json/fxemoji@1.2.2
    python scripts/make_emoji_styles.py FOLDER

A drawing is found by code points if its package lists them (Twemoji, Fluent), else by name: today's name in Unicode,
EmojiOne's "flag for NAME", or the character's formal name in the Unicode standard, each without hyphens and spaces.
Where two emoji would have one drawing, it is that of the emoji whose name it bears. A drawing is left out if pretraining
could have seen it under another name, or if it equals one of the same vendor's pretraining emoji, or one of an emoji
with another base.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedloom.data.emoji import image_of, pool
from fedloom.data.svg_drawing import render_all, require_rsvg, write_archive

FILES = Path(__file__).resolve().parent.parent / "src/fedloom/data/files"

VENDORS: dict[str, tuple[str, str, str, str]] = {
    # vendor: title, npm package, version, SHA-256 of the package
    "twemoji": (
        "Twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "fluent": (
        "Fluent",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "emojione": (
        "EmojiOne",
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
    "fxemoji": (
        "FxEmoji",
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    ),
}


def opened(folder: Path, package: str, version: str, digest: str) -> dict[str, Any]:
    """Check the digest of a package, and read its icons, characters and license."""
    path = folder / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != digest:
        raise SystemExit(f"{path}: its SHA-256 is {sha256}, not {digest}")
    with tarfile.open(path) as archive:
        names = ("icons", "chars", "info")
        return {name: json.load(archive.extractfile(f"package/{name}.json")) for name in names}


def compact(name: str) -> str:
    """Return a name without the characters that icon sets write differently."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", "and"))
    return re.sub(r"[^a-z0-9]+", "", plain)


def slug(name: str) -> str:
    """Write a name as the pretraining corpus does (scripts/pretrain/corpus.py)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def names_of(record: dict[str, Any]) -> Iterator[str]:
    """Yield the possible names of an emoji, the most certain first."""
    yield record["name"]
    if record["name"].startswith("flag: "):
        yield "flag for " + record["name"].removeprefix("flag: ")
    codes = [int(code, 16) for code in record["id"].split("-") if code != "fe0f"]
    if len(codes) == 1:
        yield unicodedata.name(chr(codes[0]), "")


def matched(package: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, tuple[str, bool]]:
    """Return code points → (icon with a drawing of its own, whether it is mirrored)."""
    icons, aliases = package["icons"]["icons"], package["icons"].get("aliases", {})
    by_codes = {codes.replace("-fe0f", ""): icon for codes, icon in package["chars"].items()}
    by_name: dict[str, str] = {}
    for icon in (*icons, *aliases):
        by_name.setdefault(compact(icon), icon)
    matches: dict[str, tuple[str, bool]] = {}
    owner: dict[tuple[str, bool], dict[str, Any]] = {}
    for record in records:
        icon = by_codes.get(record["id"].replace("-fe0f", "")) or next(
            (by_name[compact(name)] for name in names_of(record) if compact(name) in by_name), None
        )
        if icon is None:
            continue
        alias = aliases.get(icon, {})
        key = alias.get("parent", icon), bool(alias.get("hFlip"))
        if key[0] not in icons or icons[key[0]].get("hidden"):
            continue
        other = owner.get(key)
        if other is not None and other["base"] != record["base"]:
            if slug(record["name"]) != key[0]:
                continue
            matches.pop(other["id"])
        owner[key] = record
        matches[record["id"]] = key
    return matches


def svg(package: dict[str, Any], icon: str) -> bytes:
    """Write an icon as an SVG file."""
    body, common = package["icons"]["icons"][icon], package["icons"]
    left, top, width, height = (
        body.get(key, common.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
        f'viewBox="{left} {top} {width} {height}">{body["body"]}</svg>'
    ).encode()


def usable() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the emoji of both pools, without federated ones that look like one of the other pool in Noto."""
    pretrain = pool("pretrain")
    seen = {image_of(record).key for record in pretrain}
    return pretrain, [record for record in pool("federated") if image_of(record).key not in seen]


def main(folder: Path) -> None:
    require_rsvg()
    pretrain, federated = usable()
    base = {record["id"]: record["base"] for record in (*pretrain, *federated)}
    known = {slug(record["name"]) for record in pretrain} - {slug(r["name"]) for r in pool("federated")}
    vendors, images = [], {}
    for vendor, (title, name, version, digest) in VENDORS.items():
        package = opened(folder, name, version, digest)
        icons = matched(package, [*federated, *pretrain])
        pixels = render_all({codes: (svg(package, icon), flip) for codes, (icon, flip) in icons.items()})
        shown: dict[bytes | None, set[str]] = {}
        for codes, image in pixels.items():
            shown.setdefault(image, set()).add(base[codes])
        kept = {}
        for record in federated:
            codes = record["id"]
            if codes not in icons:
                continue
            icon, image = icons[codes][0], pixels[codes]
            if image is None or icon in known or len(shown[image]) > 1:
                print(f"{title}: {record['name']} ({icon}) is left out")
                continue
            kept[codes], images[vendor, codes] = icon, image
        info = package["info"]
        vendors.append(
            {
                "vendor": vendor,
                "title": title,
                "package": name,
                "version": version,
                "sha256": digest,
                "license": info["license"]["spdx"],
                "author": info["author"]["name"],
                "home": info["author"]["url"],
                "icons": kept,
            }
        )
        print(f"{title}: {len(kept)} of {len(federated)} emoji")
    write_archive(FILES, "emoji-styles", vendors, lambda vendor, codes: images[vendor, codes])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
