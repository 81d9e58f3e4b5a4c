"""Read records from files that may be invalid: JSON lines, a JSON list, or tab-separated values.

Each invalid record is reported with its place and the reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from fedloom.data.csv_rows import CsvFault, csv_rows
from fedloom.system.errors import UserError, reading
from fedloom.types import Rejected

MAX_LINE = 1_000_000
"""Maximum bytes of one line; a longer line is skipped without being held in memory."""

MOST_DIGITS = 308
"""Most digits of a whole number; a longer one is beyond the range of floating-point numbers, and Python itself reads no more than 4,300."""

_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object, or a row with the names of its columns, and its place in a file.

    Attributes:
        file: The name of the file in messages.
        unit: "line", "entry" of a JSON list, or another name for a record of the file; "" if the file is the record.
        number: Number of the line or entry, counted from 1.
        values: The object; the values of a row are texts.
    """

    file: str
    unit: str
    number: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """The place of the record in words, such as "data.jsonl, line 3"."""
        return f"{self.file}, {self.unit} {self.number}" if self.unit else self.file

    def rejected(self, reason: str) -> Rejected:
        """Return this record as an invalid one."""
        return _rejected(self.file, self.unit, self.number, reason)


def read_records(path: Path, name: str | None = None) -> Iterator[Record | Rejected]:
    """Yield the records of a `.jsonl`, `.csv` or `.tsv` file, or else of a JSON list, in their order.

    The content decides if a `.jsonl` file is one list of objects, or a `.json` file has an object on every line. Blank
    lines are ignored. A byte-order mark and CRLF line ends are accepted. Unlike Python's own parser, this one does not
    accept NaN, Infinity, whole numbers of more than `MOST_DIGITS` digits, or an object that names a key twice. The first line
    of a `.csv` or `.tsv` file names the columns. In a `.tsv` file quotation marks have no special meaning; columns of a `.csv`
    file are separated by "," or else by ";", and a quoted cell may hold several lines.

    Args:
        path: The file.
        name: The name of the file in messages; its own name if None.

    Raises:
        UserError: A JSON list as a whole or the columns of a table cannot be read, or the file is UTF-16 text or may not be read.
            An invalid line, or an invalid row of a table, costs itself only.
    """
    with reading(path), open(path, "rb") as file:
        start = file.read(4)
        if start[:2] in _UTF_16 or _has_every_second_zero(start):
            raise UserError(f"{path}: it is UTF-16 text; save it as UTF-8")
    read = {".jsonl": _json_lines, ".tsv": _tsv, ".csv": _csv}.get(path.suffix.lower(), _json_list)
    if read is _json_lines and _is_list(path):
        read = _json_list
    elif read is _json_list and _is_lines(path):
        read = _json_lines
    return read(path, _printable(name or path.name))


def _has_every_second_zero(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of UTF-16 text without a byte-order mark."""
    return len(start) == 4 and [not byte for byte in start] in ([True, False] * 2, [False, True] * 2)


def _is_list(path: Path) -> bool:
    """Return whether a `.jsonl` file holds one list of objects, as some programs write it."""
    with open(path, "rb") as file:
        if not file.read(99).removeprefix(_BOM).lstrip().startswith(b"["):
            return False
    try:
        value = _parsed(path.read_bytes().removeprefix(_BOM), {})
    except ValueError:
        return False
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _is_lines(path: Path) -> bool:
    """Return whether a `.json` file holds one object a line: one of the first two lines is an object."""
    with open(path, "rb") as file:
        start = file.read(99).removeprefix(_BOM).lstrip()
        if not start.startswith(b"{"):
            return False
        file.seek(0)
        lines = (content for _, content in _lines(file) if content is None or content.strip())
        first = list(islice(lines, 2))
        return len(first) == 2 and any(content is not None and _is_object(content) for content in first)


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(_parsed(content, {}), dict)
    except ValueError:
        return False


def json_type(value: Any) -> str:
    """Return the type of a value in words; Python may give one that JSON does not have.

    Example:
        >>> json_type([]), json_type(True), json_type(1.5)
        ('a list', 'true or false', 'a number')
    """
    number = isinstance(value, int | float)
    return _KINDS.get(type(value)) or ("a number" if number else f"a value of type {type(value).__name__}")


def quoted(value: str) -> str:
    """Return a text in quotation marks for a message: short, on one line, printable."""
    return repr(value if len(value) <= 80 else value[:79] + "…")


def _json_lines(path: Path, name: str) -> Iterator[Record | Rejected]:
    with open(path, "rb") as file:
        for line, content in _lines(file):
            if content is None:
                yield Rejected(name, line, f"line is longer than {MAX_LINE:,} bytes")
            elif content.strip():
                try:
                    yield _record(_parsed(content.rstrip()), name, "line", line)
                except ValueError as error:
                    yield Rejected(name, line, str(error))


def read_json(path: Path) -> Any:
    """Read a whole file of strict JSON; see `read_records`.

    Raises:
        UserError: The file cannot be parsed.
    """
    try:
        return _parsed(path.read_bytes().removeprefix(_BOM))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 text file, without surrounding space.

    Raises:
        UserError: The file is missing, or is not UTF-8 text.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it ships with the data set") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start + 1})") from None
    lines = [line.strip() for line in content.split("\n")]
    return lines if lines[-1] else lines[:-1]


def _json_list(path: Path, name: str) -> Iterator[Record | Rejected]:
    faults: dict[int, tuple[Any, str]] = {}
    try:
        entries = _parsed(path.read_bytes().removeprefix(_BOM), faults)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(entries, list):
        raise UserError(f"{path}: a .json file holds a list of entries, not {json_type(entries)}")
    for number, entry in enumerate(entries, 1):
        fault = _fault(entry, faults) if faults else None
        yield (
            _record(entry, name, "entry", number)
            if fault is None
            else _rejected(name, "entry", number, fault)
        )


def _fault(value: Any, faults: Mapping[int, tuple[Any, str]]) -> str | None:
    """Return the fault of any value inside an entry, or None; without recursion, however deep the entry is."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, _Fault):
            return inner.reason
        if isinstance(inner, dict) and id(inner) in faults:
            return faults[id(inner)][1]
        waiting += inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
    return None


def _tsv(path: Path, name: str) -> Iterator[Record | Rejected]:
    columns: list[str] = []
    with open(path, "rb") as file:
        for line, content in _lines(file):
            if content is None or not content.strip():
                if content is None:
                    yield Rejected(name, line, f"line is longer than {MAX_LINE:,} bytes")
                continue
            try:
                cells = content.decode().rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                yield Rejected(name, line, f"not UTF-8 text (byte {error.start + 1})")
                continue
            if not columns:
                columns = _distinct(path, cells)
            elif len(cells) != len(columns):
                yield Rejected(name, line, f"{len(cells)} columns instead of {len(columns)}")
            else:
                yield Record(name, "line", line, dict(zip(columns, cells, strict=True)))


def _csv(path: Path, name: str) -> Iterator[Record | Rejected]:
    # A byte that is not UTF-8 costs its row only, so it must not end the reading of the file.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = file.readline(MAX_LINE)
        file.seek(0)
        delimiter = "," if "," in head or ";" not in head else ";"
        columns: _Columns | None = None
        for line, cells in csv_rows(file, delimiter, MAX_LINE):
            if isinstance(cells, CsvFault):
                if columns is None:
                    raise UserError(
                        f"{path}, line {line}: the names of the columns cannot be read: {cells.reason}"
                    )
                yield Rejected(name, line, columns.place(cells.column) + cells.reason)
            elif columns is None:
                columns = _csv_columns(path, line, cells)
            elif any(cell.strip() for cell in cells):
                row = columns.row(cells)
                yield Rejected(name, line, row) if isinstance(row, str) else Record(name, "line", line, row)


_SEPARATORS = {"\t": "tabs", "|": '"|"', ";": '";"'}


def _csv_columns(path: Path, line: int, cells: Sequence[str]) -> _Columns:
    """Return the columns that the first row of a `.csv` file names; spreadsheets may add empty names at its end."""
    names = [cell.strip() for cell in cells]
    while len(names) > 1 and not names[-1]:
        names.pop()
    for separator, what in _SEPARATORS.items():
        if len(names) == 1 and separator in names[0]:
            save = "save it with commas" + (", or name it .tsv" if separator == "\t" else "")
            raise UserError(f'{path}, line {line}: its columns are separated by {what}, not by ","; {save}')
    return _Columns(_distinct(path, names), len(cells))


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a table.

    Attributes:
        names: Their names.
        width: Number of cells in the row of the names, of which the last may be empty.
    """

    names: list[str]
    width: int

    def row(self, cells: Sequence[str]) -> dict[str, str] | str:
        """Return the cells of a row by the names of their columns, or the reason why the row is invalid."""
        count = len(self.names)
        unnamed = [cell for cell in cells[count:] if cell.strip()]
        if len(cells) == self.width and unnamed:
            return f"it has the value {quoted(unnamed[0])} in a column without a name"
        if len(cells) not in (count, self.width):
            return f"{len(cells)} columns instead of {count}"
        return dict(zip(self.names, cells, strict=False))

    def place(self, column: int | None) -> str:
        """Return the beginning of a message about a cell, or an empty text for a whole row."""
        if column is None:
            return ""
        name = self.names[column] if column < len(self.names) else ""
        return f"{name or f'column {column + 1}'}: "


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that is there more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _distinct(path: Path, names: list[str]) -> list[str]:
    twice = repeated(names)
    if twice is None:
        return names
    if twice:
        raise UserError(f"{path}: the first line names a column twice: {quoted(twice)}")
    unnamed = " and ".join(str(number) for number, name in enumerate(names, 1) if not name)
    raise UserError(f"{path}: the first line has no names for columns {unnamed}")


def _record(value: Any, name: str, unit: str, number: int) -> Record | Rejected:
    if not isinstance(value, dict):
        return _rejected(name, unit, number, f"{json_type(value)} instead of an object")
    return Record(name, unit, number, value)


def _rejected(file: str, unit: str, number: int, reason: str) -> Rejected:
    if unit == "line":
        return Rejected(file, number, reason)
    return Rejected(file, None, f"{unit} {number}: {reason}" if unit else reason)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number and the content of each line; the content is None if the line is too long."""
    number = 0
    while content := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            content = content.removeprefix(_BOM)
        if len(content) <= MAX_LINE or content.endswith(b"\n"):
            yield number, content
            continue
        while content and not content.endswith(b"\n"):
            content = file.readline(MAX_LINE)
        yield number, None


@dataclass(frozen=True, slots=True)
class _Fault:
    """Placeholder of a value that strict JSON does not allow."""

    reason: str


def _parsed(content: bytes, faults: dict[int, tuple[Any, str]] | None = None) -> Any:
    """Parse strict JSON, or raise ValueError with the reason.

    Args:
        content: The text.
        faults: If given, the fault of a single object is stored here under the object's `id` instead of being raised.
    """

    def fault_of(reason: str) -> _Fault:
        fault = _Fault(f"bad JSON: {reason}")
        if faults is None:
            raise ValueError(fault.reason)
        faults[id(fault)] = fault, fault.reason
        return fault

    def constant(name: str) -> _Fault:
        return fault_of(f"{name} is not a JSON number")

    def integer(number: str) -> int | _Fault:
        digits = len(number.removeprefix("-"))
        if digits <= MOST_DIGITS:
            return int(number)
        return fault_of(f"a number of {digits:,} digits; at most {MOST_DIGITS} are read")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if (twice := repeated(key for key, _ in pairs)) is not None:
            reason = f"bad JSON: key {quoted(twice)} appears twice"
            if faults is None:
                raise ValueError(reason)
            faults[id(values)] = values, reason  # held, so that no other object gets its id
        return values

    try:
        return json.loads(
            content.decode(), parse_constant=constant, parse_int=integer, object_pairs_hook=distinct
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"bad JSON at {line}column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("bad JSON: nested too deeply") from None


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
