"""Fashion-MNIST from valid and invalid files in the owners' format."""

import gzip
import struct

import numpy as np
import pytest

from fedloom.data import load_data
from fedloom.data.check_folder import check
from fedloom.data.fashion_mnist import CLASSES, DEBIAN
from fedloom.system.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(256, size=(20, 28, 28), dtype=np.uint8)} | {
    "t10k": RNG.integers(256, size=(10, 28, 28), dtype=np.uint8)
}


def idx(array):
    """The format of http://yann.lecun.com/exdb/mnist: zero, zero, 8 for bytes, dimensions, big-endian sizes, bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def root(tmp_path):
    for part, images in IMAGES.items():
        labels = np.arange(len(images), dtype=np.uint8) % 10
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_parts_images_and_classes_are_those_of_the_files(root, settings):
    data = load_data(settings(name="fashion-mnist", root=root), 0)
    for part, name in ((data.train, "train"), (data.test, "t10k")):
        assert len(part) == len(IMAGES[name])
        for place, one in enumerate(part):
            assert one.answer == CLASSES[place % 10] == one.options[one.label] and one.text is None
            assert (one.image.pixels() == IMAGES[name][place][:, :, None]).all()
    assert data.train[0].image.images is data.train[1].image.images  # one array, however many examples
    assert check("fashion-mnist", root).usable


HEAD = struct.pack(">BBBB3I", 0, 0, 8, 3, 20, 28, 28)
LABELS = bytes(place % 10 for place in range(20))
DAMAGED = {
    "no gzip": ("train-images-idx3-ubyte.gz", b"no gzip", "damaged"),
    "cut gzip": (
        "train-images-idx3-ubyte.gz",
        gzip.compress(idx(IMAGES["train"]))[:5000],
        "damaged or cut short",
    ),
    "magic": (
        "train-images-idx3-ubyte.gz",
        gzip.compress(b"\0\0\x0d\3" + bytes(12)),
        "not an IDX file of bytes",
    ),
    "labels for images": (
        "train-images-idx3-ubyte.gz",
        gzip.compress(idx(np.zeros(20, np.uint8))),
        "3 dimensions",
    ),
    "empty": ("train-images-idx3-ubyte.gz", b"", "not an IDX file"),
    "fewer bytes": ("train-images-idx3-ubyte.gz", gzip.compress(HEAD + bytes(99)), "fewer"),
    "more bytes": ("train-images-idx3-ubyte.gz", gzip.compress(HEAD + bytes(10**6)), "more"),
    "bomb": (
        "train-images-idx3-ubyte.gz",
        gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 28, 28)),
        "too many",
    ),
    "sides": ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((20, 8, 8), np.uint8))), "28 × 28"),
    "count": ("train-labels-idx1-ubyte", idx(np.zeros(19, np.uint8)), "19 labels"),
    "class": ("train-labels-idx1-ubyte", idx(np.full(20, 10, np.uint8)), "label 1 is 10"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_gives_one_message(case, root, settings):
    name, content, message = DAMAGED[case]
    (root / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_data(settings(name="fashion-mnist", root=root), 0)
    assert name in str(caught.value) or case == "sides"


def test_a_missing_file_says_where_to_get_it(tmp_path, settings):
    with pytest.raises(UserError, match="dataset-fashion-mnist"):
        load_data(settings(name="fashion-mnist", root=tmp_path), 0)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_published_files_have_the_published_numbers(settings):
    data = load_data(settings(name="fashion-mnist"), 0)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    labels = np.array([one.label for one in data.train])
    assert (np.bincount(labels) == 6000).all()  # H. Xiao et al., arXiv 1708.07747v2
    assert data.train[0].answer == "ankle boot"
