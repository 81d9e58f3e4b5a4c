"""Regenerate the bundled emoji data set: `emoji.zip` (64 px PNGs) and `emoji.jsonl` (one record for each image).

Needs three Debian packages and Pillow built with raqm:

    apt-get install fonts-noto-color-emoji unicode-data unicode-cldr-core
    python scripts/make_emoji.py

A record is `{id, base, pool, group, subgroup, name, keywords}`. `base` names the emoji without skin tone
and gender, so that variants of one emoji are never on two sides of a split; `pool` ("pretrain" or
"federated") depends on `base` alone and never changes: the bundled model saw only the first.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
CLDR = Path("/usr/share/unicode/cldr/common")
FILES = Path(__file__).resolve().parent.parent / "src/fedloom/data/files"
SIDE = 64
PRETRAIN_SHARE = 0.42

# Unicode's nine groups merged into eight and named by one plain word each, which a language model knows:
# "Activities" (85 images) are mostly things one holds.
GROUPS = {
    "Smileys & Emotion": "face",
    "People & Body": "person",
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Travel & Places": "place",
    "Activities": "object",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
}

SKIN_TONES = range(0x1F3FB, 0x1F3FF + 1)
DROPPED = {0xFE0F, 0x2640, 0x2642}  # presentation selector, female sign, male sign
# Code points that differ from another one only by gender; the first of each row stands for all.
GENDERED = (
    (0x1F9D1, 0x1F468, 0x1F469),  # person, man, woman
    (0x1F9D2, 0x1F466, 0x1F467),  # child, boy, girl
    (0x1F9D3, 0x1F474, 0x1F475),  # older person, old man, old woman
    (0x1F385, 0x1F936),  # Santa Claus, Mrs. Claus
    (0x1FAC5, 0x1F934, 0x1F478),  # person with crown, prince, princess
    (0x1F483, 0x1F57A),  # woman dancing, man dancing
    (0x1FAC4, 0x1FAC3, 0x1F930),  # pregnant person, man, woman
    (0x1F9D1_200D, 0x1F46B, 0x1F46C, 0x1F46D),  # people holding hands
)
NEUTRAL = {code: row[0] for row in GENDERED for code in row}
# Couples and families are one image with other members each time.
SAME_BY_NAME = (
    (re.compile(r"^family"), "family"),
    (re.compile(r"^kiss(:|$)"), "kiss"),
    (re.compile(r"^couple with heart"), "couple with heart"),
    (re.compile(r"^(people|men|women|woman and man) holding hands"), "people holding hands"),
    (re.compile(r"^(people|men|women) with bunny ears"), "people with bunny ears"),
    (re.compile(r"^(people|men|women) wrestling"), "people wrestling"),
)


def base_of(codes: list[int], name: str) -> str:
    """Return the emoji without skin tone and gender, which all of its variants share."""
    for pattern, base in SAME_BY_NAME:
        if pattern.match(name):
            return base
    kept = [NEUTRAL.get(code, code) for code in codes if code not in SKIN_TONES and code not in DROPPED]
    while kept and kept[-1] == 0x200D:
        kept.pop()
    return "-".join(f"{code:x}" for code in kept)


def annotations() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read English short names and keywords by character, without presentation selectors."""
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for folder in ("annotations", "annotationsDerived"):
        for node in ElementTree.parse(CLDR / folder / "en.xml").iter("annotation"):
            key, text = node.attrib["cp"].replace("\ufe0f", ""), node.text or ""
            if node.attrib.get("type") == "tts":
                names[key] = text
            else:
                keywords[key] = [word.strip() for word in text.split("|")]
    return names, keywords


def rows() -> list[tuple[list[int], str, str, str]]:
    """Return (code points, group, subgroup, name) of every fully-qualified emoji without skin tone."""
    emoji, group, subgroup = [], "", ""
    for line in EMOJI_TEST.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        elif "; fully-qualified" in line:
            codes = [int(code, 16) for code in line.split(";")[0].split()]
            if any(code in SKIN_TONES for code in codes):
                continue
            match = re.search(r"#\s+\S+\s+E\d+\.\d+\s+(.+)$", line)
            assert match, line
            emoji.append((codes, group, subgroup, match.group(1)))
    return emoji


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """Draw one emoji on white at 64 px; return None if the font has no single glyph for it."""
    left, top, right, bottom = font.getbbox(text)
    if not 100 <= right - left <= 140 or bottom <= top:  # several glyphs: the font lacks the combination
        return None
    canvas = Image.new("RGB", (136, 136), "white")
    ImageDraw.Draw(canvas).text(
        (68 - (left + right) / 2, 68 - (top + bottom) / 2), text, font=font, embedded_color=True
    )
    if canvas.getextrema() == ((255, 255),) * 3:
        return None
    return canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    font = ImageFont.truetype(str(FONT), 109)
    names, keywords = annotations()
    records, skipped = [], []
    with zipfile.ZipFile(FILES / "emoji.zip", "w", zipfile.ZIP_STORED) as archive:
        for codes, group, subgroup, name in rows():
            text = "".join(map(chr, codes))
            key = text.replace("\ufe0f", "")
            image = render(text, font)
            if image is None or key not in keywords:
                skipped.append(name)
                continue
            base = base_of(codes, name)
            share = int.from_bytes(hashlib.sha256(f"pool:{base}".encode()).digest()[:4], "big") / 2**32
            identifier = "-".join(f"{code:x}" for code in codes)
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            # A fixed date keeps the archive's bytes the same at every regeneration.
            archive.writestr(zipfile.ZipInfo(f"{identifier}.png", (2022, 8, 12, 0, 0, 0)), buffer.getvalue())
            records.append(
                {
                    "id": identifier,
                    "base": base,
                    "pool": "pretrain" if share < PRETRAIN_SHARE else "federated",
                    "group": GROUPS[group],
                    "subgroup": subgroup,
                    "name": names.get(key, name),
                    "keywords": keywords[key],
                }
            )
    with open(FILES / "emoji.jsonl", "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    print(
        f"{len(records)} images, {len(skipped)} left out (no single glyph or no keywords): {skipped[:12]} …"
    )


if __name__ == "__main__":
    main()
