"""Check examples against a model before a run begins: its image processor, and how many tokens it takes.

An image that the model's image processor refuses, or of which no image token is left, makes its record invalid. So
does a record whose tokens are more than the model has positions for, unless its text evidence may be cut, and for a
language model without an encoder a record whose evidence is an image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedloom.data.images import FileImage
from fedloom.data.record_files import quoted
from fedloom.models.batches import image_tokens, length
from fedloom.models.computed_cache import SHARD
from fedloom.models.decoder_inputs import positions_of
from fedloom.models.load_model import Vlm
from fedloom.models.text_only import TEXT_ONLY, without_images
from fedloom.types import Conversation, DataSet, Example, LazyImage, Rejected

MOST_TOKENS = 8192
"""Tokens of one conversation where `model.max_tokens` is null and the model has more positions.

Scoring options side by side takes memory that grows with the square of the length: 8,192 tokens take about 0.3 GB
for every conversation of a batch, beside what the model itself needs. Many options take several passes, see
`fedloom.client.answer_questions.PACKED`.
"""

BYTES_A_TOKEN = 64
"""More bytes of text than this for every token allowed are too long without being counted."""

TooLong = Literal["skip", "cut"]
Shapes = Callable[[Example], Sequence[Conversation]]
"""Example → the conversations that a run may make of it, with all of its evidence."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a model can use of a data set.

    Attributes:
        data: The data set without the examples that the model cannot use, which are now among its invalid records.
        cut: One sentence for each example whose text was cut.
        computed: Images whose features were computed.
        unseen: Examples that have an image beside their text which the model does not see.
    """

    data: DataSet
    cut: tuple[str, ...]
    computed: int
    unseen: int = 0

    @property
    def messages(self) -> list[str]:
        """What the user must know of it besides invalid records, in sentences."""
        count = f"{self.unseen:,} examples are" if self.unseen > 1 else "1 example is"
        blind = f"{count} used without their image{'s' if self.unseen > 1 else ''}: {TEXT_ONLY}"
        return [*([blind] if self.unseen else []), *self.cut]

    @property
    def noted(self) -> dict[str, Any]:
        """What the record holds of it, where there is anything."""
        return {
            **({"cut": [*self.cut]} if self.cut else {}),
            **({"unseen": self.unseen} if self.unseen else {}),
        }


def checked(vlm: Vlm, data: DataSet, shapes: Shapes, too_long: TooLong, most: int | None = None) -> Checked:
    """Check every example of a data set against a model; an example is kept as it is wherever it can be used.

    Args:
        vlm: The model.
        data: The data set.
        shapes: What conversations the run makes of an example.
        too_long: Whether an example of too many tokens is skipped, or its text evidence cut at the end.
        most: Tokens allowed, at least 1; None as in `limit_of`.
    """
    sees = vlm.family.images
    pictures = [one for example in data.examples for one in example.pictures if sees]
    unread = {id(one): reason for one in pictures if (reason := _unread(one)) is not None}
    computed, refused = _refused(vlm, [one for one in pictures if id(one) not in unread])
    limit = limit_of(vlm, most)
    size = _bounds(vlm)
    cut: list[str] = []
    rejected: list[Rejected] = []
    blind: set[str] = set()

    def usable(example: Example) -> Example | None:
        if example.pictures and not sees:
            if example.text is None:
                rejected.append(_rejected(example, f"shows an image and no text, but {TEXT_ONLY}"))
                return None
            blind.add(example.id)
            example = without_images(example)
        wrong = [unread.get(id(one)) or refused.get(one.key) for one in example.pictures]
        reason = next(filter(None, wrong), None)
        if reason is not None:
            other = _spared(vlm, example)
            if other is None:
                rejected.append(_rejected(example, reason))
                return None
            example = other
        tokens = _tokens(vlm, shapes(example), limit, size)
        if tokens is None:
            return example
        told = f"more than the {limit:,} positions that the model has or model.max_tokens allows"
        if too_long == "cut" and (shorter := _shortened(vlm, example, shapes, limit, size)) is not None:
            count = len(shorter.text or "")
            cut.append(
                f"{_place(example)}: its text was cut to {count:,} of {len(example.text or ''):,} characters, "
                f"because it is too long ({tokens} tokens, {told})"
            )
            return shorter
        rejected.append(_rejected(example, f"is too long: {tokens} tokens, {told}"))
        return None

    train, test, validation = (
        tuple(one for example in part if (one := usable(example)) is not None)
        for part in (data.train, data.test, data.validation)
    )
    if not rejected and not cut and not blind:
        return Checked(data, (), computed)
    drawn = data.drawn or (data.train if len(train) < len(data.train) else ())
    found = DataSet(data.name, train, test, (*data.rejected, *rejected), drawn, validation)
    unseen = sum(one.id in blind for one in found.examples)
    return Checked(found, tuple(cut), computed, unseen)


def limit_of(vlm: Vlm, most: int | None = None) -> int:
    """Return how many tokens a conversation may have.

    Args:
        vlm: The model.
        most: The user's own bound; None is `MOST_TOKENS`. The decoder's positions bound it in either case.
    """
    positions, chosen = positions_of(vlm), MOST_TOKENS if most is None else most
    return chosen if positions is None else min(chosen, positions)


def _place(example: Example) -> str:
    return example.place or f"example {quoted(example.id)}"


def _rejected(example: Example, reason: str) -> Rejected:
    return Rejected(_place(example), None, reason)


def _unread(picture: LazyImage) -> str | None:
    """Return why not even the key of an image can be known, such as a file that has gone or grown; else None."""
    try:
        _ = picture.key
    except Exception as error:
        return f"{_name(picture)} cannot be read ({_said(error)})"
    return None


def _spared(vlm: Vlm, example: Example) -> Example | None:
    """Return an example with the first of its spare images that can be used, or None."""
    for picture in example.spare:
        if _unread(picture) is None and not _refused(vlm, [picture])[1]:
            return replace(example, image=picture)
    return None


def _name(picture: LazyImage) -> str:
    return f"image {quoted(picture.path.name)}" if isinstance(picture, FileImage) else "its image"


def _refused(vlm: Vlm, pictures: Sequence[LazyImage]) -> tuple[int, dict[str, str]]:
    """Compute the features that are not known yet: how many, and by key the reason of each that cannot be.

    Images go together as far as nothing is wrong with them, so that one bad image changes no other's features.
    """
    todo = vlm.memo.unknown(pictures)
    reasons: dict[str, str] = {}
    for start in range(0, len(todo), SHARD):
        some = todo[start : start + SHARD]
        try:
            vlm.look(some)
        except (
            Exception
        ):  # image processors raise whatever they like; one by one the image that is meant is found
            for one in some:
                if (reason := _reason(vlm, one)) is not None:
                    reasons[one.key] = reason
            vlm.look([one for one in some if one.key not in reasons])
    return len(todo) - len(reasons), reasons


def _reason(vlm: Vlm, picture: LazyImage) -> str | None:
    """Encode one image by itself and return why that fails, or None."""
    name = _name(picture)
    try:
        height, width = picture.pixels().shape[:2]
    except Exception as error:
        return f"{name} cannot be read ({_said(error)})"
    try:
        vlm.encoded([picture])
    except Exception as error:
        return f"{name}, {width:,} x {height:,} pixels, is refused by the model's image processor ({_said(error)})"
    return None


def _said(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else f"{line[:159]}…"


Bound = Callable[[Conversation], int]
"""Conversation → a number of tokens that it does not exceed."""


def _bounds(vlm: Vlm) -> Bound:
    """Return a function that bounds a conversation's tokens without tokenizing its text: no token is less than a byte."""
    frame = length(vlm, Conversation("", "")) + 8  # what the template writes around a turn

    def bound(one: Conversation) -> int:
        texts = [one.user, *(one.options or (one.answer,)), one.system or ""]
        turns = [text for turn in one.history for text in (turn.user, turn.answer)]
        written = sum(len(text.encode()) for text in (*texts, *turns))
        images = sum(image_tokens(vlm, grid) for grid in vlm.grids(one.pictures))
        return frame * (len(one.history) + 2) + written + images

    return bound


def _tokens(vlm: Vlm, conversations: Sequence[Conversation], limit: int, bound: Bound) -> str | None:
    """Return the tokens of the longest conversation in words, or None where none has more than the limit."""
    most = 0
    for one in conversations:
        if (size := bound(one)) <= limit:
            continue
        if size > limit * BYTES_A_TOKEN:
            return f"far more than {limit:,}"
        most = max(most, length(vlm, one))
    return f"{most:,}" if most > limit else None


def _shortened(vlm: Vlm, example: Example, shapes: Shapes, limit: int, bound: Bound) -> Example | None:
    """Cut the text evidence at its end as little as possible, or return None where that is not enough."""
    text = example.text or ""

    def fits(count: int) -> bool:
        return _tokens(vlm, shapes(replace(example, text=text[:count])), limit, bound) is None

    low, high = 0, min(len(text), limit * BYTES_A_TOKEN)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    end = max(low - 40, 0)
    words = (
        text[:low].rsplit(None, 1)[0] if text[low : low + 1].strip() and " " in text[end:low] else text[:low]
    )
    kept = words.strip()
    return replace(example, text=kept) if kept and fits(len(words)) else None
