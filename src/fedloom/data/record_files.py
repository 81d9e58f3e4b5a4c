"""Records from files that nobody checked: JSON lines, a JSON list, or tab-separated. Each one that is skipped is named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from fedloom.system.errors import UserError
from fedloom.types import Rejected

MAX_LINE = 1_000_000
"""Most bytes of one line; what is longer is skipped without being held in memory."""

_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Raw:
    """One JSON object, or one row with the names of its columns, and where it stands.

    Attributes:
        file: The file, as messages call it.
        unit: "line", "entry" of a JSON list, or what else the file calls it.
        number: Which line or entry, counted from 1.
        values: The object; of a row, texts.
    """

    file: str
    unit: str
    number: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """Where the record stands, in words."""
        return f"{self.file}, {self.unit} {self.number}"

    def rejected(self, reason: str) -> Rejected:
        """Return this record as an invalid one."""
        return _rejected(self.file, self.unit, self.number, reason)


def read_records(path: Path, name: str | None = None) -> Iterator[Raw | Rejected]:
    """Yield the records of a `.jsonl` or `.tsv` file, or else of a JSON list, in their order.

    A `.jsonl` file that is one list of objects, and a `.json` file with an object on every line, are read as what they
    are. Blank lines are no records. A byte-order mark and CRLF line ends are accepted. Not accepted, against
    Python's habit, are NaN, Infinity and an object that names a key twice. The first line of a `.tsv` file
    names the columns; a quotation mark means nothing but itself.

    Args:
        path: The file.
        name: What to call it in messages; its own name if None.

    Raises:
        UserError: A JSON list as a whole cannot be read, or a `.tsv` file's columns, or the file is UTF-16 text; in
            lines only the bad one is lost.
    """
    with open(path, "rb") as file:
        if file.read(2) in _UTF_16:
            raise UserError(f"{path}: it is UTF-16 text; save it as UTF-8")
    read = {".jsonl": _json_lines, ".tsv": _tsv}.get(path.suffix.lower(), _json_list)
    if read is _json_lines and _is_list(path):
        read = _json_list
    elif read is _json_list and _is_lines(path):
        read = _json_lines
    return read(path, _printable(name or path.name))


def _is_list(path: Path) -> bool:
    """Return whether a file of lines is one list of objects, as some writers name it wrongly."""
    with open(path, "rb") as file:
        if not file.read(99).removeprefix(_BOM).lstrip().startswith(b"["):
            return False
    try:
        value = _parsed(path.read_bytes().removeprefix(_BOM), {})
    except ValueError:
        return False
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _is_lines(path: Path) -> bool:
    """Return whether a `.json` file holds one object a line: one of the first two is an object by itself."""
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


def kind(value: Any) -> str:
    """Return in words what kind of JSON value this is.

    Example:
        >>> kind([]), kind(True), kind(1.5)
        ('a list', 'true or false', 'a number')
    """
    return _KINDS.get(type(value), "a number")


def shown(value: str) -> str:
    """Quote a text for a message: short, on one line, printable."""
    return repr(value if len(value) <= 80 else value[:79] + "…")


def _json_lines(path: Path, name: str) -> Iterator[Raw | Rejected]:
    with open(path, "rb") as file:
        for line, content in _lines(file):
            if content is None:
                yield Rejected(name, line, f"line is longer than {MAX_LINE:,} bytes")
            elif content.strip():
                try:
                    yield _raw(_parsed(content.rstrip()), name, "line", line)
                except ValueError as error:
                    yield Rejected(name, line, str(error))


def read_json(path: Path) -> Any:
    """Read a whole file of strict JSON; see `read_records`.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return _parsed(path.read_bytes().removeprefix(_BOM))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_lines(path: Path) -> list[str]:
    """Read a text file as lines without space at their ends; see `read_records` for what is accepted.

    Raises:
        UserError: It is missing, or not UTF-8 text.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it ships with the data set") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start + 1})") from None
    lines = [line.strip() for line in content.split("\n")]
    return lines if lines[-1] else lines[:-1]


def _json_list(path: Path, name: str) -> Iterator[Raw | Rejected]:
    faults: dict[int, tuple[Any, str]] = {}
    try:
        entries = _parsed(path.read_bytes().removeprefix(_BOM), faults)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(entries, list):
        raise UserError(f"{path}: a .json file holds a list of entries, not {kind(entries)}")
    for number, entry in enumerate(entries, 1):
        fault = _fault(entry, faults) if faults else None
        yield _raw(entry, name, "entry", number) if fault is None else _rejected(name, "entry", number, fault)


def _fault(value: Any, faults: Mapping[int, tuple[Any, str]]) -> str | None:
    """Return what is wrong anywhere inside an entry, or None; looks no deeper than Python may call."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Fault):
            return one.reason
        if isinstance(one, dict) and id(one) in faults:
            return faults[id(one)][1]
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return None


def _tsv(path: Path, name: str) -> Iterator[Raw | Rejected]:
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
                columns = cells
                if len(set(columns)) < len(columns):
                    raise UserError(f"{path}: the first line names a column twice")
            elif len(cells) != len(columns):
                yield Rejected(name, line, f"{len(cells)} columns instead of {len(columns)}")
            else:
                yield Raw(name, "line", line, dict(zip(columns, cells, strict=True)))


def _raw(value: Any, name: str, unit: str, number: int) -> Raw | Rejected:
    if not isinstance(value, dict):
        return _rejected(name, unit, number, f"{kind(value)} instead of an object")
    return Raw(name, unit, number, value)


def _rejected(file: str, unit: str, number: int, reason: str) -> Rejected:
    return (
        Rejected(file, number, reason)
        if unit == "line"
        else Rejected(file, None, f"{unit} {number}: {reason}")
    )


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number, content); None stands for a line that is too long."""
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
    """What stands for a value that strict JSON does not have."""

    reason: str


def _parsed(content: bytes, faults: dict[int, tuple[Any, str]] | None = None) -> Any:
    """Parse strict JSON, or raise ValueError with the reason.

    Args:
        content: The text.
        faults: If given, what is wrong with one object alone is put here by the object's `id`, and nothing raised.
    """

    def constant(name: str) -> _Fault:
        fault = _Fault(f"bad JSON: {name} is not a JSON number")
        if faults is None:
            raise ValueError(fault.reason)
        faults[id(fault)] = fault, fault.reason
        return fault

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            reason = f"bad JSON: key {shown(twice)} appears twice"
            if faults is None:
                raise ValueError(reason)
            faults[id(found)] = found, reason  # held, so that no other object gets its id
        return found

    try:
        return json.loads(content.decode(), parse_constant=constant, object_pairs_hook=distinct)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"bad JSON at {line}column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("bad JSON: nested too deeply") from None


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
