"""Data from Python and from files: every form gives the same examples, and bad ones one message."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedloom
from fedloom.data import load_data
from fedloom.data.python_data import PythonLoader, examples_of
from fedloom.data.python_images import python_image
from fedloom.system.errors import UserError

COUNT = 8


def picture(number: int) -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (12, 13, 3), dtype=np.uint8)
    return Image.fromarray(values)


class DataFrame:
    """A stand-in for that of pandas, which need not be installed; recognized by its name."""

    def __init__(self, rows: list[dict[str, Any]], columns: Sequence[Any] | None = None) -> None:
        self._rows, self.columns = rows, list(rows[0]) if columns is None else columns

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return self._rows


class Dataset:
    """A stand-in for that of datasets."""

    def __init__(self, rows: list[dict[str, Any]], features: Mapping[str, Any] | None = None) -> None:
        self._rows, self.features = rows, features

    def __iter__(self) -> Any:
        return iter(self._rows)


class ClassLabel:
    """A stand-in for the feature of datasets whose values are numbers of classes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def int2str(self, number: int) -> str:
        return self.names[number]


class NAType:
    """A stand-in for the missing cell of pandas, which is neither true nor false."""

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


DataFrame.__module__, Dataset.__module__ = "pandas.core.frame", "datasets.arrow_dataset"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of records and images, the same as CSV."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(COUNT):
        picture(number).save(folder / f"{number}.png")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(None)))
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "image", "text", "question", "answer", "options", "group"])
        writer.writeheader()
        writer.writerows({**row, "options": "yes|no"} for row in rows(None))
    return folder


def rows(folder: Path | None) -> list[dict[str, Any]]:
    """Records with images as names, or, given a folder, as PIL images."""
    return [
        {
            "id": f"r{number}",
            "image": f"{number}.png" if folder is None else Image.open(folder / f"{number}.png"),
            "text": f'A note, "{number}"',
            "question": "Is it?",
            "answer": ["yes", "no"][number % 2],
            "options": ["yes", "no"],
            "group": "north" if number < 3 else "south",
        }
        for number in range(COUNT)
    ]


def as_hugging_face(folder: Path) -> list[dict[str, Any]]:
    """Records with images as Hugging Face keeps them in Parquet."""
    return [
        {**row, "image": {"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]}}
        for row in rows(None)
    ]


def forms(folder: Path) -> Mapping[str, Any]:
    plain = rows(folder)
    gaps = [{**row, "system": float("nan"), "split": NAType()} for row in plain]
    arrays = [{**row, "options": np.array(row["options"], dtype=object)} for row in as_hugging_face(folder)]
    scalars = [{**row, "answer": np.str_(row["answer"]), "system": np.float32("nan")} for row in plain]
    number = {"yes": 1, "no": 0}
    labels = [{**row, "answer": np.int64(number[row["answer"]])} for row in plain]
    return {
        "dicts": plain,
        "paths": [{**row, "image": folder / row["image"]} for row in rows(None)],
        "arrays": [{**row, "image": np.array(row["image"])} for row in plain],
        "frame": DataFrame(gaps),
        "frame of arrays": DataFrame(arrays),
        "numpy scalars": scalars,
        "bytes": [{**row, "image": row["image"]["bytes"]} for row in as_hugging_face(folder)],
        "hugging face": as_hugging_face(folder),
        "hugging face paths": [
            {**row, "image": {"bytes": None, "path": str(folder / row["image"])}} for row in rows(None)
        ],
        "lists of images": [{**row, "image": None, "images": [row["image"]]} for row in plain],
        "arrays of images": [
            {**row, "image": None, "images": np.array([row["image"]], dtype=object)}
            for row in as_hugging_face(folder)
        ],
        "class labels": Dataset(labels, {"answer": ClassLabel(["no", "yes"]), "text": object()}),
        "dataset": Dataset(plain),
        "csv": folder / "table.csv",
        "jsonl": str(folder / "data.jsonl"),
    }


FORMS = (
    "dicts", "paths", "arrays", "frame", "frame of arrays", "numpy scalars", "bytes", "hugging face", "hugging face paths",
    "lists of images", "arrays of images", "class labels", "dataset", "csv", "jsonl",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(form: str, folder: Path) -> None:
    require_same_examples(forms(folder)[form])


def require_same_examples(value: Any) -> None:
    found = examples_of(value)
    assert found.rejected == ()
    assert [example.id for example in found.test] == [f"r{number}" for number in range(COUNT)]
    for number, example in enumerate(found.test):
        assert example.image is not None and np.array_equal(example.image.pixels(), np.array(picture(number)))
        assert (example.answer, example.label) == (["yes", "no"][number % 2], number % 2)
        assert (example.text, example.options) == (f'A note, "{number}"', ("yes", "no"))
        assert example.group == ("north" if number < 3 else "south")


def test_real_frames_of_parquet_files_are_read(folder: Path, tmp_path: Path) -> None:
    """Whose lists are arrays, and whose images are bytes with a path."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    file = tmp_path / "table.parquet"
    pandas.DataFrame(as_hugging_face(folder)).to_parquet(file)
    require_same_examples(pandas.read_parquet(file))
    require_same_examples(file)
    frame = pandas.DataFrame(rows(folder))
    frame["system"] = pandas.array([pandas.NA] * COUNT, dtype="string")
    require_same_examples(frame)


def test_real_parquet_files_name_images_beside_them(folder: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows(None)), folder / "names.parquet")
    require_same_examples(folder / "names.parquet")


def test_a_real_dataset_gives_names_of_classes_and_its_images(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            **{name: datasets.Value("string") for name in ("id", "text", "question", "group")},
            "image": datasets.Image(),
            "answer": datasets.ClassLabel(names=["no", "yes"]),
            "options": datasets.Sequence(datasets.Value("string")),
        }
    )
    found = datasets.Dataset.from_list(as_hugging_face(folder), features=features)
    require_same_examples(found)
    require_same_examples(found.to_iterable_dataset())
    require_same_examples(
        found.to_pandas().assign(answer=lambda frame: frame["answer"].map(["no", "yes"].__getitem__))
    )


def test_a_conversation_shows_images_of_python(folder: Path) -> None:
    image = Image.open(folder / "3.png")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Is it?"}]
    turns = np.array(
        [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}], dtype=object
    )
    marked = [{"from": "human", "value": "<image>\nIs it?"}, {"from": "gpt", "value": "yes"}]
    (folder / "turns.json").write_text(json.dumps([{"images": ["3.png"], "conversations": marked}]))
    for value in (
        [{"messages": turns}],
        [{"images": [image], "conversations": marked}],
        folder / "turns.json",
    ):
        (example,) = examples_of(value).test
        assert (example.question, example.answer) == ("Is it?", "yes")
        assert example.image is not None and np.array_equal(example.image.pixels(), np.array(picture(3)))


def test_class_labels_that_are_missing_or_unknown_cost_their_record_only() -> None:
    answers = [0, -1, 2, None, 1]
    data = [{"text": str(number), "question": "?", "answer": answer} for number, answer in enumerate(answers)]
    found = examples_of(Dataset(data, {"answer": ClassLabel(["cat", "dog"])}))
    assert [one.answer for one in found.test] == ["cat", "dog"]
    assert [str(one) for one in found.rejected] == [
        "data: row 1: answer is missing",
        'data: row 2: answer is the number 2, not text; give the name of the class, or "2" if that is the answer',
        "data: row 3: answer is missing",
    ]


def test_data_that_cannot_be_read_are_named_by_row_and_column(folder: Path) -> None:
    class Broken:
        def tolist(self) -> Any:
            raise RuntimeError("no storage")

    class Ends:
        def __iter__(self) -> Any:
            yield from rows(folder)[:2]
            raise OSError("the shard is gone")

    Ends.__module__, Ends.__qualname__ = "datasets.iterable_dataset", "IterableDataset"
    Ends.__name__ = "IterableDataset"
    data = rows(folder)
    data[5]["text"] = Broken()
    found = examples_of(data)
    assert len(found.test) == COUNT - 1
    (rejected,) = found.rejected
    assert "row 5: text cannot be read: RuntimeError: no storage" in str(rejected)
    with pytest.raises(UserError, match=r"the data passed from Python could not be read at row 2: .*shard"):
        examples_of(Ends())
    experiment = fedloom.Experiment(data=Ends())
    with pytest.raises(
        UserError, match=r"^data: the data passed from Python could not be read at row 2: .*shard"
    ):
        load_data(experiment.data, 0, experiment.datasets)


def test_an_experiment_takes_the_data_themselves(folder: Path) -> None:
    experiment = fedloom.Experiment(
        data={"records": rows(folder), "test_share": 0.5}, scenario={"clients": 2}
    )
    data = load_data(experiment.data, experiment.seed, experiment.datasets)
    own = fedloom.Experiment(data={"name": "folder", "root": str(folder), "test_share": 0.5})
    stored = load_data(own.data, own.seed)
    assert (len(data.train), len(data.test)) == (4, 4)
    assert [one.id for one in data.test] == [one.id for one in stored.test], "divided as a folder is"
    assert fedloom.Experiment(data=rows(folder)).data.name == "given"


def test_a_folder_of_classes_is_a_data_set(tmp_path: Path) -> None:
    seeds = list[int]()
    for part, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                picture(len(seeds := [*seeds, 0])).save(tmp_path / part / name / f"{number}.png")
    experiment = fedloom.Experiment(data=str(tmp_path))
    data = load_data(experiment.data, 0, experiment.datasets)
    assert (len(data.train), len(data.test)) == (6, 4)
    assert {(one.answer, one.options) for one in data.examples} == {
        ("cat", ("cat", "dog")),
        ("dog", ("cat", "dog")),
    }
    undivided = examples_of(tmp_path / "train")
    assert sorted(one.answer for one in undivided.test) == ["cat"] * 3 + ["dog"] * 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "nowhere.png"}, "nowhere.png is missing"),
        ({"image": 3}, "expected a path, a PIL image or an array"),
        ({"image": None, "text": None}, "neither image nor text"),
        ({"answer": "maybe"}, "not among the options"),
        ({"question": float("nan")}, "question"),
        ({"question": Path("x")}, "question is a value of type"),
        ({"answer": np.int64(3)}, 'answer is the number 3, not text; give the name of the class, or "3"'),
        ({"image": {"bytes": b"no image"}}, "image: it is"),
        ({"image": b""}, "image: it is empty (0 bytes)"),
        ({"image": {"bytes": b"", "path": "0.png"}}, "image: it is empty (0 bytes)"),
        ({"image": "\0image 99"}, "image holds a NUL character"),
        ({"image": "\0image 0"}, "image holds a NUL character"),
        ({"image": "\0image x"}, "image holds a NUL character"),
        ({"image": {"path": "\0image 0", "bytes": None}}, "image holds a NUL character"),
        ({"image": None, "images": [np.str_("\0image 0")]}, "images holds a NUL character"),
        ({"question": "<img>\0image 0</img>?"}, "question holds a NUL character"),
        ({1: "a", "1": "b"}, "it has several keys of the name '1'"),
        ({"image": {"bytes": None, "path": None}, "text": None}, "neither image nor text"),
    ],
)
def test_a_bad_record_costs_that_record_only(change: dict[str, Any], reason: str, folder: Path) -> None:
    data = rows(folder)
    data[2] |= change
    found = examples_of(data)
    assert len(found.test) == COUNT - 1
    (rejected,) = found.rejected
    assert reason in str(rejected) and "row 2" in str(rejected)


def test_a_damaged_line_of_a_table_costs_that_line_only(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text('text;question;answer\n"a;b";?;x\nonly one\nc;?;y\n', encoding="utf-8-sig")
    found = examples_of(file)
    assert [(one.text, one.answer) for one in found.test] == [("a;b", "x"), ("c", "y")]
    assert [rejected.line for rejected in found.rejected] == [3]


@pytest.mark.parametrize("inside", ["", "data.jsonl", "table.csv"])
def test_a_path_that_is_not_utf_8_is_read_from_python(inside: str, folder: Path, tmp_path: Path) -> None:
    copy = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("turns.json"))
    assert {one.id for one in examples_of(copy / inside).test} == {f"r{number}" for number in range(COUNT)}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "expected a list of dicts"),
        ("nowhere.csv", "nowhere.csv does not exist"),
        (b"bytes", "expected a list of dicts"),
    ],
)
def test_other_values_are_refused(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        examples_of(value)


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "table.parquet").touch()
    with pytest.raises(UserError, match="pip install pyarrow"):
        examples_of(tmp_path / "table.parquet")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_a_pil_image_is_seen_as_the_same_image_in_a_file(mode: str, tmp_path: Path) -> None:
    image = picture(0).convert("RGB")
    image = Image.new("I;16", (12, 13), 40_000) if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path)
    with Image.open(path) as stored:
        assert np.array_equal(python_image(stored).pixels(), python_image(path).pixels())


def filled(mode: str, value: float) -> Image.Image:
    return Image.new(mode, (3, 2), value)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        *((Image.new(mode, size), "the PIL image has no pixels") for mode in ("RGB", "L", "I;16", "F")
          for size in ((0, 0), (0, 5), (5, 0))),
        *((filled("F", value), "mode F have no fixed range") for value in (0.0, 0.5, 1.0, 200.0, float("nan"))),
        *((filled("I", value), "mode I have no fixed range") for value in (-5, 0, 255, 65_535, 70_000)),
        (Image.new("1", (20_000, 20_000)), "20,000 × 20,000 pixels, more than 50,000,000"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)), "20,000 × 20,000 pixels, more than 50,000,000"),
        (np.zeros((0, 5, 3), np.uint8), "an array of pixels must have the shape"),
        (np.zeros((5, 5, 3), np.float32), "an array of pixels must have the shape"),
    ],
)  # fmt: skip
def test_pixels_that_would_become_others_are_refused(image: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        python_image(image)
    row = {"image": image, "question": "?", "answer": "!"}
    found = examples_of([row, row | {"image": picture(0)}])
    assert len(found.test) == 1 and [reason in str(one) for one in found.rejected] == [True]


@pytest.mark.parametrize(
    "columns", [["question", "answer", "text", "answer"], ["question", "answer", "text", 1, "1"]]
)
def test_columns_of_one_name_are_refused(columns: list[Any]) -> None:
    frame = DataFrame([{"question": "?", "answer": "!", "text": "so"}], columns)
    message = f"the DataFrame has several columns of the name '{columns[-1]}'"
    with pytest.raises(UserError, match=message):
        examples_of(frame)
    experiment = fedloom.Experiment(data=frame)
    with pytest.raises(UserError, match=message):
        load_data(experiment.data, 0, experiment.datasets)


def test_columns_of_one_name_are_refused_in_real_tables(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["question", "answer", "text", "answer"]
    with pytest.raises(UserError, match="the DataFrame has several columns of the name 'answer'"):
        examples_of(pandas.DataFrame([["?", "!", "so", "or"]], columns=names))
    file = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table([pyarrow.array(["so"])] * 4, names=names), file)
    with pytest.raises(UserError, match=r"table\.parquet has several columns of the name 'answer'"):
        examples_of(file)


def test_mistakes_in_python_are_reported_as_those_in_files() -> None:
    with pytest.raises(UserError) as caught:
        fedloom.Experiment(train={"roundz": 2}, methods="fedavg", sede=1)
    message = str(caught.value)
    assert "3 mistakes in fedloom.Experiment" in message
    assert "Did you mean train.rounds?" in message and "Did you mean seed?" in message
    assert 'methods is "fedavg", but must be a list' in message
    with pytest.raises(UserError, match=r"data is \"emoji\", but must be a mapping"):
        fedloom.Experiment(data="emoji")
    with pytest.raises(UserError, match=r"train\.rounds is .*object.*, but must be a whole number"):
        fedloom.Experiment(train={"rounds": object()})
    with pytest.raises(UserError, match=r"data is a list, but must be a mapping"):
        fedloom.Experiment.from_json('{"data": [{"question": "?", "answer": "!"}]}')
    with pytest.raises(UserError, match=r"expected a list of dicts"):
        experiment = fedloom.Experiment(data={"records": 3})
        load_data(experiment.data, 0, experiment.datasets)


@pytest.mark.parametrize(
    ("value", "held"),
    [
        ({"train": Dataset([{"text": "t"}]), "test": Dataset([])}, "train, test"),
        ({"train": DataFrame([{"text": "t"}])}, "train"),
        ({"train": [{"text": "t"}], "name": "mine"}, "train"),
        ({"text": ["t", "u"], "question": ["?", "?"], "answer": ["a", "b"]}, "text, question, answer"),
    ],
)
def test_a_dict_of_parts_or_columns_is_answered_with_what_to_give(value: Any, held: str) -> None:
    """Such as a DatasetDict, which `load_dataset` gives."""
    message = f"a dict with data under {held} is not read; give one set of records, .* in `split`"
    for given in (value, {"records": value}):
        with pytest.raises(UserError, match=message):
            experiment = fedloom.Experiment(data=given)
            load_data(experiment.data, 0, experiment.datasets)
    with pytest.raises(UserError, match=message):
        examples_of(value)


def test_a_list_under_a_known_key_is_a_mistake_of_that_key() -> None:
    with pytest.raises(UserError, match=r"data\.limit is a list, but must be"):
        fedloom.Experiment(data={"limit": [3]})


@pytest.mark.parametrize("value", [5, {1, 2}, "emoji"])
def test_a_value_that_is_no_data_is_answered_with_what_python_may_give(value: Any) -> None:
    with pytest.raises(
        UserError, match=r"must be a mapping .*; in Python it may also be a list of dicts, .*DataFrame"
    ):
        fedloom.Experiment(data=value)


def test_a_key_of_the_same_section_is_nearer_than_one_of_another() -> None:
    with pytest.raises(UserError, match=r"train\.round is not a known key\. Did you mean train\.rounds\?"):
        fedloom.Experiment(train={"round": 2})


@pytest.mark.parametrize("wrong", ["quesiton", "anwser"])
def test_a_misspelled_field_is_named(wrong: str, folder: Path) -> None:
    meant = {"quesiton": "question", "anwser": "answer"}[wrong]
    row = rows(folder)[0]
    row[wrong] = row.pop(meant)
    (rejected,) = examples_of([row]).rejected
    assert f"{meant} is missing, and '{wrong}' is not a known field. Did you mean {meant}?" in str(rejected)


@pytest.mark.parametrize(("wrong", "meant"), [("grop", "group"), ("optons", "options"), ("imge", "image")])
def test_a_misspelled_optional_field_is_not_ignored(wrong: str, meant: str, folder: Path) -> None:
    row = {"text": "so"} | rows(folder)[0]
    misspelled = {wrong if key == meant else key: value for key, value in row.items()}
    (rejected,) = examples_of([misspelled]).rejected
    assert f"'{wrong}' is not a known field. Did you mean {meant}?" in str(rejected)
    assert examples_of([{**row, wrong: 3, "hospital": 4}]).rejected == (), "the field itself is there"


def test_a_loader_of_python_data_is_found_by_content(folder: Path) -> None:
    from fedloom.runs.run_identity import contents_of

    settings = fedloom.Experiment().data
    first, again = (contents_of(PythonLoader(rows(folder))(settings, 0)) for _ in range(2))
    other = contents_of(PythonLoader(rows(folder)[:-1])(settings, 0))
    assert first == again and first != other
