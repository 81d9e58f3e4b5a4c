"""What linear models reach without any network: the reference that a fine-tuned model has to beat.

Pictures become gradients, colors and a thumbnail, texts become tf-idf weights of words and word pairs, or whatever
features a function gives, such as sentence embeddings; each feeds a logistic regression, and "both" is the product of the two posteriors.

Shape legend: N = number of examples, C = number of options, F = number of features, S = side in pixels.

Reference: N. Dalal, B. Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005.

Differs from the paper: gradients of the gray picture, cells of two sizes, one block normalization (L2 cut
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
"""(training examples, test examples) → features of either, [N, F], dense or sparse."""
Embed = Callable[[Sequence[str]], Floats]
"""Texts → features that do not depend on the other texts, [N, F]."""

SIDE = 64
ORIENTATIONS = 9
CELLS = (8, 16)
COLORS = 4
THUMBNAIL = 8
IMAGE_C, TEXT_C = 1.0, 30.0
"""Inverse strength of the L2 penalty for each kind of features."""


def linear_baseline(
    train: Sequence[Example], test: Sequence[Example], embed: Embed | None = None
) -> dict[str, Floats]:
    """Train logistic regressions on pictures and on texts and apply them to the test examples.

    Deterministic: nothing is drawn. A test example that lacks the modality gets equal probabilities.

    Args:
        train: Multiple-choice examples with the same options.
        test: Examples to classify.
        embed: Turns texts into features, [N, F]; None weighs words by tf-idf.

    Returns:
        Slice ("image", "text", "both") → probabilities of the options, shape [N of test, C]. A slice is
        absent where no training or no test example has its modality; "both" needs the other two.

    Raises:
        UserError: scikit-learn is not installed, or an example is not multiple choice with these options.
    """
    require_choice([*train, *test])
    options = len(test[0].options)
    slices: dict[str, Floats] = {}
    read = text_features if embed is None else partial(_embedded, embed)
    for name, features, strength in (("image", image_features, IMAGE_C), ("text", read, TEXT_C)):
        seen, asked = _having(train, name), _having(test, name)
        if len(seen) and len(asked):
            inputs = features([train[index] for index in seen], [test[index] for index in asked])
            labels = np.array([label_of(train[index]) for index in seen])
            slices[name] = np.full((len(test), options), 1 / options)
            slices[name][asked] = _posterior(*inputs, labels, options, strength)
    if len(slices) == 2:
        product = slices["image"] * slices["text"]
        slices["both"] = product / product.sum(axis=1, keepdims=True)
    return slices


def require_choice(examples: Sequence[Example]) -> None:
    """Check that linear references can be trained, before anything else takes time.

    Raises:
        UserError: scikit-learn is not installed, or the examples do not all have the same number of options.
    """
    _sklearn()
    for example in examples:
        if not example.options or len(example.options) != len(examples[0].options):
            raise UserError(
                f"methods: linear needs multiple choice with the same options everywhere, but example "
                f"{example.id!r} has {len(example.options) or 'no'} options; leave linear out"
            )


def _having(examples: Sequence[Example], modality: str) -> NDArray[np.int64]:
    found = [index for index, example in enumerate(examples) if getattr(example, modality) is not None]
    return np.array(found, dtype=np.int64)


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
    """Weigh words and word pairs by tf-idf, with the vocabulary of `train`; sparse [N, F]."""
    tokens = r"(?u)\b\w+\b"  # single letters and digits count as words
    vectorizer = _sklearn().feature_extraction.text.TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=tokens
    )
    texts = [[example.text or "" for example in examples] for examples in (train, test)]
    return vectorizer.fit_transform(texts[0]), vectorizer.transform(texts[1])


def _embedded(embed: Embed, train: Sequence[Example], test: Sequence[Example]) -> tuple[Floats, Floats]:
    found = embed([example.text or "" for example in (*train, *test)])
    return found[: len(train)], found[len(train) :]


def image_features(train: Sequence[Example], test: Sequence[Example]) -> tuple[Floats, Floats]:
    """Describe pictures; each family of features is standardized on `train` and weighs the same, [N, F]."""
    rows = [_families(example) for example in (*train, *test)]
    scaled = []
    for family in zip(*rows, strict=True):
        values = np.stack(family)  # [N, F of the family]
        known = values[: len(train)]
        # Features that hardly vary in training would be blown up by their own spread.
        spread = np.maximum(known.std(axis=0), 1e-6)
        scaled.append((values - known.mean(axis=0)) / spread / np.sqrt(values.shape[1]))
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


def resize(picture: Floats, side: int) -> Floats:
    """Average a picture [height, width, 3] over a grid of equal boxes, [side, side, 3].

    Example:
        >>> resize(np.arange(4.0).reshape(2, 2, 1), 1).item()
        1.5
    """
    for axis in (0, 1):
        size = picture.shape[axis]
        edges = np.arange(side + 1) * size / side
        low = np.minimum(edges.astype(int), size - 1)
        part = np.expand_dims(edges - low, tuple({0, 1, 2} - {axis}))
        # The running sum between pixels is linear, so boxes may end anywhere.
        total = np.concatenate([np.zeros_like(picture.take([0], axis)), picture.cumsum(axis)], axis)
        ends = total.take(low, axis) * (1 - part) + total.take(low + 1, axis) * part
        picture = np.diff(ends, axis=axis) * side / size
    return picture


def colors(pixels: Floats) -> Floats:
    """Count the shares of pixels [S, S, 3] in `COLORS`³ boxes of red, green and blue, [F]."""
    box = np.minimum((pixels * COLORS).astype(int), COLORS - 1) @ np.array([COLORS**2, COLORS, 1])
    return np.bincount(box.ravel(), minlength=COLORS**3) / box.size


def gradients(gray: Floats, cell: int) -> Floats:
    """Make histograms of oriented gradients of a gray picture [S, S] in cells of `cell` pixels, [F]."""
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
        raise UserError("the linear references need scikit-learn: pip install 'fedloom[eval]'") from error
    return sklearn
