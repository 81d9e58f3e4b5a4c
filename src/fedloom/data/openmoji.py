"""Add OpenMoji's drawings, in color and as lines, to the data set `emoji-styles` on this machine.

OpenMoji is licensed under CC BY-SA 4.0 and is not part of fedloom. The npm package `openmoji` holds each drawing twice as
SVG, `package/color/svg/CODES.svg` and `package/black/svg/CODES.svg`.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from fedloom.data.emoji import pool
from fedloom.data.emoji_styles import OPENMOJI
from fedloom.data.svg_drawing import render_all, require_rsvg, write_archive
from fedloom.system.errors import UserError

VERSION = "17.0.0"
PACKAGE = f"openmoji@{VERSION}"
"""Name of the npm package."""

OTHERWISE = "download it elsewhere and give --package"
SHA256 = "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68"
"""Digest of the package."""

LARGEST = 2**26
"""Maximum bytes of the package."""

LARGEST_DRAWING = 2**20
"""Maximum bytes of an SVG file."""

VENDORS = {"color": ("openmoji", "OpenMoji"), "black": ("openmoji-line", "OpenMoji line")}
"""Folder of the package → vendor and title."""

MEMBER = re.compile(r"package/(color|black)/svg/([0-9A-F]{2,6}(?:-[0-9A-F]{2,6})*)\.svg")


def fetch() -> bytes:
    """Download the package with npm; `add_openmoji` checks it.

    Raises:
        UserError: npm is missing, or it cannot get the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = ["npm", "pack", "--ignore-scripts", PACKAGE]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
        except OSError:
            raise UserError(f"npm, which downloads {PACKAGE}, is not installed; {OTHERWISE}") from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"npm cannot download {PACKAGE} ({reason}); {OTHERWISE}") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"npm took more than ten minutes for {PACKAGE}; {OTHERWISE}") from None
        files = list(Path(folder).glob("*.tgz"))
        if len(files) != 1:
            raise UserError(f"npm has not downloaded {PACKAGE} as one file; {OTHERWISE}")
        return read_package(files[0])


def read_package(package: Path) -> bytes:
    """Read a package that the user has downloaded.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with open(package, "rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{package} cannot be read ({error.strerror})") from None


def add_openmoji(content: bytes, folder: Path, digest: str = SHA256) -> dict[str, int]:
    """Draw the federated emoji of OpenMoji's package and write them to a folder.

    Args:
        content: The npm package.
        folder: Folder for `openmoji.zip` and `openmoji.json`, which are replaced.
        digest: The required SHA-256 of the package.

    Returns:
        Title → number of emoji that were drawn.

    Raises:
        UserError: The package is another one, or rsvg-convert is missing.
    """
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise UserError(
            f"this is not the npm package openmoji {VERSION}: its SHA-256 is {actual}, not {digest}; get {PACKAGE}"
        )
    require_rsvg()
    id_of = {record["id"].replace("-fe0f", ""): record["id"] for record in pool("federated")}
    drawings: dict[str, tuple[bytes, bool]] = {}
    for kind, codes, svg in _members(content):
        if (name := id_of.get(codes)) is not None:
            drawings[f"{VENDORS[kind][0]}/{name}"] = svg, False
    images = _distinct(render_all(drawings))
    vendors = [
        {
            "vendor": vendor,
            "title": title,
            "package": "openmoji",
            "version": VERSION,
            "sha256": digest,
            "license": "CC-BY-SA-4.0",
            "author": "OpenMoji",
            "home": "https://openmoji.org",
            "icons": {
                PurePosixPath(place).name: PurePosixPath(place).name
                for place in sorted(images)
                if place.startswith(f"{vendor}/")
            },
        }
        for vendor, title in VENDORS.values()
    ]
    vendors = [vendor for vendor in vendors if vendor["icons"]]
    if not vendors:
        raise UserError("the package holds no drawing of an emoji of the data set")
    write_archive(folder, OPENMOJI, vendors, lambda vendor, codes: images[f"{vendor}/{codes}"])
    return {vendor["title"]: len(vendor["icons"]) for vendor in vendors}


def _distinct(images: dict[str, bytes | None]) -> dict[str, bytes]:
    """Leave out images that cannot be drawn or are equal for several emoji of a vendor, such as outlines of flags."""
    base = {record["id"]: record["base"] for record in pool("federated")}
    bases: dict[tuple[str, bytes | None], set[str]] = {}
    for place, image in images.items():
        vendor, codes = place.split("/")
        bases.setdefault((vendor, image), set()).add(base[codes])
    return {
        place: image
        for place, image in images.items()
        if image is not None and len(bases[place.split("/")[0], image]) == 1
    }


def _members(content: bytes) -> list[tuple[str, str, bytes]]:
    """Return kind, code points and SVG of each drawing in a package, without unpacking it to disk."""
    drawings = []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                name = MEMBER.fullmatch(member.name)
                if name and member.isfile() and member.size <= LARGEST_DRAWING:
                    file = archive.extractfile(member)
                    assert file is not None
                    drawings.append((name[1], name[2].lower().replace("-fe0f", ""), file.read()))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"the package is damaged ({error})") from None
    return drawings
