"""Descriptions of a picture, compared word by word after lowering the case and dropping punctuation."""

from __future__ import annotations

import re

from fedloom.tasks.base import clean_text
from fedloom.tasks.vqa import free_text


def normalise(text: str) -> str:
    """Lower the case and drop punctuation; an answer of nothing else is kept.

    Example:
        >>> normalise("A big, red circle.")
        'a big red circle'
    """
    lower = clean_text(text).lower()
    return " ".join(re.sub(r"[\W_]+", " ", lower).split()) or lower


CAPTION = free_text(normalise)
