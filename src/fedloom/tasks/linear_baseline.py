"""The linear baseline: logistic regressions without a network, which a fine-tuned model has to beat.

The features of images are gradients, colors and a thumbnail; those of texts are tf-idf weights of words and word pairs,
or the result of a function, such as sentence embeddings. "both" is the product of the two posteriors.

Shape legend: N = number of examples, C = number of options, F = number of features, S = side in pixels.

Reference: N. Dalal, B. Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005.

Differs from the paper: gradients of the gray image, cells of two sizes, one block normalization (L2 cut
off at 0.2, not renormalized).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.system.errors import UserError
from fedloom.tasks.multiple_choice import label_of
from fedloom.types import Example

Floats = NDArray[np.float64]
Features = Callable[[Sequence[Example], Sequence[Example]], tuple[Any, Any]]
"""(training examples, test examples) → features of both, [N, F] each, dense or sparse."""
Embed = Callable[[Sequence[str]], Floats]
"""Texts → features of each text by itself, [N, F]."""

SIDE = 64
ORIENTATIONS = 9
CELLS = (8, 16)
COLORS = 4
THUMBNAIL = 8
IMAGE_C, TEXT_C = 1.0, 30.0
"""Inverse strength of the L2 penalty for image and text features."""


def linear_baseline(
    train: Sequence[Example], test: Sequence[Example], embed: Embed | None = None
) -> dict[str, Floats]:
    """Train logistic regressions on images and on texts, and apply them to the test examples.

    The result is deterministic. A test example that lacks the modality gets equal probabilities.

    Args:
        train: Multiple-choice examples with the same options.
        test: Examples to classify.
        embed: Computes features of texts, [N, F]; None uses tf-idf weights.

    Returns:
        Slice ("image", "text", "both") → probabilities of the options, shape [N of test, C]. A slice is
        absent if no training or no test example has its modality; "both" needs the other two.

    Raises:
        UserError: scikit-learn is not installed, or an example is not multiple choice with these options.
    """
    require_choice([*train, *test])
    options = len(test[0].options)
    slices: dict[str, Floats] = {}
    of_texts = text_features if embed is None else partial(_embedded, embed)
    for name, features, strength in (("image", image_features, IMAGE_C), ("text", of_texts, TEXT_C)):
        train_indices, test_indices = _indices_with(train, name), _indices_with(test, name)
        if len(train_indices) and len(test_indices):
            inputs = features(
                [train[index] for index in train_indices], [test[index] for index in test_indices]
            )
            labels = np.array([label_of(train[index]) for index in train_indices])
            slices[name] = np.full((len(test), options), 1 / options)
            slices[name][test_indices] = _posterior(*inputs, labels, options, strength)
    if len(slices) == 2:
        product = slices["image"] * slices["text"]
        slices["both"] = product / product.sum(axis=1, keepdims=True)
    return slices


def require_choice(examples: Sequence[Example]) -> None:
    """Check that linear baselines can be trained, before anything else takes time.

    Raises:
        UserError: scikit-learn is not installed, or the examples do not all have the same options in the same order, without which
            the number of an option says nothing.
    """
    _sklearn()
    for example in examples:
        if not example.options or example.options != examples[0].options:
            others = f"other options than {examples[0].id!r}, or another order of them"
            raise UserError(
                f"methods: linear needs multiple choice with the same options everywhere, but example "
                f"{example.id!r} has {others if example.options else 'no options'}; leave linear out"
            )


def _indices_with(examples: Sequence[Example], modality: str) -> NDArray[np.int64]:
    indices = [index for index, example in enumerate(examples) if getattr(example, modality) is not None]
    return np.array(indices, dtype=np.int64)


def _posterior(train: Any, test: Any, labels: NDArray[np.int64], options: int, strength: float) -> Floats:
    posterior = np.zeros((test.shape[0], options))
    classes = np.unique(labels)
    if len(classes) == 1:  # nothing to learn, and scikit-learn refuses
        posterior[:, classes] = 1.0
    else:
        model = _sklearn().linear_model.LogisticRegression(C=strength, max_iter=2000).fit(train, labels)
        posterior[:, model.classes_] = model.predict_proba(test)
    # No option is impossible: a product with another posterior must not be all zeros.
    return np.maximum(posterior, 1e-12)


def text_features(train: Sequence[Example], test: Sequence[Example]) -> tuple[Any, Any]:
    """Return tf-idf weights of words and word pairs with the vocabulary of `train`, sparse [N, F].

    If no text of `train` has a word, such as texts of emoji only, there is one feature, which is 0 everywhere: the
    regression then learns how frequent the labels are.
    """
    tokens = r"(?u)\b\w+\b"  # single letters and digits count as words
    vectorizer = _sklearn().feature_extraction.text.TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=tokens
    )
    texts = [[example.text or "" for example in examples] for examples in (train, test)]
    if not any(map(vectorizer.build_analyzer(), texts[0])):  # scikit-learn refuses an empty vocabulary
        return np.zeros((len(train), 1)), np.zeros((len(test), 1))
    return vectorizer.fit_transform(texts[0]), vectorizer.transform(texts[1])


def _embedded(embed: Embed, train: Sequence[Example], test: Sequence[Example]) -> tuple[Floats, Floats]:
    features = embed([example.text or "" for example in (*train, *test)])
    return features[: len(train)], features[len(train) :]


def image_features(train: Sequence[Example], test: Sequence[Example]) -> tuple[Floats, Floats]:
    """Return features of images, [N, F]; each family is standardized on `train` and has the same weight."""
    rows = [_families(example) for example in (*train, *test)]
    scaled = []
    for family in zip(*rows, strict=True):
        values = np.stack(family)  # [N, F of the family]
        training = values[: len(train)]
        # Dividing by a tiny spread would blow up features that hardly vary in training.
        spread = np.maximum(training.std(axis=0), 1e-6)
        scaled.append((values - training.mean(axis=0)) / spread / np.sqrt(values.shape[1]))
    features = np.concatenate(scaled, axis=1)
    return features[: len(train)], features[len(train) :]


def _families(example: Example) -> list[Floats]:
    assert example.image is not None
    pixels = resize(example.image.pixels() / 255.0, SIDE)  # [S, S, 3]
    gray = pixels.mean(axis=2)
    return [
        *(gradients(gray, cell) for cell in CELLS),
        np.sqrt(colors(pixels)),  # the Hellinger map: Euclidean distances of roots suit histograms
        resize(pixels, THUMBNAIL).ravel(),
    ]


def resize(image: Floats, side: int) -> Floats:
    """Average an image [height, width, 3] over a grid of equal boxes, [side, side, 3].

    Example:
        >>> resize(np.arange(4.0).reshape(2, 2, 1), 1).item()
        1.5
    """
    for axis in (0, 1):
        size = image.shape[axis]
        edges = np.arange(side + 1) * size / side
        low = np.minimum(edges.astype(int), size - 1)
        part = np.expand_dims(edges - low, tuple({0, 1, 2} - {axis}))
        # The running sum between pixels is linear, so boxes may end anywhere.
        total = np.concatenate([np.zeros_like(image.take([0], axis)), image.cumsum(axis)], axis)
        ends = total.take(low, axis) * (1 - part) + total.take(low + 1, axis) * part
        image = np.diff(ends, axis=axis) * side / size
    return image


def colors(pixels: Floats) -> Floats:
    """Return the shares of pixels [S, S, 3] in `COLORS`³ boxes of red, green and blue, [F]."""
    box = np.minimum((pixels * COLORS).astype(int), COLORS - 1) @ np.array([COLORS**2, COLORS, 1])
    return np.bincount(box.ravel(), minlength=COLORS**3) / box.size


def gradients(gray: Floats, cell: int) -> Floats:
    """Return histograms of oriented gradients of a gray image [S, S] in cells of `cell` pixels, [F]."""
    down, right = np.gradient(gray)
    strength = np.hypot(right, down)
    angle = np.arctan2(down, right) % np.pi / np.pi * ORIENTATIONS
    low = np.floor(angle).astype(int)
    part = angle - low
    count = len(gray) // cell
    rows = np.arange(len(gray)) // cell
    place = (rows[:, None] * count + rows[None, :]) * ORIENTATIONS  # [S, S]
    bins, weights = np.stack([low, low + 1]) % ORIENTATIONS + place, np.stack([1 - part, part]) * strength
    cells = np.bincount(bins.ravel(), weights.ravel(), count * count * ORIENTATIONS)
    cells = cells.reshape(count, count, ORIENTATIONS)
    blocks = np.concatenate([cells[:-1, :-1], cells[1:, :-1], cells[:-1, 1:], cells[1:, 1:]], axis=2)
    blocks = blocks / np.sqrt((blocks**2).sum(axis=2, keepdims=True) + 1e-2)
    return np.minimum(blocks, 0.2).ravel()


def _sklearn() -> Any:
    try:
        import sklearn
        import sklearn.feature_extraction.text
        import sklearn.linear_model
    except ImportError as error:
        raise UserError("the linear baselines need scikit-learn: pip install 'fedloom[eval]'") from error
    return sklearn
