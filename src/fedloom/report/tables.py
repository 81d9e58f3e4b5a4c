"""Tables of a report, written as plain text or LaTeX, and the formats of their figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from fedloom.algorithms import PLACES
from fedloom.algorithms.baselines import BASELINES
from fedloom.report.run_results import Json, at, number
from fedloom.system.terminal import display_width, pad, wrap_cell

MISSING = "—"

TITLES = {
    "accuracy": "Accuracy",
    "accuracy@0.25": "Acc@0.25",
    "accuracy@0.5": "Acc@0.5",
    "accuracy@0.75": "Acc@0.75",
    "accuracy_judged": "Accuracy, judged",
    "macro_f1": "Macro F1",
    "auc": "AUC",
    "token_f1": "Token F1",
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
    **{f"bleu_{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)},
    "iou": "Mean IoU",
    "unparsed": "Unreadable",
    "dropped": "Left out",
    "unjudged": "Verdict unreadable",
}

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "—": "---",
        "–": "--",
        "±": r"$\pm$",
        "−": "$-$",
        "\u00a0": "~",
        "\n": " ",
    }
)


def base(method: str) -> str:
    """Return a method's name without its added parts."""
    return method.split("+")[0]


def part_label(name: str) -> str:
    """Return the display name of an algorithm or part; an unknown name is returned unchanged."""
    return PLACES[name].label if name in PLACES else name


def is_federated(method: str) -> bool:
    """Return whether a method is a federated algorithm rather than a baseline."""
    return base(method) not in BASELINES


def label(method: str) -> str:
    """Return the display name of a method; an unknown name is returned unchanged.

    Example:
        >>> label("fedavg+prompt+adaptive"), label("local"), label("mine")
        ('FedAvg + prompt + adaptive regularizer', 'local (mean)', 'mine')
    """
    first, *parts = method.split("+")
    return " + ".join(
        [BASELINES[first].label if first in BASELINES else part_label(first), *map(part_label, parts)]
    )


def title(name: str) -> str:
    """Return the display name of a score; a suffix of a known name follows after a comma.

    Example:
        >>> title("bleu_4"), title("accuracy_open"), title("auc_published"), title("mine")
        ('BLEU-4', 'Accuracy, open', 'AUC (published)', 'mine')
    """
    plain = name.removesuffix("_published")
    end = " (published)" if plain != name else ""
    stem = next((key for key in (plain, plain.rpartition("_")[0]) if key in TITLES), None)
    if stem is None:
        return plain + end
    suffix = plain[len(stem) :].strip("_")
    return TITLES[stem] + (f", {suffix}" if suffix else "") + end


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage without the percent sign; None is an em dash.

    A value that rounds to zero has no sign.

    Example:
        >>> percent(0.7134), percent(-0.25), percent(-0.0001), percent(None)
        ('71.3', '−25.0', '0.0', '—')
    """
    if value is None:
        return MISSING
    text = f"{100 * value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def signed(value: float | None, digits: int = 1) -> str:
    """Write a difference of fractions in percentage points with its sign; a value that rounds to zero has no sign.

    Example:
        >>> signed(0.05), signed(-0.05), signed(-0.0), signed(0.0001), signed(None)
        ('+5.0', '−5.0', '0.0', '0.0', '—')
    """
    text = percent(value, digits)
    return f"+{text}" if value and value > 0 and float(text) else text


def counted(count: int, what: str) -> str:
    """Write a number with its noun, which gets an s unless the number is one.

    Example:
        >>> counted(1, "cell"), counted(1200, "cell")
        ('1 cell', '1,200 cells')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size(count: float | None) -> str:
    """Write a number of bytes in powers of 1000.

    Example:
        >>> print(size(0), size(12_345_678), size(None), sep=", ")  # with no-break spaces
        0 B, 12.3 MB, —
    """
    if count is None:
        return MISSING
    if count < 1000:
        return f"{count:.0f}\u00a0B"
    power = next((power for power in (1, 2, 3) if count < 999.95 * 1000**power), 4)
    return f"{count / 1000**power:,.1f}\u00a0{('kB', 'MB', 'GB', 'TB')[power - 1]}"


def seconds(value: float | None) -> str:
    """Write a duration in seconds, with a decimal only below ten.

    Example:
        >>> seconds(3.14159), seconds(1234.5), seconds(None)
        ('3.1', '1,234', '—')
    """
    if value is None:
        return MISSING
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: The column headings.
        rows: Cells as text; `MISSING` where there is no figure.
        note: A note below the table, or "".
        left: Number of leading columns that hold words and are left-aligned; the others hold figures and are right-aligned.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells for {len(self.columns)} columns: {row}")

    def text(self, width: int = 80) -> str:
        """Write the table for a terminal; no line is longer than `width` (≥ 4 for each column)."""
        widths = _fit(self, width)
        lines: list[str] = []
        for row in (self.columns, *self.rows):
            cells = [_wrap(cell, space) for cell, space in zip(row, widths, strict=True)]
            for depth in range(max(map(len, cells))):
                pieces = [cell[depth] if depth < len(cell) else "" for cell in cells]
                lines.append("  ".join(_aligned(pieces, widths, self.left)).rstrip())
            if row is self.columns:
                lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
        if self.note:
            lines += ["", *_wrap(self.note, width)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Write the table as CSV: ASCII minus signs, missing figures empty, and no cell that a spreadsheet takes for a formula."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(
            [_csv_cell(cell) for cell in row] for row in (self.columns, *self.rows)
        )
        return out.getvalue()

    def latex(self) -> str:
        """Write the table as a LaTeX tabular with the rules of the booktabs package."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"

        kinds = "l" * self.left + "r" * (len(self.columns) - self.left)
        top = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", line(self.columns), r"\midrule"]
        return "\n".join([*top, *map(line, self.rows), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _csv_cell(cell: str) -> str:
    plain = "" if cell == MISSING else printable(cell.replace("−", "-").replace("\u00a0", " "))
    if plain.startswith(("=", "@")) or (plain.startswith(("+", "-")) and not plain[1:2].isdigit()):
        return f"'{plain}"
    return plain


def _aligned(cells: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    pairs = enumerate(zip(cells, widths, strict=True))
    return [pad(cell, space, right=index >= left) for index, (cell, space) in pairs]


def printable(text: str) -> str:
    """Replace control characters by spaces, so that no label can control the terminal."""
    return "".join(
        character if character.isprintable() or character == "\u00a0" else " " for character in text
    )


def _wrap(cell: str, width: int) -> list[str]:
    return wrap_cell(printable(cell), width)


def _fit(table: Table, width: int) -> list[int]:
    """Choose column widths: the natural ones if they fit, else figures wrap at spaces and words are cut to fit."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    room = width - 2 * (len(columns) - 1)
    widths = [max(1, *map(display_width, column)) for column in columns]
    if sum(widths) > room:
        words = [
            max(1, *(display_width(word) for cell in column for word in cell.split(" ")))
            for column in columns
        ]
        widths = widths[: table.left] + words[table.left :]
    while sum(widths) > room and max(widths) > 1:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return widths


def split_columns(table: Table, width: int) -> list[Table]:
    """Split a table into blocks of columns that fit the width; each block repeats the first column."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    needs = [
        max(*(display_width(word) for cell in column for word in cell.split()), 1) + 2 for column in columns
    ]
    first = min(max(map(display_width, columns[0])) + 2, width // 2)
    blocks: list[list[int]] = [[]]
    room = width - first + 2
    for index, need in list(enumerate(needs))[1:]:
        if blocks[-1] and sum(needs[other] for other in blocks[-1]) + need > room:
            blocks.append([])
        blocks[-1].append(index)
    tables = [
        Table(
            tuple(table.columns[index] for index in (0, *block)),
            tuple(tuple(row[index] for index in (0, *block)) for row in table.rows),
        )
        for block in blocks
    ]
    return [*tables[:-1], Table(tables[-1].columns, tables[-1].rows, table.note)]


def bytes_sent(result: Json, method: str) -> float | None:
    """Return the bytes that a method sent in both directions; None if they were not recorded."""
    up, down = (number(result, "bytes", method, way) for way in ("up", "down"))
    return None if up is None or down is None else up + down


def client_table(result: Json, clients: Sequence[str]) -> Table | None:
    """Return the table of each client's score with each method; None if no method has one.

    Args:
        result: The content of result.json.
        clients: The column headings, one for each client.
    """
    by_method = {method: at(scores, "clients") for method, scores in result["scores"].items()}
    rows = []
    for method, values in by_method.items():
        if isinstance(values, list):
            known = [value for index in range(len(clients)) if (value := number(values, index)) is not None]
            worst = min(known) if known else None
            mean = sum(known) / len(known) if known else None
            cells = [percent(number(values, index)) for index in range(len(clients))]
            rows.append((label(method), *cells, percent(mean), percent(worst)))
    if not rows:
        return None
    columns = ("Method", *clients, "Mean", "Worst")
    return Table(columns, tuple(rows), "In percent.")
