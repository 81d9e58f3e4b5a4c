"""Split comma-separated text into rows; a row that cannot be read costs that row only.

Cells are those of Python's `csv` module, with two differences: a quotation mark that is never closed, and text after a closing
one, are faults. (Python reads both: the first as one cell with all that follows, the second without its quotation marks.) They are
not split by that module, because its limit on the length of a cell is a setting of the whole process.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

_QUOTES = re.compile('""?')
_ENDS = ("\n", "\r")


@dataclass(frozen=True, slots=True)
class CsvFault:
    """The reason why a row cannot be read.

    Attributes:
        reason: What is wrong.
        column: Position of the cell at fault, counted from 0; None if it is the row as a whole.
    """

    reason: str
    column: int | None = None


class _Unreadable(Exception):
    """Carries the fault of a row out of its cells, and where in the last line its quotation mark is (None: nowhere)."""

    def __init__(self, reason: str, column: int, at: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.column, self.at = reason, column, at


def csv_rows(file: TextIO, delimiter: str, most: int) -> Iterator[tuple[int, list[str] | CsvFault]]:
    """Yield the number of the line where a row begins, and its cells or its fault; blank lines are ignored.

    The end of a row whose quotation marks are at fault is unknown. Reading goes on in its second line, unless the lines up to
    the next quotation mark are more like one cell than like rows: then all of these are one fault, and no row is made of them.

    Args:
        file: The text, opened with `newline=""` and `errors="surrogateescape"`.
        delimiter: The character between two cells.
        most: Maximum number of bytes of a row.
    """
    lines, width = _Lines(file, most), 0
    while (line := lines.next()) is not None:
        number, text = line
        if text is None:
            yield number, CsvFault(_too_long(most))
        elif text.strip():
            row = _row(number, text, lines, delimiter, most, width)
            width = width or (0 if isinstance(row, CsvFault) else len(row))
            yield number, row


def _row(
    number: int, text: str, lines: _Lines, delimiter: str, most: int, width: int
) -> list[str] | CsvFault:
    """Return the cells of a row that begins with `text`, with as many of the next lines as they take, or its fault."""
    taken = [(number, text)]
    try:
        cells = _cells(taken, lines, delimiter)
    except _Unreadable as fault:
        if fault.at is None or _are_rows(taken[1:], fault.at, delimiter, width):
            lines.put_back(taken[1:])
            return _undecodable(taken[:1]) or CsvFault(fault.reason, fault.column)
        return CsvFault(f"{fault.reason}; lines {number} to {taken[-1][0]} are skipped", fault.column)
    if len(taken) > 1 and _bytes(line for _, line in taken) > most:
        return CsvFault(_too_long(most))
    return _undecodable(taken) or cells


def _are_rows(taken: list[tuple[int, str]], at: int, delimiter: str, width: int) -> bool:
    """Return whether lines after one with an open quotation mark are rows of their own: the mark was never closed.

    Args:
        taken: The lines. Only the last has a quotation mark that is not doubled.
        at: The place of that mark.
        delimiter: The character between two cells.
        width: Number of cells of a row.
    """
    whole = [line for _, line in taken[:-1] if line.strip()]
    begins_cell = not taken or at == 0 or taken[-1][1][at - 1] == delimiter
    return begins_cell and all(line.count(delimiter) == width - 1 for line in whole)


def _cells(taken: list[tuple[int, str]], lines: _Lines, delimiter: str) -> list[str]:
    """Return the cells of a row whose first line is in `taken`; lines inside of its cells are added there."""
    cells, at = list[str](), 0
    while True:
        text = taken[-1][1]
        if text.startswith('"', at):
            cell, at = _quoted_cell(taken, at + 1, lines, delimiter, len(cells))
            text = taken[-1][1]
        else:
            end = text.find(delimiter, at)
            cell, at = (text[at:].rstrip("\r\n"), len(text)) if end < 0 else (text[at:end], end)
        cells.append(cell)
        if at >= len(text) or text[at] in _ENDS:
            return cells
        at += 1


def _quoted_cell(
    taken: list[tuple[int, str]], at: int, lines: _Lines, delimiter: str, column: int
) -> tuple[str, int]:
    """Return a cell whose text begins at `at` of the last line taken, and where it ends in the then last line."""
    opened, parts = taken[-1][0], list[str]()
    while True:
        number, text = taken[-1]
        closing = next((mark for mark in _QUOTES.finditer(text, at) if len(mark[0]) == 1), None)
        if closing is not None:
            end = closing.end()
            if end < len(text) and text[end] not in (delimiter, *_ENDS):
                raise _Unreadable(_text_after(opened, number), column, closing.start())
            parts.append(text[at : closing.start()])
            return "".join(parts).replace('""', '"'), end
        parts.append(text[at:])
        line = lines.next()
        if line is None or line[1] is None:
            lines.put_back([] if line is None else [line])
            raise _Unreadable(f"the quotation mark that opens in line {opened} is never closed", column)
        taken.append((line[0], line[1]))
        at = 0


def _text_after(opened: int, closed: int) -> str:
    if opened == closed:
        return (
            'text follows the closing quotation mark; inside of a quoted cell, write "" for a quotation mark'
        )
    return (
        f"the quotation mark that opens in line {opened} is not closed before the one in line {closed}, which text follows; "
        'close it, or write "" for a quotation mark inside of a quoted cell'
    )


def _too_long(most: int) -> str:
    return f"row is longer than {most:,} bytes"


def _bytes(lines: Iterator[str]) -> int:
    return sum(len(line.encode(errors="surrogateescape")) for line in lines)


def _undecodable(taken: list[tuple[int, str]]) -> CsvFault | None:
    """Return the fault of the first byte that is not UTF-8; such bytes were read as halves of surrogate pairs."""
    for number, text in taken:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            byte = len(text[: error.start].encode()) + 1
            line = "" if number == taken[0][0] else f" of line {number}"
            return CsvFault(f"not UTF-8 text (byte {byte}{line}); save the file as UTF-8")
    return None


class _Lines:
    """The numbered lines of a text; a line that was read can be put back."""

    def __init__(self, file: TextIO, most: int) -> None:
        self._file, self._most, self._number = file, most, 0
        self._waiting = deque[tuple[int, str | None]]()

    def next(self) -> tuple[int, str | None] | None:
        """Return the number and the text of the next line, None in place of a text that is too long; None at the end."""
        if self._waiting:
            return self._waiting.popleft()
        text = self._file.readline(self._most + 1)
        if not text:
            return None
        self._number += 1
        is_whole = len(text) <= self._most or text.endswith(_ENDS)
        if is_whole and (4 * len(text) <= self._most or _bytes(iter((text.rstrip("\r\n"),))) <= self._most):
            return self._number, text
        while text and not text.endswith(_ENDS):
            text = self._file.readline(self._most)
        return self._number, None

    def put_back(self, lines: list[tuple[int, str]] | list[tuple[int, str | None]]) -> None:
        """Make lines the next ones again, before any that were put back earlier."""
        self._waiting.extendleft(reversed(lines))
