"""Make text safe for a terminal: no text of a file, a folder's name or data can move the cursor or forge a line."""

from __future__ import annotations

import re
import shlex
import textwrap
from os import PathLike, fspath

from rich.cells import cell_len, chop_cells

WIDEST_LINE = 2_000
"""Most characters of a line that are shown; people write no longer lines."""

# Control characters except tab and newline, direction marks, line separators, invisible characters and surrogates.
# Joiners (U+200C, U+200D) are allowed, because names in several scripts contain them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    r"""Escape characters that would control a terminal instead of being shown; newlines stay.

    Example:
        >>> printable("cat\x1b[2J.png")
        'cat\\x1b[2J.png'
    """
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Return a text as one line of bounded length that is safe to show.

    Example:
        >>> one_line("a\nfedloom: all is well")
        'a\\nfedloom: all is well'
    """
    return shorten_line(printable(text).replace("\n", "\\n"))


def shorten_line(line: str) -> str:
    """Cut the middle out of a line that is longer than `WIDEST_LINE`."""
    if len(line) <= WIDEST_LINE:
        return line
    return f"{line[: WIDEST_LINE // 2]}…{line[-WIDEST_LINE // 4 :]}"


def safe_message(text: str) -> str:
    r"""Return an error message that is safe to show; only its indented lines, a list of mistakes, stay lines.

    Example:
        >>> safe_message("2 mistakes in x\n  x:1:1: a\nfedloom: all is well")
        '2 mistakes in x\n  x:1:1: a\\nfedloom: all is well'
    """
    lines = printable(text).replace("\n", "\\n").split("\\n  ")
    return "\n  ".join(shorten_line(line) for line in lines)


def wrap_line(line: str, width: int) -> str:
    """Wrap a line between words; further lines are indented by four more characters. Words are never broken.

    Example:
        >>> print(wrap_line("  train.lr: one two three", 16))
          train.lr: one
              two three
    """
    start = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line, width, subsequent_indent=f"{start}    ", break_long_words=False, break_on_hyphens=False
    )


def display_width(text: str) -> int:
    """Return the columns that a text takes on a terminal: Chinese and Japanese characters take two each, accents none.

    Example:
        >>> display_width("cat"), display_width("\u732b"), display_width("cafe\u0301")
        (3, 2, 4)
    """
    return cell_len(text)


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Fill a text up with spaces to a number of columns, behind it, or before it if it stands at the right.

    Example:
        >>> pad("cat", 4), pad("\u732b", 4), pad("9", 4, right=True)
        ('cat ', '猫  ', '   9')
    """
    spaces = " " * (width - display_width(text))
    return spaces + text if right else text + spaces


def wrap_cell(text: str, width: int) -> list[str]:
    """Break a text at spaces, and words that are too long anywhere, into lines of at most `width` columns (≥ 2).

    Example:
        >>> wrap_cell("one two three", 8), wrap_cell("\u732b\u732b\u732b", 4), wrap_cell("", 8)
        (['one two', 'three'], ['猫猫', '猫'], [''])
    """
    lines = [""]
    for word in filter(None, text.split(" ")):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if display_width(joined) <= width:
            lines[-1] = joined
        else:
            lines += chop_cells(word, width)
    return lines if lines[0] or len(lines) == 1 else lines[1:]


def printable_json(text: str) -> str:
    r"""Escape characters of a JSON text that would control a terminal; the JSON stays equal.

    Example:
        >>> printable_json('["\x9b31m"]')
        '["\\u009b31m"]'
    """
    return _UNSAFE.sub(_escape_json, text)


def _escape_json(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def as_argument(path: str | PathLike[str]) -> str:
    """Return a path as an argument of a command, for which a dash at its beginning is no option.

    Example:
        >>> as_argument("-mine"), as_argument("runs/mine")
        ('./-mine', 'runs/mine')
    """
    return f"./{fspath(path)}" if fspath(path).startswith("-") else fspath(path)


def shell_word(path: str | PathLike[str]) -> str:
    """Return a path as one word of a command that can be copied into a shell.

    Example:
        >>> shell_word("runs/mine"), shell_word("my runs/50%"), shell_word("-mine")
        ('runs/mine', "'my runs/50%'", './-mine')
    """
    return shlex.quote(as_argument(path))
