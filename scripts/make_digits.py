"""Regenerate the bundled digits: `digits.zip` (8 px gray PNGs) and `digits.jsonl` (`{id, digit}` for each image).

Needs scikit-learn:

    python scripts/make_digits.py

scikit-learn's values 0..16 are stretched to 0..255; `round(pixel * 16 / 255)` restores them exactly.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FILES = Path(__file__).resolve().parent.parent / "src/fedloom/data/files"


def main() -> None:
    digits = load_digits()
    with (
        zipfile.ZipFile(FILES / "digits.zip", "w", zipfile.ZIP_STORED) as archive,
        open(FILES / "digits.jsonl", "w", encoding="utf-8") as lines,
    ):
        for number, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            buffer = io.BytesIO()
            # Level 0 stores instead of compressing, so the bytes do not depend on the zlib at hand.
            Image.fromarray(np.rint(values * 255 / 16).astype(np.uint8)).save(buffer, "PNG", compress_level=0)
            # A fixed date keeps the archive's bytes the same at every regeneration.
            member = zipfile.ZipInfo(f"digit-{number:04}.png", (1998, 7, 1, 0, 0, 0))
            archive.writestr(member, buffer.getvalue())
            lines.write(json.dumps({"id": f"digit-{number:04}", "digit": int(digit)}) + "\n")
    print(f"{number + 1} digits")


if __name__ == "__main__":
    main()
