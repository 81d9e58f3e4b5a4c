"""Find the longest of a client's examples, in tokens, without computing features of images."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.models.batches import encode
from fedloom.models.empty_model import learn_grids
from fedloom.models.load_model import Vlm
from fedloom.types import Conversation

LOOKED_AT = 256
"""Examples of a class among which the longest is looked for; further ones are skipped evenly."""

COUNTED = 6
"""Examples with the longest texts, and with an image, whose tokens are counted."""


def longest(vlm: Vlm, conversations: Sequence[Conversation]) -> Conversation:
    """Return the longest of some conversations, of which there is at least one."""
    looked_at = conversations[:: max(1, len(conversations) // LOOKED_AT)]
    by_text = sorted(looked_at, key=lambda one: (len(one.pictures), len(one.user) + len(one.answer)))
    return max(by_text[-COUNTED:], key=lambda one: tokens_of(vlm, one))


def tokens_of(vlm: Vlm, conversation: Conversation) -> tuple[int, int]:
    """Return the tokens of a conversation, and those of its answer."""
    learn_grids(
        vlm, [image for turn in (*conversation.history, conversation.turn) for image in turn.pictures]
    )
    encoded = encode(vlm, conversation, (conversation.answer,))
    return len(encoded.prompt) + len(encoded.answers[0]), len(encoded.answers[0])
