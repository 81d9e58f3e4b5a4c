"""The linear baselines on data where the right answer is known."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedloom.system.errors import UserError
from fedloom.tasks.linear_baseline import colors, gradients, linear_baseline, resize
from fedloom.types import Example

OPTIONS = ("red", "green", "none")
INK = {"red": (200, 20, 20), "green": (20, 200, 20), "none": (20, 20, 20)}


@dataclass(frozen=True)
class Patch:
    color: tuple[int, int, int]
    seed: int

    @property
    def key(self) -> str:
        return f"{self.color}{self.seed}"

    def pixels(self) -> np.ndarray:
        noise = np.random.default_rng(self.seed).integers(-20, 20, (20, 24, 3))
        return (np.array(self.color) + noise).clip(0, 255).astype(np.uint8)


def examples(count: int, start: int, options: tuple[str, ...] = OPTIONS[:2]) -> list[Example]:
    result = []
    for number in range(start, start + count):
        label = number % len(options)
        name = options[label]
        result.append(
            Example(
                str(number),
                "Which?",
                name,
                Patch(INK[name], number),
                f"it is {name} x{number}",
                label,
                None,
                OPTIONS,
            )
        )
    return result


TRAIN, TEST = examples(30, 0), examples(10, 100)
TRUTH = np.array([one.label for one in TEST])


def without(examples: list[Example], **gone: None) -> list[Example]:
    return [replace(one, **gone) for one in examples]


def test_each_slice_learns_what_is_plain_to_see():
    slices = linear_baseline(TRAIN, TEST)
    assert set(slices) == {"image", "text", "both"}
    for probabilities in slices.values():
        assert probabilities.shape == (len(TEST), len(OPTIONS))
        assert np.allclose(probabilities.sum(axis=1), 1.0)
        assert (probabilities.argmax(axis=1) == TRUTH).all()
        assert (probabilities[:, 2] < 1e-9).all()  # never seen in training


def test_both_is_the_renormalized_product():
    slices = linear_baseline(TRAIN, TEST)
    product = slices["image"] * slices["text"]
    assert np.allclose(slices["both"], product / product.sum(axis=1, keepdims=True))


def test_a_rerun_gives_the_same_numbers():
    first, second = linear_baseline(TRAIN, TEST), linear_baseline(TRAIN, TEST)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("gone", "left"), [("image", {"text"}), ("text", {"image"})])
def test_a_modality_that_is_absent_has_no_slice(gone, left):
    assert set(linear_baseline(without(TRAIN, **{gone: None}), TEST)) == left
    assert set(linear_baseline(TRAIN, without(TEST, **{gone: None}))) == left


def test_a_test_example_without_the_modality_gets_equal_probabilities():
    mixed = [replace(TEST[0], image=None), *TEST[1:]]
    slices = linear_baseline(TRAIN, mixed)
    assert np.allclose(slices["image"][0], 1 / len(OPTIONS))
    assert np.allclose(slices["both"][0], slices["text"][0])
    assert np.allclose(slices["image"][1:], linear_baseline(TRAIN, TEST)["image"][1:])


def test_a_single_class_is_always_answered():
    slices = linear_baseline([one for one in TRAIN if one.label == 1], TEST)
    assert all((probabilities.argmax(axis=1) == 1).all() for probabilities in slices.values())


def test_other_options_are_refused():
    with pytest.raises(UserError, match="'100' has no options"):
        linear_baseline(TRAIN, [replace(TEST[0], options=())])
    turned, renamed = OPTIONS[::-1], tuple(f"other {option}" for option in OPTIONS)
    for options in (turned, renamed, OPTIONS[:-1]):
        with pytest.raises(UserError, match=r"'100' has other options than '.*', or another order of them"):
            linear_baseline(TRAIN, [replace(TEST[0], options=options)])


def test_without_scikit_learn_the_message_names_the_extra_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'fedloom\[eval\]'"):
        linear_baseline(TRAIN, TEST)


@pytest.mark.parametrize("size", [(4, 6), (8, 8), (9, 5), (3, 2)])
def test_resizing_keeps_the_mean_and_constants(size):
    picture = np.random.default_rng(0).random((*size, 3))
    for side in (1, 4, 8):
        small = resize(picture, side)
        assert small.shape == (side, side, 3)
        assert np.allclose(small.mean(axis=(0, 1)), picture.mean(axis=(0, 1)))
        assert np.allclose(resize(np.ones((*size, 3)), side), 1.0)


def test_resizing_by_a_whole_factor_is_the_mean_of_blocks():
    picture = np.random.default_rng(0).random((8, 8, 3))
    blocks = picture.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.allclose(resize(picture, 4), blocks)
    assert np.allclose(resize(blocks, 8), blocks.repeat(2, axis=0).repeat(2, axis=1))


def test_a_color_histogram_counts_shares():
    picture = np.zeros((2, 2, 3))
    picture[0, 0] = 1.0
    histogram = colors(picture)
    assert (histogram[0], histogram[-1], histogram.sum()) == (0.75, 0.25, 1.0)


def test_gradients_see_direction_but_not_its_sign_nor_brightness():
    ramp = np.tile(np.linspace(0, 1, 32), (32, 1))
    across, down = gradients(ramp, 8), gradients(ramp.T, 8)
    assert not np.allclose(across, down)
    assert np.allclose(across, gradients(1 - ramp, 8))
    assert np.allclose(across, gradients(ramp / 2 + 0.5, 8), atol=0.1)
    assert np.allclose(gradients(np.full((32, 32), 0.3), 8), 0.0)


@pytest.mark.parametrize(
    "texts", [["😀", "🎉"], ["?", "…"], ["", " "]], ids=["emoji", "punctuation", "empty"]
)
def test_texts_without_words_tell_only_how_frequent_labels_are(texts):
    train = [
        replace(one, text=texts[k % 2], label=min(k, 1)) for k, one in enumerate(without(TRAIN, image=None))
    ]
    slices = linear_baseline(train, without(TEST, image=None))
    assert slices["text"].argmax(axis=1).tolist() == [1] * len(TEST)
    assert np.allclose(slices["text"], slices["text"][0])
