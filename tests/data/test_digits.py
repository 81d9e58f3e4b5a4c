"""The bundled digits are scikit-learn's, value for value."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedloom.data import load_data
from fedloom.data.digits import DIGITS
from fedloom.data.loading import FILES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/make_digits.py"


@pytest.fixture(scope="module")
def data(settings):
    return load_data(settings(name="digits"), 0)


def test_images_and_labels_equal_scikit_learns(data):
    original = pytest.importorskip("sklearn.datasets").load_digits()
    examples = sorted((*data.train, *data.test), key=lambda example: example.id)
    pixels = np.stack([example.image.pixels() for example in examples])  # [1797, 8, 8, 3]
    assert (pixels == pixels[..., :1]).all()
    np.testing.assert_array_equal(np.rint(pixels[..., 0] * (16 / 255)), original.images)
    assert [example.label for example in examples] == original.target.tolist()
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_examples_are_complete_and_divided_alike(data):
    examples = (*data.train, *data.test)
    assert len({example.id for example in examples}) == len(examples) == 1797
    total, held = (Counter(example.answer for example in part) for part in (examples, data.test))
    for example in examples:
        assert (example.answer, example.group, example.text) == (DIGITS[example.label], example.answer, None)
        assert example.options == DIGITS
    for digit in DIGITS:
        assert abs(held[digit] - total[digit] / 4) <= 1
    assert not {example.image.key for example in data.train} & {example.image.key for example in data.test}


def test_regenerating_gives_the_same_bytes(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("make_digits", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "FILES", tmp_path)
    script.main()
    for name in ("digits.zip", "digits.jsonl"):
        assert (tmp_path / name).read_bytes() == (FILES / name).read_bytes()
