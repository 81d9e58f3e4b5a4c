"""Render emoji from SVG at 64 px on white, and write the drawings of several vendors to one archive with a list.

An archive `NAME.zip` holds the images as `VENDOR/CODES.webp`, lossless. The list `NAME.json` next to it has an object
for each vendor: `vendor`, `title`, `package`, `version`, `sha256` of the package, `license`, `author`, `home`, and
`icons`, which maps code points ("1f469-200d-1f680") to the name of the drawing in the vendor's package; and, except in
lists of earlier versions, `archive`, the SHA-256 of `NAME.zip`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic
from fedloom.system.temporary_folders import temporary_folder

SIDE = 64
DATE = (2022, 8, 12, 0, 0, 0)
"""A fixed date keeps an archive's bytes the same whenever it is written."""

COMMAND = (
    "rsvg-convert",
    f"--width={SIDE}",
    f"--height={SIDE}",
    "--keep-aspect-ratio",
    "--background-color=white",
)


def require_rsvg() -> None:
    """Raise a UserError that names the package to install if rsvg-convert is missing."""
    if shutil.which(COMMAND[0]) is None:
        raise UserError(
            f"{COMMAND[0]} is missing, which draws SVG files; install the package librsvg2-bin (Debian, Ubuntu), "
            "librsvg2-tools (Fedora) or librsvg (Homebrew, conda)"
        )


def render_svg(svg: bytes, mirrored: bool = False) -> bytes | None:
    """Return an SVG image as a lossless WebP file of 64 × 64 pixels on white, or None if it cannot be rendered.

    Args:
        svg: The file's bytes; nothing outside it is read.
        mirrored: Whether to flip the image horizontally.
    """
    try:
        done = subprocess.run(COMMAND, input=svg, capture_output=True, timeout=60)
        with Image.open(io.BytesIO(done.stdout), formats=("PNG",)) as image:
            image = image.convert("RGB")
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if image.getextrema() == ((255, 255),) * 3:
        return None
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", lossless=True, quality=100, method=6, exact=True)
    return buffer.getvalue()


def render_all(images: Mapping[str, tuple[bytes, bool]]) -> dict[str, bytes | None]:
    """Render many images, two at a time; see `render_svg` for the arguments of each."""
    with ThreadPoolExecutor(2) as workers:
        return dict(zip(images, workers.map(lambda image: render_svg(*image), images.values()), strict=True))


def write_archive(
    folder: Path, name: str, vendors: Iterable[Mapping[str, Any]], image: Callable[[str, str], bytes]
) -> None:
    """Write `NAME.zip` and then `NAME.json`, which holds the digest of the archive.

    If the process ends between the two, an earlier list does not match the archive, and readers notice that.

    Args:
        folder: The folder, which is created if it does not exist.
        name: NAME.
        vendors: The objects of the list.
        image: (vendor, code points) → the encoded image.
    """
    vendors, buffer = list(vendors), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for vendor in vendors:
            for codes in vendor["icons"]:
                member = zipfile.ZipInfo(f"{vendor['vendor']}/{codes}.webp", DATE)
                archive.writestr(member, image(vendor["vendor"], codes))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    listed = [{**vendor, "archive": digest} for vendor in vendors]
    with temporary_folder(folder, name) as place:
        write_atomic(place / f"{name}.zip", buffer.getvalue())
        write_atomic(
            place / f"{name}.json", (json.dumps(listed, ensure_ascii=False, indent=0) + "\n").encode()
        )
        for ending in ("zip", "json"):
            os.replace(place / f"{name}.{ending}", folder / f"{name}.{ending}")
