"""Read a folder that holds one folder of images for each class, as `imagefolder` data sets do.

Its layout is `CLASS/IMAGE`, or `PART/CLASS/IMAGE` with the parts in `PARTS`, in capitals or not. Parts mean what files of records
of these names mean (`fedloom.data.own_folder`): `train` and `test` decide; if only one of them is there, the test set is drawn
from it; and a validation part belongs to neither, and is read only if `data.validation` is "published".

Names of classes are answers: those that differ only in case, white space or Unicode form are the same class. Images in folders
below that of a class belong to it. An image that cannot be used is skipped with the reason: one that is damaged, of another format
or without one of the `ENDINGS`, one that lies in no folder of a class, and all in a folder that cannot be read, or that is a link
(only parts and classes may be links). Hidden files and folders, `__MACOSX`, and files that are no images do not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedloom.data.duplicates import normalized_text
from fedloom.data.images import fully_checked_image, holds_image, quick_check
from fedloom.data.record_fields import is_utf8
from fedloom.data.record_files import Record, quoted
from fedloom.data.record_folder import SPLITS, SUFFIXES, VALIDATION, VALIDATION_NAMES
from fedloom.system.errors import UserError, reading
from fedloom.types import LazyImage, Rejected

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
OTHER_ENDINGS = (
    ".gif", ".bmp", ".dib", ".tif", ".tiff", ".jfif", ".jpe", ".jp2", ".jxl", ".heic", ".heif", ".avif", ".svg",
    ".ppm", ".pgm", ".pbm", ".tga", ".ico", ".psd", ".dcm",
)  # fmt: skip
"""Endings of images that are named instead of read. Without any ending, the first bytes say what a file is."""

PARTS = {**{split: split for split in SPLITS}, **dict.fromkeys(VALIDATION_NAMES, VALIDATION)}
"""Name of a folder above the classes, in lower case → the part that its images belong to."""

QUESTION = "Which of the classes is it?"
LAYOUTS = "give CLASS/IMAGE, or train/CLASS/IMAGE and, if you have them, test/CLASS/IMAGE and validation/CLASS/IMAGE"


def is_class_folder(root: Path) -> bool:
    """Return whether a folder has no file of records, and images in folders below it.

    Raises:
        UserError: The folder may not be read.
    """
    with reading(root):
        names = os.listdir(root)
    records = any(_counts(name) and Path(name).suffix.lower() in SUFFIXES for name in names)
    return not records and any(_holds_images(folder) for folder in _folders(root))


def class_records(
    root: Path, images: dict[str, LazyImage], *, validation: bool
) -> Iterator[Record | Rejected]:
    """Yield a record for each image: its class is the answer, and its part the split if folders divide the images.

    Args:
        root: A folder in a layout that the module's docstring describes.
        images: The images, to which each record's is added by the name that the record gives it.
        validation: Whether to read the validation part, too.

    Raises:
        UserError: The layout is unclear; the message says what would be right.
    """
    for split, part in class_parts(root, validation=validation):
        yield from _part(root, part, split, images)


def require_several_classes(root: Path) -> None:
    """Refuse a folder with images of a single class, such as a folder `images` without the records that belong to it.

    Raises:
        UserError: There is one class only, or the layout is unclear.
    """
    folders = [folder for _, part in class_parts(root, validation=False) for folder in _folders(part)]
    filled = [folder for folder in folders if _holds_images(folder)]
    if len({normalized_text(folder.name) for folder in filled}) == 1:
        raise UserError(
            f"data: {root} holds images of one class only, {quoted(filled[0].name)}, so there is nothing to tell apart; give a folder "
            "of images for each class, or a file of records (such as data.jsonl) that says what each image shows"
        )


def class_parts(root: Path, *, validation: bool) -> list[tuple[str | None, Path]]:
    """Return the folders that hold classes with their parts; the part is None if the test set is to be drawn.

    Raises:
        UserError: The layout is unclear; the message says what would be right.
    """
    parts = _part_folders(root)
    splits = {PARTS[part.name.lower()]: part for part in parts}
    if not parts:
        return [(None, root)]
    if len(splits) < len(parts):
        raise UserError(
            f"data: {root} holds {_listed(parts)}, of which several are the same part; keep one folder of each part"
        )
    divided = {"train", "test"} <= splits.keys()
    others = [(split if divided else None, part) for split, part in splits.items() if split != VALIDATION]
    if not others:  # as a file of records that is alone, whatever its name
        return [(None, part) for part in parts]
    return others + ([(VALIDATION, splits[VALIDATION])] if validation and VALIDATION in splits else [])


def _part_folders(root: Path) -> list[Path]:
    """Return the folders that are parts of the data; none if the folders in `root` are classes.

    A class may be called "train", as long as its images are directly in its folder.
    """
    folders = _folders(root)
    named = [folder for folder in folders if folder.name.lower() in PARTS]
    divided = [folder for folder in named if any(map(_holds_images, _folders(folder)))]
    filled = [folder for folder in folders if folder in divided or _holds_images(folder)]
    if named and not divided and filled and all(folder in named for folder in filled):
        raise UserError(
            f"data: {root} holds images in {_listed(filled)}, but no folders of classes, so nothing says what they show; {LAYOUTS}"
        )
    if not divided:
        return []
    if others := [folder for folder in filled if folder not in named]:
        raise UserError(
            f"data: {root} holds {_listed(divided)} with folders in {'it' if len(divided) == 1 else 'them'}, and "
            f"{_listed(others)}, so it is unclear which folders are the classes; {LAYOUTS}"
        )
    if unsorted := [folder for folder in filled if folder not in divided]:
        raise UserError(
            f"data: {root} holds {_listed(divided)} with folders of classes, but the images in {_listed(unsorted)} lie in none; "
            f"{LAYOUTS}, or move {_listed(unsorted)} elsewhere"
        )
    return named


def _part(
    root: Path, part: Path, split: str | None, images: dict[str, LazyImage]
) -> Iterator[Record | Rejected]:
    """Yield the records of a folder of classes, and what cannot be used."""
    for one in _entries(part, root):
        if isinstance(one, Rejected):
            yield one
        elif one.is_dir():
            for image in _images(_files(one, root)):
                yield image if isinstance(image, Rejected) else _record(root, image, one.name, split, images)
        elif next(_images([one]), None) is not None:
            yield _rejected(root, one, "it lies in no folder of a class; move it into one, or elsewhere")


def _record(
    root: Path, file: Path, name: str, split: str | None, images: dict[str, LazyImage]
) -> Record | Rejected:
    """Return the record of an image in the folder of a class of some name, or why it cannot be used."""
    place = file.relative_to(root).as_posix()
    if not is_utf8(place):
        return _rejected(root, file, "its path is not UTF-8 text; rename the file or its folder")
    if file.suffix.lower() not in ENDINGS:
        reason = quick_check(file) or f"an image whose name does not end in {', '.join(ENDINGS)}; rename it"
        return _rejected(root, file, f"it is {reason}")
    image = fully_checked_image(file)
    if isinstance(image, str):
        return _rejected(root, file, f"it is {image}")
    images[key := str(len(images))] = image
    values = {"id": place, "image": key, "question": QUESTION, "answer": name}
    return Record(place, "", 0, {**values, **({} if split is None else {"split": split})})


def _images(files: Iterable[Path | Rejected]) -> Iterator[Path | Rejected]:
    """Yield the files that are images, of any format, and unchanged what could not be read."""
    for file in files:
        if isinstance(file, Rejected) or _is_image(file):
            yield file


def _is_image(file: Path) -> bool:
    ending = file.suffix.lower()
    return ending in ENDINGS or ending in OTHER_ENDINGS or (not ending and holds_image(file))


def _holds_images(folder: Path) -> bool:
    return any(isinstance(one, Path) for one in _images(_files(folder, folder)))


def _files(folder: Path, root: Path) -> Iterator[Path | Rejected]:
    """Yield the files in a folder and below it, in the order of their names, and folders that are not read with the reason."""
    for one in _entries(folder, root):
        if isinstance(one, Rejected) or not one.is_dir():
            yield one
        elif one.is_symlink():  # may form a circle
            yield _rejected(root, one, "it is a link to a folder, which only the folder of a class may be")
        else:
            yield from _files(one, root)


def _folders(folder: Path) -> list[Path]:
    return [one for one in _entries(folder, folder) if isinstance(one, Path) and one.is_dir()]


def _entries(folder: Path, root: Path) -> list[Path | Rejected]:
    """Return what is in a folder, in the order of the names, or that the folder cannot be read."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if _counts(name)]
    except OSError as error:
        return [_rejected(root, folder, f"it is unreadable ({error.strerror}), with all that is in it")]


def _counts(name: str) -> bool:
    """Return whether a name is neither hidden nor that of the folder in which archives made on a Mac keep attributes."""
    return not name.startswith(".") and name != "__MACOSX"


def _rejected(root: Path, path: Path, reason: str) -> Rejected:
    return Rejected(path.relative_to(root).as_posix(), None, reason)


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(folder.name for folder in folders)
