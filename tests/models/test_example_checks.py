"""Examples are checked against the model: every one is used, skipped or cut with a reason, and nobody else is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.shares import fast_if, share
from torch import Tensor

from fedloom.data.images import FileImage
from fedloom.models.batches import count_tokens
from fedloom.models.example_checks import MOST_TOKENS, CheckedData, check_examples, token_limit
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.models.memory_cache import Memo
from fedloom.system.errors import UserError, user_errors
from fedloom.tasks import TASKS
from fedloom.types import Conversation, DataSet, Example, Presence


@dataclass(frozen=True)
class Plain:
    """A gray image of any size."""

    height: int
    width: int

    @property
    def key(self) -> str:
        return f"plain-{self.height}-{self.width}"

    def pixels(self) -> NDArray[np.uint8]:
        return np.full((self.height, self.width, 3), 99, np.uint8)


@dataclass(frozen=True)
class Gone:
    """An image that can no longer be read."""

    key: str = "gone"

    def pixels(self) -> NDArray[np.uint8]:
        raise UserError("a.png: the image is missing")


def example(name: str, **changes: object) -> Example:
    given = {
        "question": "Which?",
        "answer": "yes",
        "options": ("no", "yes"),
        "label": 1,
        "place": f"d, line {name}",
    }
    return Example(id=name, **{**given, **changes})  # type: ignore[arg-type]


def shapes(one: Example) -> Sequence[Conversation]:
    return [TASKS[one.task].render(one, Presence(True, True), answer_form="text")]


def check(vlm: Vlm, *examples: Example, **changes: object) -> CheckedData:
    data = DataSet("any", examples, (example("test", text="t"),))
    return check_examples(vlm, data, shapes, **{"too_long": "skip", **changes})  # type: ignore[arg-type]


SIZES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (2, 2),
    (3, 3),
    (3, 7),
    (4, 1200),
    (1200, 4),
    (9, 9),
    (150, 150),
    (1, 1000),
]


@pytest.mark.parametrize("family", share(sorted(name for name, row in FAMILIES.items() if row.images), 3, 1))
def test_an_image_is_used_or_its_record_is_invalid(family: str, saved: Callable[[str], Path]) -> None:
    """Whatever an image processor makes of a size, the check says it, and what the check lets pass can be trained on."""
    vlm = load_vlm(str(saved(family)))
    examples = [example(str(at), image=Plain(*size)) for at, size in enumerate(SIZES)]
    good = example("good", image=Plain(16, 16))
    data = DataSet("any", (*examples, good), (example("test", text="t"),))
    checked = check_examples(vlm, data, shapes, "skip", 10**6)
    kept = {one.id for one in checked.data.train}
    assert "good" in kept
    lost = {one.file for one in checked.data.rejected}
    assert lost == {one.place for one in examples if one.id not in kept}
    for one in checked.data.rejected:
        assert (
            "pixels, is refused by the model's image processor" in one.reason or "is too long" in one.reason
        )
    for one in checked.data.train:
        assert all(
            features.isfinite().all() and features.numel() for features in vlm.image_features(one.pictures)
        )
        assert count_tokens(vlm, shapes(one)[0]) > 0


def test_a_bad_image_does_not_change_the_features_of_others(saved: Callable[[str], Path]) -> None:
    vlm = load_vlm(str(saved("qwen2_vl")))
    good = [example(str(n), image=Plain(16 + n, 16)) for n in range(5)]
    bad = [example("strip", image=Plain(1, 1000)), example("gone", image=Gone())]
    alone = check(vlm, *good)
    assert alone.data.train == tuple(good) and not alone.data.rejected
    before = vlm.image_features([one.image for one in good if one.image])
    cold = replace(vlm, memo=Memo())
    mixed = check(cold, good[0], bad[0], *good[1:3], bad[1], *good[3:])
    assert mixed.data.train == tuple(good)
    assert [str(one).split(":")[0] for one in mixed.data.rejected] == ["d, line strip", "d, line gone"]
    assert "cannot be read (a.png: the image is missing)" in mixed.data.rejected[1].reason
    after = cold.image_features([one.image for one in good if one.image])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("fits", [0, 1])
def test_an_accelerator_without_memory_is_no_fault_of_the_images(
    fits: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one image at a time would fit, because batches of other sizes round differently."""
    vlm = load_vlm(str(tiny_model))
    encode_images = Vlm.encode_images

    def short(self: Vlm, images: Sequence[Any]) -> dict[str, Tensor]:
        if len(images) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode_images(self, images)

    monkeypatch.setattr(Vlm, "encode_images", short)
    with (
        pytest.raises(UserError, match=r"memory of the accelerator ran out; try .*model\.pixels"),
        user_errors(),
    ):
        check(vlm, example("a", image=Plain(8, 8)), example("b", image=Plain(9, 9), spare=(Plain(8, 8),)))


def test_files_that_changed_since_they_were_listed_are_invalid_records(
    tiny_model: Path, tmp_path: Path
) -> None:
    vlm = load_vlm(str(tiny_model))
    gone = example("gone", image=FileImage(tmp_path / "a.png"))
    checked = check(vlm, gone, example("good", image=Plain(8, 8)))
    assert [one.id for one in checked.data.train] == ["good"]
    assert "image 'a.png' cannot be read" in checked.data.rejected[0].reason


@pytest.mark.parametrize(
    "given",
    [
        np.full((24, 24, 3), 0.5, np.float32),
        np.full((3, 24, 24), 9, np.uint8),
        np.full((24, 24), 9, np.uint8),
        [[1]],
    ],
)
def test_pixels_of_another_form_are_never_misread(given: Any, tiny_model: Path) -> None:
    """Fractions would be black, and channels that come first would be rows: both give features without an error."""

    class Other:
        key = "other"

        def pixels(self) -> Any:
            return given

    vlm = load_vlm(str(tiny_model))
    checked = check(vlm, example("other", image=Other()), example("good", image=Plain(8, 8)))
    assert [one.id for one in checked.data.train] == ["good"]
    assert "must be a numpy array of uint8 of shape [height, width, 3]" in checked.data.rejected[0].reason


def test_a_spare_image_replaces_a_damaged_one(tiny_model: Path, tmp_path: Path) -> None:
    vlm = load_vlm(str(tiny_model))
    spare = (FileImage(tmp_path / "none.png"), Gone(), Plain(8, 8), Plain(9, 9))
    checked = check(
        vlm, example("study", image=Gone(), spare=spare), example("lost", image=Gone(), spare=spare[:2])
    )
    assert [(one.id, one.image) for one in checked.data.train] == [("study", Plain(8, 8))]
    assert [one.file for one in checked.data.rejected] == ["d, line lost"]


def test_the_token_limit_is_the_models_unless_the_user_sets_a_lower_one(tiny_model: Path) -> None:
    vlm = load_vlm(str(tiny_model))
    config = vlm.model.config.get_text_config()
    positions = config.max_position_embeddings
    assert token_limit(vlm, 7) == 7
    assert token_limit(vlm, 10**9) == positions
    config.max_position_embeddings = 10**6
    assert token_limit(vlm) == MOST_TOKENS


def test_every_example_that_is_too_long_is_skipped_and_no_other(tiny_model: Path) -> None:
    vlm = load_vlm(str(tiny_model))
    texts = ["word " * count for count in (1, 10, 20, 30, 40, 80, 10**5)]
    examples = [example(str(at), text=text) for at, text in enumerate(texts)]
    sizes = [count_tokens(vlm, shapes(one)[0]) for one in examples[:-1]]
    limit = sizes[3]
    checked = check(vlm, *examples, most=limit)
    assert checked.data.train == tuple(examples[:4])
    assert [one.file for one in checked.data.rejected] == ["d, line 4", "d, line 5", "d, line 6"]
    assert (
        f"is too long: {sizes[4]:,} tokens, more than the {limit:,} positions"
        in checked.data.rejected[0].reason
    )


def test_the_text_is_cut_as_little_as_needed_and_nothing_else(tiny_model: Path) -> None:
    vlm = load_vlm(str(tiny_model))
    long = example("1", text=" ".join(f"word{n}" for n in range(500)), question="What is it that it says?")
    short = example("2", text="short")
    limit = count_tokens(vlm, shapes(replace(long, text=long.text[:200] if long.text else None))[0])
    checked = check(
        vlm, long, short, example("3", question="why " * 500, text="t"), most=limit, too_long="cut"
    )
    cut, kept = checked.data.train
    assert kept == short and cut.text and long.text and long.text.startswith(cut.text)
    assert (cut.question, cut.answer, cut.options) == (long.question, long.answer, long.options)
    assert count_tokens(vlm, shapes(cut)[0]) <= limit
    longer = replace(long, text=long.text[: len(cut.text) + 12])
    assert count_tokens(vlm, shapes(longer)[0]) > limit
    assert checked.cut[0].startswith(
        f"d, line 1: its text was cut to {len(cut.text):,} of {len(long.text):,} characters"
    )
    assert [one.file for one in checked.data.rejected] == ["d, line 3"]


def test_data_that_fit_are_returned_unchanged(tiny_model: Path) -> None:
    vlm = load_vlm(str(tiny_model))
    data = DataSet("any", (example("1", text="t"),), (example("2", image=Plain(8, 8)),))
    assert check_examples(vlm, data, shapes, "cut").data is data


@dataclass(frozen=True)
class Colored(Plain):
    """An image of one color, whose channels differ."""

    def pixels(self) -> NDArray[np.uint8]:
        return np.full((self.height, self.width, 3), (10, 100, 200), np.uint8)


@pytest.mark.parametrize("height", fast_if(range(1, 9), lambda _, rows: rows in (1, 3, 4)))
@pytest.mark.parametrize("name", ["bundled", "bundled-free"])
def test_an_image_of_few_rows_is_read_row_by_row(
    name: str, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image processors take 1, 3 or 4 rows for channels; an image of one color shows that these ones did not."""
    vlm = load_vlm(name)
    read = type(vlm.processor.image_processor).__call__
    made: list[Tensor] = []

    def watched(*given: Any, **choices: Any) -> Any:
        inputs = read(*given, **choices)
        made.append(torch.as_tensor(inputs["images"][0][0] if "images" in inputs else inputs["pixel_values"]))
        return inputs

    monkeypatch.setattr(type(vlm.processor.image_processor), "__call__", watched)
    low, usual = vlm.image_features([Colored(height, 24)]) + vlm.image_features([Colored(24, 24)])
    assert low.shape[-1] == usual.shape[-1]
    pixels = made[0].reshape(-1, *made[0].shape[-3:])[0]  # [3, H, W], from 0..255 to −1..1, and padding
    assert len(pixels) == 3
    shown = [
        [bool(((row + 1) * 127.5 - value).abs().lt(1).any()) for value in (10, 100, 200)] for row in pixels
    ]
    assert shown == torch.eye(3).bool().tolist()
