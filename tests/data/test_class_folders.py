"""Folders of images by class: every image is used, left to a part that was not asked for, or named with the reason."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fedloom
from fedloom.cli.run_commands import app
from fedloom.config.schema import Data
from fedloom.data import load_data
from fedloom.data.python_data import PythonLoader, examples_of
from fedloom.system.errors import UserError
from fedloom.types import DataSet

FORMATS = {"gif": "GIF", "bmp": "BMP", "tif": "TIFF", "jpg": "JPEG", "jfif": "JPEG"}


@pytest.fixture
def fill(tmp_path: Path) -> Any:
    """Return a function that saves different images under names in the folder, several with the same beginning as NAME*4."""
    count = 0

    def filled(*names: str) -> Path:
        nonlocal count
        for name in names:
            stem, _, times = name.partition("*")
            for number in range(int(times or 1)):
                path = tmp_path / (f"{stem}/{number}.png" if times else stem)
                path.parent.mkdir(parents=True, exist_ok=True)
                values = np.random.default_rng(count).integers(0, 256, (9, 8, 3), dtype=np.uint8)
                Image.fromarray(values).save(path, FORMATS.get(path.suffix[1:].lower(), "PNG"))
                count += 1
        return tmp_path

    return filled


def load(folder: Path, **changes: Any) -> DataSet:
    return PythonLoader(str(folder))(
        Data(**{"name": "folder", "test_share": 0.25, "max_rejected": 1.0, **changes}), 0
    )


def sizes(data: DataSet) -> tuple[int, int, int]:
    return len(data.train), len(data.test), len(data.validation)


def reasons(data: DataSet) -> dict[str, str]:
    assert all(one.line is None for one in data.rejected)
    return {one.file: one.reason for one in data.rejected}


@pytest.mark.parametrize(
    ("parts", "found", "published"),
    [
        (["train", "test"], (8, 8, 0), None),
        (["Train", "Test"], (8, 8, 0), None),
        (["TRAIN", "test", "Validation"], (8, 8, 0), (8, 8, 8)),
        *[(["train", "test", name], (8, 8, 0), (8, 8, 8)) for name in ("val", "valid", "validation", "dev")],
        *[(["train", name], (6, 2, 0), (6, 2, 8)) for name in ("val", "valid", "validation", "dev", "Val")],
        (["test", "val"], (6, 2, 0), (6, 2, 8)),
        (["train"], (6, 2, 0), None),
        (["Test"], (6, 2, 0), None),
        (["val"], (6, 2, 0), None),
    ],
)
def test_names_of_parts_are_no_classes(
    parts: list[str], found: tuple[int, ...], published: tuple[int, ...] | None, fill: Any
) -> None:
    folder = fill(*(f"{part}/{name}*4" for part in parts for name in ("cat", "dog")))
    data = load(folder)
    assert sizes(data) == found
    assert {one.answer for one in data.examples} == {"cat", "dog"}
    assert {one.options for one in data.examples} == {("cat", "dog")}
    assert not data.rejected
    if published is None:
        with pytest.raises(UserError, match="no folder validation of classes"):
            load(folder, validation="published")
    else:
        asked = load(folder, validation="published")
        assert sizes(asked) == published
        assert (asked.train, asked.test, asked.rejected) == (data.train, data.test, ())
    assert len(examples_of(folder).test) == 8 * len(parts), "all are test examples"


def test_an_experiment_reads_the_folder_from_a_file_and_from_python_alike(fill: Any) -> None:
    folder = fill(*(f"{part}/{name}*4" for part in ("train", "test") for name in ("cat", "dog")))
    settings = Data(name="folder", root=str(folder))
    assert load_data(settings, 0) == PythonLoader(str(folder))(settings, 0)
    called = CliRunner().invoke(app, ["data", "check", "folder", "--root", str(folder)])
    assert called.exit_code == 0 and "8" in called.output


def test_an_experiment_may_ask_for_the_validation_part(fill: Any) -> None:
    folder = fill(*(f"{part}/{name}*4" for part in ("train", "test", "val") for name in ("cat", "dog")))
    experiment = fedloom.Experiment(
        data={"records": str(folder), "validation": "published"}, scenario={"clients": 2}
    )
    assert sizes(load_data(experiment.data, 0, experiment.datasets)) == (8, 8, 8)
    without = fedloom.Experiment(
        data={"records": str(folder / "train"), "validation": "published"}, scenario={"clients": 2}
    )
    with pytest.raises(UserError, match="no folder validation of classes"):
        load_data(without.data, 0, without.datasets)


@pytest.mark.parametrize(
    "names", [["images*4"], ["train/cat*4", "test/Cat *4"], ["train/scans*4", "val/cat*4"]]
)
def test_images_of_one_class_are_no_data_to_train_on_but_may_be_answered(names: list[str], fill: Any) -> None:
    folder = fill(*names)
    with pytest.raises(UserError, match=r"images of one class only, .* that says what each image shows"):
        load(folder)
    assert len(examples_of(folder).test) == 4 * len(names)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_damaged_image_counts_only_in_a_part_that_is_read(part: str, fill: Any) -> None:
    folder = fill("train/cat*4", "train/dog*4", "val/cat*2", "val/dog*2")
    (folder / part / "cat" / "0.png").write_bytes(b"")
    assert bool(load(folder).rejected) is (part == "train")
    assert reasons(load(folder, validation="published")) == {f"{part}/cat/0.png": "it is empty (0 bytes)"}


@pytest.mark.parametrize(
    "classes", [("train", "bus", "test"), ("train", "bus"), ("dev", "prod"), ("Val", "Hill", "test")]
)
def test_classes_may_be_called_like_parts(classes: tuple[str, ...], fill: Any) -> None:
    data = load(fill(*(f"{name}*4" for name in classes)))
    assert Counter(one.answer for one in data.examples) == dict.fromkeys(classes, 4)
    assert not data.rejected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/cat*2", "test*3"], "train with folders of classes, but the images in test lie in none"),
        (["train/cat*2", "train/dog*2", "val*3"], "but the images in val lie in none"),
        (["train/cat*2", "test/cat*2", "extra/cat*2"], "test, train with folders in them, and extra"),
        (["train/cat*2", "bus*2"], "train with folders in it, and bus, so it is unclear"),
        (["train*2", "test*2"], "images in test, train, but no folders of classes"),
        (["train*2"], "images in train, but no folders of classes"),
        (["train/cat*2", "val/cat*2", "dev/cat*2"], "dev, train, val, of which several are the same part"),
        (["train/cat*2", "Train/cat*2"], "Train, train, of which several are the same part"),
    ],
)
def test_an_unclear_layout_is_refused_with_one_that_is_right(
    names: list[str], message: str, fill: Any
) -> None:
    folder = fill(*names)
    for read in (load, examples_of):
        with pytest.raises(UserError, match=r"keep one folder of each part|give CLASS/IMAGE") as caught:
            read(folder)
        assert message in str(caught.value) and str(caught.value).startswith(f"data: {folder} holds ")


@pytest.mark.parametrize("place", ["cat/{}", "cat/deep/{}"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x.gif", "it is a GIF image, not a PNG, JPEG or WebP image"),
        ("x.BMP", "it is a BMP image, not a PNG, JPEG or WebP image"),
        ("x.tif", "it is a TIFF image, not a PNG, JPEG or WebP image"),
        ("x.jfif", "it is an image whose name does not end in .png, .jpg, .jpeg, .webp; rename it"),
        ("x", "it is an image whose name does not end in .png, .jpg, .jpeg, .webp; rename it"),
    ],
)
def test_an_image_that_is_not_read_is_named(place: str, name: str, reason: str, fill: Any) -> None:
    path = place.format(name)
    data = load(fill("cat*4", "dog*4", path))
    assert len(data.examples) == 8
    assert reasons(data) == {path: reason}


@pytest.mark.parametrize("part", ["", "train/", "test/"])
@pytest.mark.parametrize("name", ["x.png", "x.gif", "x"])
def test_an_image_in_no_class_is_named(part: str, name: str, fill: Any) -> None:
    above = ["train/", "test/"] if part else [""]
    data = load(fill(*(f"{one}{label}*4" for one in above for label in ("cat", "dog")), f"{part}{name}"))
    assert len(data.examples) == 8 * len(above)
    assert reasons(data) == {
        f"{part}{name}": "it lies in no folder of a class; move it into one, or elsewhere"
    }


def test_a_damaged_image_is_named_by_its_file(fill: Any) -> None:
    folder = fill("cat*4", "dog*4")
    (folder / "dog" / "bad.png").write_bytes(b"")
    data = load(folder)
    assert [str(one) for one in data.rejected] == ["dog/bad.png: it is empty (0 bytes)"]
    assert "cat/0.png" in {one.place for one in data.examples}


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints*3", "__MACOSX/cat*3", ".hidden/cat*3", "cat/.ipynb_checkpoints*3", "cat/__MACOSX*3", ".x.png",
        "cat/._0.png", "._classes.json",
    ],
)  # fmt: skip
def test_what_is_hidden_does_not_count(name: str, fill: Any) -> None:
    data = load(fill("cat*4", "dog*4", name))
    assert Counter(one.answer for one in data.examples) == {"cat": 4, "dog": 4}
    assert not data.rejected


@pytest.mark.parametrize("name", ["README", "README.txt", "cat/Thumbs.db", "cat/notes", "LICENSE"])
def test_files_that_are_no_images_do_not_count(name: str, fill: Any) -> None:
    folder = fill("cat*4", "dog*4")
    (folder / name).write_text("About the images.")
    data = load(folder)
    assert len(data.examples) == 8 and not data.rejected


@pytest.mark.parametrize("name", [b"caf\xe9/0.png", b"cat/\xff.png"])
def test_a_name_that_is_not_utf8_is_explained(name: bytes, fill: Any) -> None:
    folder = fill("cat*4", "dog*4")
    place = os.path.join(os.fsencode(folder), name)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.rename(folder / "dog/0.png", place)
    data = load(folder)
    assert reasons(data) == {os.fsdecode(name): "its path is not UTF-8 text; rename the file or its folder"}
    assert len(data.examples) == 7


@pytest.mark.parametrize("closed", ["cat", "cat/deep", "train/cat", "test"])
def test_a_folder_that_cannot_be_read_is_named_and_costs_no_other(
    closed: str, fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = ["train/", "test/"] if closed[0] == "t" else [""]
    folder = fill(*(f"{part}{name}*4" for part in above for name in ("cat", "dog", "eel")), f"{closed}*4")
    names_in = os.listdir

    def listed(place: Any = ".") -> list[str]:
        if os.fspath(place) == str(folder / closed):
            raise PermissionError(13, "Permission denied", str(place))
        return names_in(place)

    monkeypatch.setattr(os, "listdir", listed)
    data = load(folder)
    assert reasons(data) == {closed: "it is unreadable (Permission denied), with all that is in it"}
    assert {one.answer for one in data.examples} >= {"dog", "eel"}


def test_a_folder_that_may_not_be_read_at_all_gives_advice_about_reading(
    fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill("cat*2", "dog*2")

    def refuse(place: Any = ".") -> list[str]:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match="allow this user to read it"):
        load(folder)


def test_links_to_folders_are_followed_for_classes_and_named_below(
    fill: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, elsewhere = fill("cat*4", "dog*4", "other/eel*4"), tmp_path_factory.mktemp("elsewhere")
    (folder / "other" / "eel").rename(elsewhere / "eel")
    (folder / "other").rmdir()
    (folder / "eel").symlink_to(elsewhere / "eel")
    (folder / "cat" / "again").symlink_to(folder)
    data = load(folder)
    assert Counter(one.answer for one in data.examples) == {"cat": 4, "dog": 4, "eel": 4}
    assert reasons(data) == {"cat/again": "it is a link to a folder, which only the folder of a class may be"}


@pytest.mark.parametrize(
    ("train", "test"), [("cat", "Cat"), ("tabby cat", "Tabby  Cat"), ("caf\u00e9", "cafe\u0301")]
)
def test_classes_that_differ_as_answers_may_are_one_as_the_docs_say(train: str, test: str, fill: Any) -> None:
    data = load(fill(f"train/{train}*4", "train/dog*4", f"test/{test}*2", "test/dog*2"))
    assert {one.options for one in data.examples} == {tuple(sorted([train, "dog"]))}
    assert sizes(data) == (8, 4, 0)
