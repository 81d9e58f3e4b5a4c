"""Each bad image and record is used, or skipped with the right reason, and no other record is lost."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from fedloom.config.schema import Data
from fedloom.data.images import FileImage, fully_checked_image
from fedloom.data.own_folder import load_folder

from .records import IMAGES, RECORDS, fill, pixels


def test_there_are_enough_hostile_records() -> None:
    assert len(IMAGES) + len(RECORDS) >= 100


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_used_or_its_reason_is_right(name: str, tmp_path: Path) -> None:
    case = IMAGES[name]
    path = tmp_path / "image"
    path.write_bytes(case.build())
    checked = fully_checked_image(path)
    reason = checked if isinstance(checked, str) else None
    if case.reason is not None:
        assert reason is not None and case.reason in reason
        return
    assert reason is None
    picture = FileImage(path)
    pixels = picture.pixels()
    assert picture.size == (pixels.shape[1], pixels.shape[0]) == case.size
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


LOSSLESS = [
    "png", "webp", "interlaced", "interlaced, without its end", "ancillary chunk with a wrong checksum", "text in png, bomb", "texts in png, together a bomb",
    "transparency of a wrong length", "profile in png, bomb", "pixel chunk with a wrong checksum", "png without its end",
    "png with more behind", "animated png", "animated webp", "exif in webp, noise", "animation header cut short",
]  # fmt: skip


@pytest.mark.parametrize("name", LOSSLESS)
def test_whole_pixels_are_the_pixels(name: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(IMAGES[name].build())
    np.testing.assert_array_equal(FileImage(tmp_path / "image").pixels(), pixels())


def test_no_other_record_is_lost(tmp_path: Path) -> None:
    images, records = fill(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = load_folder(Data(name="folder", root=str(tmp_path), max_rejected=1.0), 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # a GiB, in KiB
    cases = [*(IMAGES[name] for name in images), *(RECORDS[name] for name in records)]
    reasons = {one.line: one.reason for one in data.rejected}
    assert set(reasons) == {2 * at + 2 for at, case in enumerate(cases) if case.reason is not None}
    for at, case in enumerate(cases):
        assert case.reason is None or case.reason in reasons[2 * at + 2]
    good = {f"good {2 * at}" for at in range(len(cases))}
    assert good <= {one.text for one in (*data.train, *data.test)}
    ids = [one.id for one in (*data.train, *data.test)]
    assert len(set(ids)) == len(ids)
    for one in data.rejected:
        str(one).encode()
