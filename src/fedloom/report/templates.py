"""The templates of pages, the widths of charts, and links that download a table."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

WIDE, SLIM = 760, 400  # CSS pixels; the style sheet shows one or the other


@dataclass(frozen=True)
class Figure:
    """A chart in two widths; the style sheet shows the one that fits. `slim` may be empty."""

    wide: Markup
    slim: Markup


def figure(draw: Callable[[float], Markup], wide: float = WIDE, slim: float | None = SLIM) -> Figure | None:
    """Draw a chart in two widths, or with `slim` None in one; None if there is nothing to draw."""
    drawn = Figure(draw(wide), Markup() if slim is None else draw(slim))
    return drawn if drawn.wide else None


@cache
def load_template(name: str) -> Template:
    """Load one of the templates in this module's folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "filename": filename}
    return environment.get_template(name)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""Characters that are no text of a page; a record may hold them."""


def _visible(value: Any) -> Any:
    """Return a value for a page; in a text a control character becomes the sign for one that cannot be shown."""
    if not isinstance(value, str) or not _CONTROL.search(value):
        return value
    shown = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)
    return Markup(shown) if isinstance(value, Markup) else shown


def data_uri(content: str, kind: str) -> str:
    """Return a text as the address of a link, so that a page that loads nothing can offer it as a file.

    Example:
        >>> data_uri("a,b", "text/csv")
        'data:text/csv;charset=utf-8,a%2Cb'
    """
    return f"data:{kind};charset=utf-8,{quote(content.encode(errors='replace'))}"


def filename(title: str) -> str:
    """Make a file name of a title.

    Example:
        >>> filename("Gain of each client: VQA")
        'gain-of-each-client-vqa'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "table"
