"""Fashion-MNIST: 70,000 photographs of clothing, 28 × 28 pixels in gray, without text; for large federations and image-only clients.

The folder holds the four files of the owners, compressed with gzip or not: `train-images-idx3-ubyte`,
`train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`. Without `data.root`, the folder of Debian's package
`dataset-fashion-mnist` is read. The training set and the test set are those of the owners; group and answer are the class.

Reference: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv 1708.07747v2.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
QUESTION = "Which article of clothing is it?"
CLASSES = (
    *("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
SIDE = 28
MOST = 1_000_000
"""Maximum number of images of a file; a larger file is refused without being held in memory."""

HOME = (
    "install Debian's package dataset-fashion-mnist, or get the four files train-images-idx3-ubyte.gz, "
    "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz from "
    "https://github.com/zalandoresearch/fashion-mnist, and give their folder as data.root"
)


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An image in an array of images; `key` is the SHA-256 of its pixels.

    Attributes:
        images: All images of the file, shape [N, 28, 28].
        place: The index of the image.
    """

    images: NDArray[np.uint8] = field(repr=False)
    place: int

    @property
    def key(self) -> str:
        """A key that is equal for equal pixels."""
        return hashlib.sha256(self.images[self.place].tobytes()).hexdigest()

    def pixels(self) -> NDArray[np.uint8]:
        """Return the image, shape [28, 28, 3]."""
        return np.repeat(self.images[self.place][:, :, None], 3, axis=2)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrayImage) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def load_fashion_mnist(settings: Data, seed: int) -> DataSet:
    """Load all images, with the owners' division.

    Args:
        settings: `root` is used.
        seed: Not used, since nothing is drawn.

    Raises:
        UserError: A file is missing, damaged or of another kind, or images and labels do not match.
    """
    del seed
    root = DEBIAN if settings.root is None else Path(settings.root)
    return DataSet("fashion-mnist", _part(root, "train", "train"), _part(root, "t10k", "test"))


def _part(root: Path, prefix: str, part: str) -> tuple[Example, ...]:
    images = read_idx(_idx_file(root, f"{prefix}-images-idx3-ubyte"), 3)
    path = _idx_file(root, f"{prefix}-labels-idx1-ubyte")
    labels = read_idx(path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(
            f"data.root: {root}: images of {part} are of {images.shape[1:]} pixels, not {SIDE} × {SIDE}"
        )
    if len(images) != len(labels):
        raise UserError(f"data.root: {path} has {len(labels):,} labels, but there are {len(images):,} images")
    if labels.max(initial=0) >= len(CLASSES):
        place = int(np.argmax(labels >= len(CLASSES)))
        raise UserError(
            f"data.root: {path}: label {place + 1} is {labels[place]}, but labels are 0 to {len(CLASSES) - 1}"
        )
    return tuple(
        Example(
            id=f"{part}-{place:05d}",
            question=QUESTION,
            answer=CLASSES[label],
            image=ArrayImage(images, place),
            label=label,
            group=CLASSES[label],
            options=CLASSES,
        )
        for place, label in enumerate(labels.tolist())
    )


def _idx_file(root: Path, name: str) -> Path:
    for path in (root / f"{name}.gz", root / name):
        if path.is_file():
            return path
    raise UserError(f"data.root: {root} holds no {name}.gz; {HOME}")


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read a file of bytes in the IDX format, compressed with gzip or not.

    Args:
        path: The file.
        dimensions: The number of dimensions that the array must have.

    Returns:
        The array, read-only.

    Raises:
        UserError: The file is damaged, cut short, of another kind, too large, or longer than it says.
    """
    head = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(head)
            if start[:4] != bytes((0, 0, 8, dimensions)) or len(start) < head:
                raise UserError(f"data.root: {path} is not an IDX file of bytes with {dimensions} dimensions")
            shape = tuple(int(size) for size in np.frombuffer(start, ">u4", offset=4))
            size = int(np.prod(shape, dtype=object))
            if size > MOST * SIDE ** (2 * (dimensions > 1)):
                raise UserError(
                    f"data.root: {path} says that it holds {shape[0]:,} entries, which is too many"
                )
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data.root: {path} is damaged or cut short ({error})") from None
    if len(content) != size:
        difference = "fewer" if len(content) < size else "more"
        raise UserError(f"data.root: {path} holds {difference} than the {size:,} bytes that it says")
    return np.frombuffer(content, np.uint8).reshape(shape)
