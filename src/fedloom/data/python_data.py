"""Data given from Python, or in a file: lists of dicts, data frames, `datasets.Dataset`, CSV, Parquet, folders of images.

Records have the fields of the user's own folder (`fedloom.data.own_folder`): `question`, `answer`, and at least one of `image`
and `text`; `options` (a list, or texts with "|" between them), `group`, `id` and `split` may be given. From Python, an image is
a path, the bytes of a file, {"bytes": …, "path": …} as Hugging Face keeps images, a PIL image or an array. Values of numpy, and
the cells of pandas that are missing, become plain values; class labels of a `datasets.Dataset` become the names of classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from fedloom.data.own_folder import folder_examples, load_folder, load_records, undivided_examples
from fedloom.data.python_images import python_image
from fedloom.data.record_fields import FindAnyImage, InvalidRecord
from fedloom.data.record_files import Record, quoted, read_records, repeated
from fedloom.system.errors import UserError, client_failure
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

IMAGES = ("image", "images")
"""Keys of a record, or of a part of a turn, that hold an image or several."""

MISSING = ("NAType", "NaTType")
"""Types of the values with which pandas marks missing cells, beside NaN."""

FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
"""Endings of files of records."""


def expanded(value: Any) -> Any:
    """Return data; of a path that begins with ~, this is replaced by the user's home folder."""
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def is_python_data(value: Any) -> bool:
    """Return whether a value is data, and not the settings of data; a text is data if it is a path."""
    if isinstance(value, str):
        return value.lower().endswith(FILES) or Path(value).is_dir()
    return isinstance(value, list | tuple | Path) or _is_frame(value) or _is_dataset(value)


def require_one_set(value: Mapping[str, Any]) -> None:
    """Refuse a dict whose values are data: the parts of a data set, as those of a `datasets.DatasetDict`, or columns.

    Raises:
        UserError: A value is data.
    """
    held = [
        str(key)
        for key, inner in value.items()
        if not isinstance(inner, str | Path) and is_python_data(inner)
    ]
    if held:
        raise UserError(
            f"data: a dict with data under {', '.join(held)} is not read; give one set of records, of which each may say in `split` "
            f"that it is for train, test or validation: {KINDS}"
        )


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
        if _is_folder(self.value):
            return load_folder(settings.model_copy(update={"root": str(self.value)}), seed)
        with _reading(self.value):
            return load_records(*_records_and_images(self.value), settings, seed)


def examples_of(value: Any) -> DataSet:
    """Return data of any kind in `KINDS`, all of which are test examples.

    Raises:
        UserError: They are of another kind, or a file cannot be read.
    """
    value = expanded(value)
    if isinstance(value, DataSet):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(one, Example) for one in value):
        return DataSet("data", (), tuple(value))
    if _is_folder(value):
        examples, rejected = folder_examples(Path(value))
    else:
        with _reading(value):
            examples, rejected = undivided_examples(*_records_and_images(value))
    return DataSet("data", (), tuple(examples), tuple(rejected))


@contextmanager
def _reading(value: Any) -> Iterator[None]:
    """Report any error that is not a `UserError` as data that could not be read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data: {_title(value)} could not be read: {client_failure(error)}") from error


def _title(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else "the data passed from Python"


def _records_and_images(value: Any) -> tuple[Iterator[Record | Rejected], FindAnyImage]:
    """Return the records of data, and the function that finds their images; names of images in a file are beside it."""
    images = list[LazyImage]()
    path = Path(value) if isinstance(value, str | Path) else None
    rows = _numbered(_rows(value), _title(value))
    records = _records(rows, "data" if path is None else path.name, images)
    return records, partial(_image_of, images, Path() if path is None else path.parent)


def _image_of(images: Sequence[LazyImage], folder: Path, name: str) -> LazyImage:
    if name.startswith(MARK):
        return images[int(name.removeprefix(MARK))]
    try:
        return python_image(folder / name)
    except UserError as error:
        raise InvalidRecord(str(error)) from None


def _is_folder(value: Any) -> TypeGuard[str | Path]:
    return isinstance(value, str | Path) and Path(value).is_dir()


def _rows(value: Any) -> Iterable[Any]:
    if _is_frame(value):
        _require_distinct(getattr(value, "columns", ()), "the DataFrame")
        return value.to_dict("records")
    if _is_dataset(value):
        return _with_class_names(value)
    if isinstance(value, str | Path):
        return _file_rows(Path(value))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        require_one_set(value)
    raise UserError(f"data: expected {KINDS}, not a {type(value).__name__}")


def _is_frame(value: Any) -> bool:
    return "pandas.DataFrame" in _kinds(value)


def _is_dataset(value: Any) -> bool:
    return not _kinds(value).isdisjoint({"datasets.Dataset", "datasets.IterableDataset"})


def _kinds(value: Any) -> set[str]:
    """Return the names of a value's types. No library is imported: a value of its own exists only where it is installed."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(value).__mro__}


def _require_distinct(columns: Iterable[Any], what: str) -> None:
    """Refuse columns of one name, of which a row as a dict keeps the last only."""
    if (twice := repeated(map(str, columns))) is not None:
        raise UserError(
            f"data: {what} has several columns of the name {quoted(twice)}; rename or drop all but one"
        )


def _with_class_names(dataset: Any) -> Iterable[Any]:
    """Yield the rows of a datasets.Dataset, in which the number of a class is replaced by its name (-1 marks a missing one)."""
    features = getattr(dataset, "features", None) or {}
    names = {column: list(one.names) for column, one in features.items() if hasattr(one, "int2str")}

    def named(column: str, value: Any) -> Any:
        number = _plain(value, []) if column in names else None
        if not isinstance(number, int) or isinstance(number, bool):
            return value
        if number == -1:
            return None
        return names[column][number] if 0 <= number < len(names[column]) else number

    for row in dataset:
        yield {column: named(column, value) for column, value in row.items()} if names else row


def _records(
    rows: Iterable[tuple[int, Any]], name: str, images: list[LazyImage]
) -> Iterator[Record | Rejected]:
    """Yield numbered rows of data of some name as records, whose images are numbered and added to `images`."""
    for number, row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        record = row if isinstance(row, Record) else Record(name, "row", number, {})
        values = row.values if isinstance(row, Record) else row
        if not isinstance(values, Mapping):
            yield record.rejected(f"it is a {type(row).__name__}, not a dict")
            continue
        plain, reason = dict[str, Any](), None
        for column, value in values.items():
            try:
                if str(column) in plain:  # such as 1 and "1"
                    raise UserError(f"it has several keys of the name {quoted(str(column))}")
                plain[str(column)] = _plain(value, images, is_image=column in IMAGES)
            except InvalidRecord as error:
                reason = f"{column} {error}"
            except UserError as error:
                reason = str(error)
            except Exception as error:  # a value of another library may fail in any way
                reason = f"{column} cannot be read: {client_failure(error)}"
        if reason is not None:
            yield record.rejected(reason)
            continue
        yield replace(record, values=plain)


def _numbered(rows: Iterable[Any], title: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows of data of some title with their numbers, from 0.

    Raises:
        UserError: The next row cannot be had; the message names it.
    """
    remaining, number = iter(rows), 0
    while True:
        try:
            row = next(remaining)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"data: {title} could not be read at row {number}: {client_failure(error)}"
            ) from error
        yield number, row
        number += 1


def _plain(value: Any, images: list[LazyImage], *, is_image: bool = False) -> Any:
    """Return a cell as a value of JSON, in which an image that is no name is a `MARK` with its number in `images`.

    Missing cells of pandas are null; arrays, numbers and tensors of numpy and torch are lists and numbers.

    Args:
        value: The cell.
        images: Images found before, to which those of the cell are added.
        is_image: Whether the cell holds an image, or a list of them.

    Raises:
        UserError: An image cannot be used.
        InvalidRecord: A text looks like a `MARK`.
    """
    if value is None or type(value).__name__ in MISSING or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        if MARK in value:  # it would stand for an image of some record
            raise InvalidRecord("holds a NUL character before the word image; remove it")
        return str(value)
    if isinstance(value, Mapping) and not (is_image and value.get("bytes") is not None):
        plain = {str(key): _plain(one, images, is_image=key in IMAGES) for key, one in value.items()}
        return None if is_image and not any(plain.values()) else plain
    if isinstance(value, list | tuple):
        return [_plain(one, images, is_image=is_image) for one in value]
    if is_image and str(getattr(value, "dtype", "")) != "object":  # such an array is a list of images
        images.append(python_image(value))
        return f"{MARK}{len(images) - 1}"
    convert = getattr(value, "tolist", None)
    plain = convert() if callable(convert) else value
    return plain if type(plain) is type(value) else _plain(plain, images, is_image=is_image)


def _file_rows(path: Path) -> Iterable[Any]:
    """Return the rows of a file; images in it are relative to its folder."""
    if not path.is_file():
        raise UserError(f"data: {path} does not exist; expected {KINDS}")
    if path.suffix.lower() not in FILES:
        raise UserError(f"data: {path}: files of this kind are not read; expected {KINDS}")
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else read_records(path)


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise UserError(
            f"data: {path}: reading Parquet needs pyarrow; install it with `pip install pyarrow`, or save the data as CSV"
        ) from None
    file = parquet.ParquetFile(path)
    _require_distinct(file.schema_arrow.names, str(path))
    for batch in file.iter_batches():
        yield from batch.to_pylist()
