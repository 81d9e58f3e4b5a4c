"""Read a folder that holds one folder of images for each class, as `imagefolder` data sets do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
"""Name of a folder above the classes → the part that its images belong to."""

QUESTION = "Which of the classes is it?"


def is_class_folder(root: Path) -> bool:
    """Return whether a folder has no file of records, and images in folders below it."""
    records = any(file.suffix.lower() in (".jsonl", ".json", ".csv") for file in root.iterdir())
    return not records and next(class_records(root), None) is not None


def class_records(root: Path) -> Iterator[dict[str, Any]]:
    """Yield a record for each image: its path, its class as the answer, and its part if folders divide the images.

    Args:
        root: A folder of `CLASS/IMAGE`, or of `train/CLASS/IMAGE` and `test/CLASS/IMAGE`.
    """
    parts = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name in SPLITS]
    divided = {folder.name for folder in parts} >= {"train", "test"}
    for part in parts if divided else [root]:
        for folder in sorted(one for one in part.iterdir() if one.is_dir()):
            for file in sorted(folder.rglob("*")):
                if file.suffix.lower() in ENDINGS:
                    record = {
                        "id": file.relative_to(root).as_posix(),
                        "image": file,
                        "question": QUESTION,
                        "answer": folder.name,
                    }
                    yield {**record, **({"split": SPLITS[part.name]} if divided else {})}
