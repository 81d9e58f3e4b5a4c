"""Tables as values: made once from a result, written as plain text, Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from fedloom.algorithms import PLACES
from fedloom.algorithms.baselines import BASELINES
from fedloom.report.run_results import Json, at, number

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
    """Return a method's name without the parts that are added to it."""
    return method.split("+")[0]


def part_label(name: str) -> str:
    """Return the name of an algorithm or of a part of one for readers; one that is not known is shown as it is."""
    return PLACES[name].label if name in PLACES else name


def federated(method: str) -> bool:
    """Return whether a method is a federated algorithm rather than a baseline."""
    return base(method) not in BASELINES


def label(method: str) -> str:
    """Return a method's name for readers; a name that is not known is shown as it is.

    Example:
        >>> label("fedavg+prompt+adaptive"), label("local"), label("mine")
        ('FedAvg + prompt + adaptive regularizer', 'local (mean)', 'mine')
    """
    first, *parts = method.split("+")
    return " + ".join(
        [BASELINES[first].label if first in BASELINES else part_label(first), *map(part_label, parts)]
    )


def title(name: str) -> str:
    """Return a score's name for readers; a comma separates what follows a known name.

    Example:
        >>> title("bleu_4"), title("accuracy_open"), title("auc_published"), title("mine")
        ('BLEU-4', 'Accuracy, open', 'AUC (published)', 'mine')
    """
    plain = name.removesuffix("_published")
    end = " (published)" if plain != name else ""
    known = next((key for key in (plain, plain.rpartition("_")[0]) if key in TITLES), None)
    if known is None:
        return plain + end
    rest = plain[len(known) :].strip("_")
    return TITLES[known] + (f", {rest}" if rest else "") + end


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage without the percent sign; an em dash where there is none.

    A value that rounds to zero has no sign.

    Example:
        >>> percent(0.7134), percent(-0.25), percent(-0.0001), percent(None)
        ('71.3', '−25.0', '0.0', '—')
    """
    if value is None:
        return MISSING
    written = f"{100 * value:.{digits}f}"
    return written.replace("-", "−") if float(written) else written.removeprefix("-")


def signed(value: float | None, digits: int = 1) -> str:
    """Write a difference of fractions in points with its sign; zero, and what rounds to it, has none.

    Example:
        >>> signed(0.05), signed(-0.05), signed(-0.0), signed(0.0001), signed(None)
        ('+5.0', '−5.0', '0.0', '0.0', '—')
    """
    written = percent(value, digits)
    return f"+{written}" if value and value > 0 and float(written) else written


def counted(count: int, what: str) -> str:
    """Write how many of something there are.

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
    """Rows of text under column names.

    Attributes:
        columns: The heads.
        rows: Cells as text; `MISSING` where there is no figure.
        note: What a reader must know, or "".
        left: How many leading columns hold words and stand left; the others hold figures and stand right.

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
        """Write for a terminal: no line longer than `width`, which is at least 4 for each column."""
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

    def markdown(self) -> str:
        """Write as a Markdown table."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(_markdown(cell) for cell in cells) + " |"

        rule = ["---" if place < self.left else "---:" for place in range(len(self.columns))]
        return "\n".join([line(self.columns), "| " + " | ".join(rule) + " |", *map(line, self.rows)]) + "\n"

    def latex(self) -> str:
        """Write as a LaTeX tabular with the rules of the booktabs package."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"

        kinds = "l" * self.left + "r" * (len(self.columns) - self.left)
        top = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", line(self.columns), r"\midrule"]
        return "\n".join([*top, *map(line, self.rows), r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """Write as comma-separated values; a missing figure is an empty field."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        for row in (self.columns, *self.rows):
            writer.writerow(["" if cell == MISSING else cell.replace("\u00a0", " ") for cell in row])
        return file.getvalue()


def _aligned(cells: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    pairs = enumerate(zip(cells, widths, strict=True))
    return [cell.ljust(space) if place < left else cell.rjust(space) for place, (cell, space) in pairs]


def printable(text: str) -> str:
    """Turn control characters into spaces, so that no label can steer the terminal."""
    return "".join(one if one.isprintable() or one == "\u00a0" else " " for one in text)


def _wrap(cell: str, width: int) -> list[str]:
    return textwrap.wrap(printable(cell), width, break_on_hyphens=False) or [""]


def _markdown(cell: str) -> str:
    for character in "\\|<*_`[":
        cell = cell.replace(character, "\\" + character)
    return cell.replace("\n", " ")


def _fit(table: Table, width: int) -> list[int]:
    """Choose column widths: natural ones if they fit, else figures wrap at spaces and words take the rest."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    room = width - 2 * (len(columns) - 1)
    widths = [max(1, *map(len, column)) for column in columns]
    if sum(widths) > room:
        words = [max(1, *(len(word) for cell in column for word in cell.split(" "))) for column in columns]
        widths = widths[: table.left] + words[table.left :]
    while sum(widths) > room and max(widths) > 1:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return widths


def sent(result: Json, method: str) -> float | None:
    """Return the bytes a method sent, up and down together; None where they were not recorded."""
    up, down = (number(result, "bytes", method, way) for way in ("up", "down"))
    return None if up is None or down is None else up + down


def cost_table(result: Json) -> Table:
    """Make the table of what each method sent and how long it took."""
    columns = ("Method", "Clients to server", "Server to clients", "Total", "Seconds")
    rows = tuple(
        (
            label(method),
            size(number(result, "bytes", method, "up")),
            size(number(result, "bytes", method, "down")),
            size(sent(result, method)),
            seconds(number(result, "seconds", method)),
        )
        for method in result["scores"]
    )
    return Table(columns, rows, "1 MB = 1,000,000 bytes. Seconds are wall-clock time.")


def client_table(result: Json, clients: Sequence[str]) -> Table | None:
    """Make the table of every client's score under every method; None where no method has one.

    Args:
        result: The content of result.json.
        clients: The columns' heads, one for each client.
    """
    found = {method: at(scores, "clients") for method, scores in result["scores"].items()}
    rows = []
    for method, values in found.items():
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
