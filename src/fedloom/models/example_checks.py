"""Check before a run that the model can use every example: its images, and its number of tokens.

A record is invalid if the model's image processor fails on its image or leaves no image token of it, if it has more
tokens than the model has positions and its text may not be cut, or if it has an image and no text and the model is a
language model without an encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedloom.data.images import FileImage
from fedloom.data.record_files import quoted
from fedloom.models.batches import count_tokens, image_tokens
from fedloom.models.decoder_inputs import max_positions
from fedloom.models.load_model import Vlm, wrong_pixels
from fedloom.models.memory_cache import SHARD
from fedloom.models.text_only import TEXT_ONLY, without_images
from fedloom.system.errors import is_of_accelerator
from fedloom.types import Conversation, DataSet, Example, LazyImage, Rejected

MOST_TOKENS = 8192
"""The most tokens of a conversation if `model.max_tokens` is null and the model has more positions.

Scoring options takes memory that grows with the square of the length: 8,192 tokens take about 0.3 GB
for every conversation of a batch, in addition to the model itself. Many options take several passes; see
`fedloom.client.answer_questions.PACKED`.
"""

BYTES_A_TOKEN = 64
"""A text with more bytes than this for each allowed token is too long; its tokens are not counted."""

TooLong = Literal["skip", "cut"]
ConversationsOf = Callable[[Example], Sequence[Conversation]]
"""Example → the conversations that a run may build from it, with all of its modalities."""


@dataclass(frozen=True, slots=True)
class CheckedData:
    """A data set after the check.

    Attributes:
        data: The data set; examples that the model cannot use are now among its invalid records.
        cut: One sentence for each example whose text was cut.
        computed: Number of images whose features were computed.
        unseen: Number of examples that are used without their image, because the model sees text only.
    """

    data: DataSet
    cut: tuple[str, ...]
    computed: int
    unseen: int = 0

    @property
    def messages(self) -> list[str]:
        """Sentences for the user, besides those on invalid records."""
        count = f"{self.unseen:,} examples are" if self.unseen > 1 else "1 example is"
        blind = f"{count} used without their image{'s' if self.unseen > 1 else ''}: {TEXT_ONLY}"
        return [*([blind] if self.unseen else []), *self.cut]

    @property
    def for_run_log(self) -> dict[str, Any]:
        """Entries for the run's log; empty ones are left out."""
        return {
            **({"cut": [*self.cut]} if self.cut else {}),
            **({"unseen": self.unseen} if self.unseen else {}),
        }


def _not_shown(done: int, total: int) -> None:
    pass


def check_examples(
    vlm: Vlm,
    data: DataSet,
    conversations_of: ConversationsOf,
    too_long: TooLong,
    most: int | None = None,
    encoded: Callable[[int, int], None] = _not_shown,
) -> CheckedData:
    """Check whether a model can use every example of a data set; usable examples are not changed.

    Args:
        vlm: The model.
        data: The data set.
        conversations_of: Example → the conversations that the run builds from it.
        too_long: Whether an example with too many tokens is skipped, or its text cut at the end.
        most: The most tokens, at least 1; None as in `token_limit`.
        encoded: Called with the number of images whose features were computed, first with 0, and with that of all which have
            to be.
    """
    sees = vlm.family.images
    images = [image for example in data.examples for image in example.pictures if sees]
    unread = {id(image): reason for image in images if (reason := _why_unreadable(image)) is not None}
    computed, failed = _compute_features(vlm, [image for image in images if id(image) not in unread], encoded)
    limit = token_limit(vlm, most)
    size = _token_bound(vlm)
    cut: list[str] = []
    rejected: list[Rejected] = []
    blind: set[str] = set()

    def usable(example: Example) -> Example | None:
        if example.pictures and not sees:
            if example.text is None:
                rejected.append(_invalid(example, f"shows an image and no text, but {TEXT_ONLY}"))
                return None
            blind.add(example.id)
            example = without_images(example)
        reasons = [unread.get(id(image)) or failed.get(image.key) for image in example.pictures]
        reason = next(filter(None, reasons), None)
        if reason is not None:
            other = _with_spare_image(vlm, example)
            if other is None:
                rejected.append(_invalid(example, reason))
                return None
            example = other
        tokens = _tokens(vlm, conversations_of(example), limit, size)
        if tokens is None:
            return example
        if (
            too_long == "cut"
            and (shorter := _shortened(vlm, example, conversations_of, limit, size)) is not None
        ):
            count = len(shorter.text or "")
            cut.append(
                f"{_place(example)}: its text was cut to {count:,} of {len(example.text or ''):,} characters, "
                f"because it is too long ({tokens} tokens, {_excess(limit)})"
            )
            return shorter
        rejected.append(_invalid(example, _too_long(tokens, limit)))
        return None

    train, test, validation = (
        tuple(checked for example in part if (checked := usable(example)) is not None)
        for part in (data.train, data.test, data.validation)
    )
    if not rejected and not cut and not blind:
        return CheckedData(data, (), computed)
    drawn = data.drawn or (data.train if len(train) < len(data.train) else ())
    usable_data = DataSet(data.name, train, test, (*data.rejected, *rejected), drawn, validation)
    unseen = sum(example.id in blind for example in usable_data.examples)
    return CheckedData(usable_data, tuple(cut), computed, unseen)


def why_too_long(vlm: Vlm, conversation: Conversation, most: int | None = None) -> str | None:
    """Return why a conversation has more tokens than the model can take, or None; `most` as in `token_limit`."""
    limit = token_limit(vlm, most)
    tokens = _tokens(vlm, [conversation], limit, _token_bound(vlm))
    return None if tokens is None else _too_long(tokens, limit)


def _too_long(tokens: str, limit: int) -> str:
    return f"is too long: {tokens} tokens, {_excess(limit)}"


def _excess(limit: int) -> str:
    return f"more than the {limit:,} positions that the model has or model.max_tokens allows"


def token_limit(vlm: Vlm, most: int | None = None) -> int:
    """Return how many tokens a conversation may have.

    Args:
        vlm: The model.
        most: The user's limit; None for `MOST_TOKENS`. The result is at most the decoder's number of positions.
    """
    positions, limit = max_positions(vlm), MOST_TOKENS if most is None else most
    return limit if positions is None else min(limit, positions)


def _place(example: Example) -> str:
    return example.place or f"example {quoted(example.id)}"


def _invalid(example: Example, reason: str) -> Rejected:
    return Rejected(_place(example), None, reason)


def _why_unreadable(image: LazyImage) -> str | None:
    """Return why the key of an image cannot be read, for instance because its file is missing or too large, or None."""
    try:
        _ = image.key
    except Exception as error:
        return f"{_name(image)} cannot be read ({_short_message(error)})"
    return None


def _with_spare_image(vlm: Vlm, example: Example) -> Example | None:
    """Return an example with the first of its spare images that can be used, or None."""
    for image in example.spare:
        if _why_unreadable(image) is None and not _compute_features(vlm, [image])[1]:
            return replace(example, image=image)
    return None


def _name(image: LazyImage) -> str:
    return f"image {quoted(image.path.name)}" if isinstance(image, FileImage) else "its image"


def _compute_features(
    vlm: Vlm, images: Sequence[LazyImage], encoded: Callable[[int, int], None] = _not_shown
) -> tuple[int, dict[str, str]]:
    """Compute the features that are not cached; return their number, and the reason of each failure by image key.

    The other images of a bad image's batch are encoded together again, so that it does not change their features. Where an
    accelerator lacks memory, no image is at fault: that error is raised.
    """
    todo = vlm.memo.missing(images)
    reasons: dict[str, str] = {}
    encoded(0, len(todo))
    for start in range(0, len(todo), SHARD):
        batch = todo[start : start + SHARD]
        try:
            vlm.compute_features(batch)
        except Exception as error:  # image processors raise any class
            if is_of_accelerator(error):
                raise
            # Encoding one by one shows which images fail.
            for image in batch:
                if (reason := _why_not_encodable(vlm, image)) is not None:
                    reasons[image.key] = reason
            vlm.compute_features([image for image in batch if image.key not in reasons])
        encoded(start + len(batch), len(todo))
    return len(todo) - len(reasons), reasons


def _why_not_encodable(vlm: Vlm, image: LazyImage) -> str | None:
    """Encode one image by itself; return the reason of a failure, or None."""
    name = _name(image)
    try:
        pixels = image.pixels()
    except Exception as error:
        return f"{name} cannot be read ({_short_message(error)})"
    if (reason := wrong_pixels(pixels)) is not None:
        return f"{name} cannot be used: {reason}"
    height, width = pixels.shape[:2]
    try:
        vlm.encode_images([image])
    except Exception as error:
        if is_of_accelerator(error):
            raise
        return f"{name}, {width:,} x {height:,} pixels, is refused by the model's image processor ({_short_message(error)})"
    return None


def _short_message(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else f"{line[:159]}…"


Bound = Callable[[Conversation], int]
"""Conversation → a number of tokens that it does not exceed."""


def _token_bound(vlm: Vlm) -> Bound:
    """Return a function that bounds a conversation's tokens without tokenizing it: every token has at least one byte."""
    frame = count_tokens(vlm, Conversation("", "")) + 8  # the text that the template writes around a turn

    def bound(conversation: Conversation) -> int:
        options = conversation.options or (conversation.answer,)
        texts = [conversation.user, *options, conversation.system or ""]
        turns = [text for turn in conversation.history for text in (turn.user, turn.answer)]
        size = sum(len(text.encode()) for text in (*texts, *turns))
        images = sum(image_tokens(vlm, grid) for grid in vlm.grids(conversation.pictures))
        return frame * (len(conversation.history) + 2) + size + images

    return bound


def _tokens(vlm: Vlm, conversations: Sequence[Conversation], limit: int, bound: Bound) -> str | None:
    """Return the tokens of the longest conversation as text, or None if no conversation exceeds the limit."""
    most = 0
    for conversation in conversations:
        if (size := bound(conversation)) <= limit:
            continue
        if size > limit * BYTES_A_TOKEN:
            return f"far more than {limit:,}"
        most = max(most, count_tokens(vlm, conversation))
    return f"{most:,}" if most > limit else None


def _shortened(
    vlm: Vlm, example: Example, conversations_of: ConversationsOf, limit: int, bound: Bound
) -> Example | None:
    """Cut the text at its end as little as possible; return None if no part of the text fits."""
    text = example.text or ""

    def fits(count: int) -> bool:
        return _tokens(vlm, conversations_of(replace(example, text=text[:count])), limit, bound) is None

    low, high = 0, min(len(text), limit * BYTES_A_TOKEN)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    end = max(low - 40, 0)
    cut = (
        text[:low].rsplit(None, 1)[0] if text[low : low + 1].strip() and " " in text[end:low] else text[:low]
    )
    kept = cut.strip()
    return replace(example, text=kept) if kept and fits(len(cut)) else None
