"""Text for a terminal: nothing that comes from a file, a folder's name or data can move its cursor or forge a line."""

from __future__ import annotations

import re
import textwrap

WIDEST_LINE = 2_000
"""Characters of a line that are shown; what is longer was not written by people."""

# Control characters but tab and newline, direction marks, line separators, invisible characters and halves of
# characters. Joiners (U+200C, U+200D) are part of names in several scripts.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    r"""Write out what would act on a terminal instead of being shown; lines stay lines.

    Example:
        >>> printable("cat\x1b[2J.png")
        'cat\\x1b[2J.png'
    """
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Make one line of text of bounded length that is safe to show.

    Example:
        >>> one_line("a\nfedloom: all is well")
        'a\\nfedloom: all is well'
    """
    return shortened(printable(text).replace("\n", "\\n"))


def shortened(line: str) -> str:
    """Leave out the middle of a line that is longer than anybody reads."""
    if len(line) <= WIDEST_LINE:
        return line
    return f"{line[: WIDEST_LINE // 2]}…{line[-WIDEST_LINE // 4 :]}"


def message(text: str) -> str:
    r"""Make a mistake safe to show: further lines are those that are indented, as a list of mistakes has them.

    Example:
        >>> message("2 mistakes in x\n  x:1:1: a\nfedloom: all is well")
        '2 mistakes in x\n  x:1:1: a\\nfedloom: all is well'
    """
    lines = printable(text).replace("\n", "\\n").split("\\n  ")
    return "\n  ".join(shortened(line) for line in lines)


def wrapped(line: str, width: int) -> str:
    """Wrap a line between words; further lines stand four characters further in. Words are never broken.

    Example:
        >>> print(wrapped("  train.lr: one two three", 16))
          train.lr: one
              two three
    """
    start = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line, width, subsequent_indent=f"{start}    ", break_long_words=False, break_on_hyphens=False
    )


def printable_json(text: str) -> str:
    r"""Write the same JSON with escapes in place of what would act on a terminal.

    Example:
        >>> printable_json('["\x9b31m"]')
        '["\\u009b31m"]'
    """
    return _UNSAFE.sub(_escape_json, text)


def _escape_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
