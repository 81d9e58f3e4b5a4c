"""Conversations of every kind that a family can have, for tests that compare computations of one model."""

from __future__ import annotations

from fedloom.models.load_model import Vlm
from fedloom.types import Conversation, Turn

from .tiny import Drawn

TARGETS = ("q_proj", "o_proj", "up_proj", "query_key_value", "dense", "qkv_proj")
"""Layers that get an adapter, by the names of all families."""
OPTIONS = ("yes", "no way")
WORDS = [
    Conversation("Which?", "no way", None, OPTIONS),
    Conversation("And now?", "yes", None, OPTIONS, history=(Turn("Which?", "yes"),), system="Be short."),
]
IMAGES = [
    Conversation("Which of these is it?", "yes", Drawn("a"), OPTIONS),
    Conversation("Same?", "no way", Drawn("c"), OPTIONS, more=(Drawn("b", 16, 40),)),
]


def talks(vlm: Vlm) -> list[Conversation]:
    """Return conversations that a model can have."""
    return [*IMAGES, *WORDS] if vlm.family.images else WORDS
