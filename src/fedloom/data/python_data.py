"""Data given from Python, or in a file: lists of dicts, data frames, `datasets.Dataset`, CSV, Parquet, folders of images.

Records have the fields of the user's own folder (`fedloom.data.own_folder`): `question`, `answer`, and at least one of `image`
and `text`; `options` (a list, or texts
with "|" between them), `group`, `id` and `split` may be given. From Python, an image is a path, a PIL image or an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedloom.data.class_folders import class_records, is_class_folder
from fedloom.data.own_folder import load_folder, load_records, undivided_examples
from fedloom.data.python_images import python_image
from fedloom.data.record_files import Record, read_records
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example, LazyImage, Rejected

if TYPE_CHECKING:
    from fedloom.config.schema import Data

KINDS = (
    "a list of dicts, a list of examples, a pandas DataFrame, a datasets.Dataset, a .csv, .jsonl, .json or .parquet file, or a "
    "folder with records or with one folder of images for each class"
)
"""What data may be, for messages."""

MARK = "\0image "
"""The beginning of the texts that stand for images in records until they are replaced."""


FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
"""Endings of files of records."""


def is_python_data(value: Any) -> bool:
    """Return whether a value is data, and not the settings of data; a text is data if it is a path."""
    if isinstance(value, str):
        return value.lower().endswith(FILES) or Path(value).is_dir()
    return isinstance(value, list | tuple | Path) or _table_rows(value) is not None


@dataclass(frozen=True, eq=False)
class PythonLoader:
    """A loader of data that are given as a value; see `KINDS`.

    Attributes:
        value: The data.
    """

    value: Any

    def __call__(self, settings: Data, seed: int) -> DataSet:
        """Read the data and divide them as a folder's, unless `split` or the folder divides them.

        Raises:
            UserError: The data are of another kind, or a file cannot be read.
        """
        if (folder := _record_folder(self.value)) is not None:
            return load_folder(settings.model_copy(update={"root": str(folder)}), seed)
        images = list[LazyImage]()
        records = _records(_rows(self.value), images)
        return load_records(records, partial(_image_of, images), settings, seed)


def examples_of(value: Any) -> DataSet:
    """Return data of any kind in `KINDS`, all of which are test examples.

    Raises:
        UserError: They are of another kind, or a file cannot be read.
    """
    if isinstance(value, DataSet):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(one, Example) for one in value):
        return DataSet("data", (), tuple(value))
    if (folder := _record_folder(value)) is not None:
        from fedloom.config.schema import Data

        data = load_folder(Data(name="folder", root=str(folder)), 0)
        return DataSet("data", (), data.examples, data.rejected)
    images = list[LazyImage]()
    examples, rejected = undivided_examples(_records(_rows(value), images), partial(_image_of, images))
    return DataSet("data", (), tuple(examples), tuple(rejected))


def _image_of(images: Sequence[LazyImage], name: str) -> LazyImage:
    return images[int(name.removeprefix(MARK))]


def _record_folder(value: Any) -> Path | None:
    """Return the path of a folder with records; None for any other data."""
    if isinstance(value, str | Path) and (path := Path(value)).is_dir() and not is_class_folder(path):
        return path
    return None


def _rows(value: Any) -> Iterable[Any]:
    rows = _table_rows(value)
    if rows is not None:
        return rows
    if isinstance(value, str | Path):
        path = Path(value)
        return class_records(path) if path.is_dir() else _file_rows(path)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return value
    raise UserError(f"data: expected {KINDS}, not a {type(value).__name__}")


def _table_rows(value: Any) -> Iterable[Any] | None:
    """Return the rows of a pandas DataFrame or a datasets.Dataset; None for anything else.

    Neither library is imported: a value of theirs exists only where they are installed.
    """
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(value).__mro__}
    if "pandas.DataFrame" in names:
        return value.to_dict("records")
    if "datasets.Dataset" in names or "datasets.IterableDataset" in names:
        return value
    return None


def _records(rows: Iterable[Any], images: list[LazyImage]) -> Iterator[Record | Rejected]:
    """Yield rows as records, whose images are numbered and added to `images`."""
    for number, row in enumerate(rows):
        if isinstance(row, Rejected):
            yield row
            continue
        record = row if isinstance(row, Record) else Record("data", "row", number, {})
        values = row.values if isinstance(row, Record) else row
        if not isinstance(values, Mapping):
            yield record.rejected(f"it is a {type(row).__name__}, not a dict")
            continue
        plain = {name: _plain(value) for name, value in values.items() if isinstance(name, str)}
        if isinstance(options := plain.get("options"), str):  # as a cell of a table holds them
            plain["options"] = [one.strip() for one in options.split("|") if one.strip()]
        image = plain.pop("image", None)
        try:
            if _is_given(image):
                images.append(python_image(image))
                plain["image"] = f"{MARK}{len(images) - 1}"
        except UserError as error:
            yield record.rejected(str(error))
            continue
        yield replace(record, values=plain)


def _is_given(value: Any) -> bool:
    """Return whether a cell of a table holds something: not None, not "", and not the NaN of pandas."""
    return not (value is None or (isinstance(value, str) and not value) or _is_nan(value))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _plain(value: Any) -> Any:
    """Return a cell as a value of JSON: NaN is null, and a number of numpy is one of Python."""
    if _is_nan(value):
        return None
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _file_rows(path: Path) -> Iterable[Any]:
    """Return the rows of a file; images in it are relative to its folder."""
    if not path.is_file():
        raise UserError(f"data: {path} does not exist; expected {KINDS}")
    if path.suffix.lower() not in FILES:
        raise UserError(f"data: {path}: files of this kind are not read; expected {KINDS}")
    rows: Iterable[Any] = _parquet_rows(path) if path.suffix.lower() == ".parquet" else read_records(path)
    return (_beside(path.parent, row) for row in rows)


def _beside(folder: Path, row: Any) -> Any:
    """Return a row in which the name of its image is a path."""
    values = row.values if isinstance(row, Record) else row
    if not (isinstance(values, Mapping) and isinstance(name := values.get("image"), str) and name):
        return row
    named = {**values, "image": folder / name}
    return replace(row, values=named) if isinstance(row, Record) else named


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise UserError(
            f"data: {path}: reading Parquet needs pyarrow; install it with `pip install pyarrow`, or save the data as CSV"
        ) from None
    for batch in parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()
