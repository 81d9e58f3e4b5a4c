"""The templates of pages, the widths of charts, and links that download a table."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "filename": filename}
    return environment.get_template(name)


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
